//! A load-balanced tonic channel that picks only instances that respond, name resolution for it, and graceful serving.
//!
//! | you want to | look at |
//! |---|---|
//! | call a service with a generated client | [`Channel`], [`ChannelBuilder`] |
//! | repeat failed calls | [`RetryPolicy`] |
//! | eject failing instances | [`ChannelBuilder::ejection`], [`enlist::Ejection`] |
//! | add credentials to every call | [`Intercept`] |
//! | prevent plaintext and wrong servers | [`ChannelBuilder::require_tls`], [`ChannelBuilder::authority`] |
//! | serve, and stop without a failed call | [`serve()`] |
//! | name targets as text, or through DNS | [`Target`], [`Schemes`], [`Dns`] |
//! | share channels between callers | [`ConnectionManager::from_resolver`], [`Locator`], [`Invocation`] |
//! | open streams to instances yourself, for instance through a proxy | [`ChannelBuilder::connector`] |
//! | give tonic's own channel to code that needs it | [`balance_channel`], [`pick_first`] |
//!
//! The crate depends on no store: it takes any [`Resolver`](enlist::Resolver), so the same code runs against etcd and,
//! in tests, against `enlist-memory`. It needs no `protoc`.
//!
//! # Features
//!
//! None is on by default. `tls-ring`, `tls-aws-lc`, `tls-native-roots` and `tls-webpki-roots` are tonic's of the same
//! names.

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
    load_balancing::balance::{BalancePolicy, HashKey},
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
