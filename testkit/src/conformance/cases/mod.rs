//! The conformance cases: one function per guarantee, named after the guarantee.
//!
//! [`each_case!`](crate::each_case) is the only list of them. The compiler reports a case that is not listed as dead
//! code.

#![expect(
    missing_docs,
    clippy::missing_panics_doc,
    reason = "the name of a case states its guarantee, and it panics if that is violated"
)]
#![expect(clippy::unwrap_used, reason = "cases are tests, though they are compiled as a library")]
#![allow(clippy::wildcard_imports, reason = "every case uses most helpers of `support`")]

mod config;
mod departure;
mod election;
mod leases;
mod lock;
mod lock_delay;
mod once;
mod publish;
mod queues;
mod raw;
mod register;
mod reregister;
mod semaphore;
mod services;
mod support;
mod watch;

use std::{future::Future, pin::Pin};

use crate::conformance::harness::{Harness, LayoutFeature};

/// One case, for runs that select cases themselves.
#[derive(Debug)]
#[non_exhaustive]
pub struct Case<H> {
    /// Topic of the case: its module.
    pub topic: &'static str,
    /// Name of the case, which states the guarantee.
    pub name: &'static str,
    /// Features that the layout has to carry.
    pub needs: &'static [LayoutFeature],
    /// The case. It panics if the guarantee is violated.
    pub run: fn(&H) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>,
}

macro_rules! list {
    (() $($module:ident :: $case:ident [$($need:ident)*])*) => {
        $(pub use $module::$case;)*

        /// Returns all cases.
        pub fn all<H: Harness>() -> Vec<Case<H>> {
            vec![$(Case {
                topic: stringify!($module),
                name: stringify!($case),
                needs: &[$(LayoutFeature::$need),*],
                run: |harness| Box::pin($case(harness)),
            }),*]
        }
    };
}

crate::each_case!([list]());
