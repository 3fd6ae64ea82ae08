//! A tonic channel that only picks instances that answer.

mod answer;
pub mod balance;
mod balance_channel;
mod call;
pub mod channel;
mod connection;
mod deadline;
mod ejection;
mod failure;
mod health;
mod replay;
mod retry;
mod set;
mod settings;
mod subchannel;

#[doc(inline)]
pub use self::{
    balance::{Balance, HashKey},
    balance_channel::{Balanced, balance_channel},
    call::{CallHead, Intercept, WaitForReady},
    channel::{Channel, ChannelBuilder, InstanceStats, ResponseFuture},
    ejection::Ejection,
    retry::RetryPolicy,
    subchannel::InstanceState,
};
