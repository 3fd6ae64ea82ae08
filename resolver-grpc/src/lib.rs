//! A tonic channel that only picks instances that answer.

mod adapters;
mod answer;
mod attempt;
mod balance;
mod call;
pub mod channel;
mod connection;
mod deadline;
mod ejection;
mod failure;
mod health;
mod locator;
pub mod manager;
mod replay;
mod retry;
mod serve;
mod set;
mod settings;
mod sources;
mod subchannel;
mod target;
#[cfg(feature = "trace")]
pub mod trace;

#[doc(inline)]
pub use self::{
    adapters::{Balanced, balance_channel, pick_first},
    attempt::ResponseFuture,
    balance::{Balance, HashKey},
    call::{CallHead, Intercept, WaitForReady},
    channel::{Channel, ChannelBuilder, InstanceStats},
    ejection::Ejection,
    locator::{Callee, Invocation, Locator},
    manager::ConnectionManager,
    retry::RetryPolicy,
    serve::{Serve, serve},
    sources::{Dns, Fixed, Lookup, Schemes},
    subchannel::InstanceState,
    target::Target,
};
