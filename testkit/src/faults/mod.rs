//! Faults of the network: a TCP proxy that delays, holds, cuts or refuses connections. Begin with `proxy.rs`.

mod forwarding;
pub(crate) mod modes;
pub(crate) mod proxy;
