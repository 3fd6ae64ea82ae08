//! A tonic channel that only picks instances that answer, and what goes with it.
//!
//! | you want to | look at |
//! |---|---|
//! | call a service with a generated client | [`Channel`], [`ChannelBuilder`] |
//! | repeat what failed | [`RetryPolicy`] |
//! | let failing instances rest | [`ChannelBuilder::ejection`], [`enlist::Ejection`] |
//! | add credentials to every call | [`Intercept`] |
//! | let the registry choose neither plaintext nor another server | [`ChannelBuilder::require_tls`], [`ChannelBuilder::authority`] |
//! | serve, and leave without a call failing | [`serve()`] |
//! | name what you call as text, or through DNS | [`Target`], [`Schemes`], [`Dns`] |
//! | share channels between callers | [`ConnectionManager::from_resolver`], [`Locator`], [`Invocation`] |
//! | open the streams to instances yourself, through a proxy | [`ChannelBuilder::connector`] |
//! | hand tonic's own channel to code that needs it | [`balance_channel`], [`pick_first`] |
//!
//! It knows no store: what feeds it is any [`Resolver`](enlist::Resolver), so the same code runs against etcd and against
//! `enlist-memory` in tests. It needs no `protoc`.
//!
//! # Features
//!
//! None is on by default. `tls-ring`, `tls-aws-lc`, `tls-native-roots`, `tls-webpki-roots` are tonic's of the same names; `trace` adds spans
//! as OpenTelemetry's conventions have them and the W3C trace context.

mod adapters;
mod answer;
mod attempt;
mod balance;
mod call;
pub mod channel;
mod connection;
mod connection_options;
mod connector;
mod deadline;
mod dial_limit;
mod failure;
mod flight;
mod frames;
mod health;
mod idle;
mod locator;
pub mod manager;
mod opening;
mod probe;
mod queue;
mod replay;
mod retry;
mod security;
mod serve;
mod set;
mod settings;
mod sources;
mod subchannel;
mod target;
pub mod trace;

#[doc(inline)]
pub use self::{
    adapters::{Balanced, balance_channel, pick_first},
    attempt::ResponseFuture,
    balance::{Balance, HashKey},
    call::{CallHead, Intercept, WaitForReady},
    channel::{Channel, ChannelBuilder, InstanceStats},
    failure::BoxError,
    locator::{Callee, Invocation, Locator},
    manager::{ConnectionManager, ManagerOptions},
    retry::RetryPolicy,
    serve::{Serve, serve},
    sources::{Dns, Fixed, Lookup, Schemes},
    subchannel::InstanceState,
    target::Target,
};
