//! A call in flight: it counts on its instance, and its end counts for or against the instance.

use std::sync::Arc;

use tonic::{Code, body::Body};

use crate::{
    channel::opening::opening,
    subchannel::{config::SubchannelConfig, connections::connection::Connection, subchannel::Subchannel},
};

/// A call in flight. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct InFlightCall {
    subchannel: Arc<Subchannel>,
    connection: Arc<Connection>,
    config: Arc<SubchannelConfig>,
    /// Number of reads of the connection when the call began.
    heard: u64,
    /// There was a response, or the call was not sent.
    responded: bool,
}

impl InFlightCall {
    /// Begins a call, unless the connection was just lost or its last stream taken.
    pub(crate) fn begin(subchannel: &Arc<Subchannel>, config: &Arc<SubchannelConfig>) -> Option<Self> {
        let connection = subchannel.begin()?;
        let heard = connection.reads();
        let (subchannel, config) = (Arc::clone(subchannel), Arc::clone(config));
        Some(Self { subchannel, connection, config, heard, responded: false })
    }

    pub(crate) fn subchannel(&self) -> &Arc<Subchannel> {
        &self.subchannel
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The body that is sent.
    pub(crate) fn carry(&self, body: Body) -> Body {
        opening(body, &self.connection)
    }

    /// Notes a response of the server.
    pub(crate) fn responded(&mut self) {
        self.responded = true;
    }

    /// Counts the code with which the call ended.
    pub(crate) fn ended(&self, code: Code) {
        self.subchannel.count(&self.config, code);
    }

    /// Ends a call that was not even sent.
    pub(crate) fn unused(mut self) {
        self.responded = true;
    }

    /// Notes that the connection takes no more calls.
    pub(crate) fn demote(&self) {
        self.subchannel.demote(&self.config, &self.connection);
    }
}

impl Drop for InFlightCall {
    fn drop(&mut self) {
        self.connection.end();
        self.subchannel.end_of_call();
        self.config.queue.wake_one();
        if !self.responded && self.connection.reads() == self.heard {
            self.subchannel.doubt(&self.config, &self.connection);
        }
    }
}
