//! Configuration of the subchannels of one channel, and the signals that all of them share.

use std::time::Duration;

use enlist::{BackoffPolicy, Ejection, balance::Ejections};
use tokio::sync::Notify;
use tonic::Code;

use crate::subchannel::{
    activity::Activity,
    call_queue::CallQueue,
    connections::{connection_options::ConnectionOptions, dial_limit::DialLimit, settings::SettingsFor},
};

/// Configuration of all subchannels of a channel.
#[derive(Debug)]
pub(crate) struct SubchannelConfig {
    pub(crate) settings: SettingsFor,
    pub(crate) dial_timeout: Duration,
    pub(crate) redial: BackoffPolicy,
    /// Service whose health is watched; `None` if none is.
    pub(crate) health: Option<String>,
    pub(crate) ejection: Option<Ejection>,
    /// Codes that count as failures of the instance that responded with them.
    pub(crate) ejection_codes: Vec<Code>,
    pub(crate) ejections: Ejections,
    pub(crate) silence: Duration,
    pub(crate) connections: ConnectionOptions,
    /// Notified of every change of a state.
    pub(crate) changed: Notify,
    /// Notified of every new connection.
    pub(crate) connected: Notify,
    pub(crate) dials: DialLimit,
    pub(crate) activity: Activity,
    /// Calls that wait for a stream.
    pub(crate) queue: CallQueue,
}
