//! Configuration of the subchannels of one channel, and the signals that all of them share.

use std::time::Duration;

use enlist::{BackoffPolicy, Ejection, balance::Ejections};
use tokio::sync::Notify;
use tonic::Code;

use crate::subchannel::{
    activity::Activity, call_queue::CallQueue, connection_options::ConnectionOptions, dial_limit::DialLimit,
    settings::SettingsFor,
};

/// Configuration of all subchannels of a channel.
#[derive(Debug)]
pub(crate) struct SubchannelConfig {
    pub(crate) settings: SettingsFor,
    pub(crate) dial_timeout: Duration,
    pub(crate) redial: BackoffPolicy,
    /// The service whose health is watched, if it is.
    pub(crate) health: Option<String>,
    pub(crate) ejection: Option<Ejection>,
    /// The codes that speak against an instance that answered with them.
    pub(crate) ejection_codes: Vec<Code>,
    pub(crate) ejections: Ejections,
    pub(crate) silence: Duration,
    pub(crate) connections: ConnectionOptions,
    /// Told of every change of a condition.
    pub(crate) changed: Notify,
    /// Told of every connection that is made.
    pub(crate) connected: Notify,
    pub(crate) dials: DialLimit,
    pub(crate) activity: Activity,
    /// Calls that wait for a stream.
    pub(crate) queue: CallQueue,
}
