//! Clients in other languages, with the real libraries. `cargo xtask clients` installs them and runs these tests.
//!
//! Each module has the tests of one client. Most are the [`scenarios`], which are the same for all of them. A client is
//! a program that calls all the time and reports its calls ([`caller`]).
//!
//! The scenarios take place in several [`world`]s: over the memory backend, and over etcd in three layouts, with
//! servers that the libraries of their frameworks register.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod browser;
mod caller;
mod checks;
mod console;
mod envoy;
mod go;
mod group;
mod http;
mod java;
mod over_etcd;
mod over_memory;
mod page;
mod prometheus;
mod python;
mod relay;
mod scenarios;
mod server;
mod shown;
#[path = "../support/mod.rs"]
mod support;
mod tonic_xds;
mod world;

#[path = "../../examples/demo/greeter.rs"]
mod greeter;

use std::env;

use tokio::sync::RwLock;

/// Use of the machine. A test that asserts a rate has no other heavy one beside it.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// Returns a path that `cargo xtask clients` sets.
fn supplied(variable: &str) -> String {
    env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run `cargo xtask clients`"))
}
