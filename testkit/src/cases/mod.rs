//! The conformance cases: one function per promise, named as the promise.
//!
//! [`each_case!`](crate::each_case) is the only list of them. A case that is not on it is flagged by the compiler as dead code.

#![expect(
    missing_docs,
    clippy::missing_panics_doc,
    reason = "the name of a case is its promise, and it panics if that is broken"
)]
#![expect(clippy::unwrap_used, reason = "cases are tests, though they are compiled as a library")]
#![allow(clippy::wildcard_imports, reason = "the words of `support` are the language that the cases are written in")]

mod departure;
mod election;
mod leases;
mod lock;
mod lock_delay;
mod publish;
mod raw;
mod register;
mod reregister;
mod support;
mod watch;

use std::{future::Future, pin::Pin};

use crate::harness::{Harness, LayoutFeature};

/// One case, for runs that pick cases themselves.
#[derive(Debug)]
#[non_exhaustive]
pub struct Case<H> {
    /// Its topic: the module it stands in.
    pub topic: &'static str,
    /// The promise.
    pub name: &'static str,
    /// What a layout has to carry for the case to make sense.
    pub needs: &'static [LayoutFeature],
    /// The case itself. It panics if the promise is broken.
    pub run: fn(&H) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>,
}

macro_rules! list {
    (() $($module:ident :: $case:ident [$($need:ident)*])*) => {
        $(pub use $module::$case;)*

        /// All cases.
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
