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
//! It knows no store: what feeds it is any [`Resolver`](enlist::Resolver), so the same code runs against etcd and
//! against `enlist-memory` in tests. It needs no `protoc`.
//!
//! # Features
//!
//! None is on by default. `tls-ring`, `tls-aws-lc`, `tls-native-roots`, `tls-webpki-roots` are tonic's of the same
//! names; `trace` adds spans as OpenTelemetry's conventions have them and the W3C trace context.

mod adapters;
mod channel;
mod load_balancing;
mod name_resolution;
mod retry;
mod serving;
mod subchannel;
pub mod trace;

#[doc(inline)]
pub use self::{
    adapters::{Balanced, balance_channel, pick_first},
    channel::{
        builder::ChannelBuilder,
        call::ResponseFuture,
        channel::{Channel, InstanceStats},
        inner::{CallHead, Intercept, WaitForReady},
        manager::{ConnectionManager, ManagerOptions},
    },
    load_balancing::balance::{Balance, HashKey},
    name_resolution::{
        invocation::Invocation,
        locator::{Callee, Locator},
        sources::{Dns, Fixed, Lookup, Schemes},
        target::Target,
    },
    retry::{failure::BoxError, policy::RetryPolicy},
    serving::serve::{Serve, serve},
    subchannel::connectivity::InstanceState,
};
