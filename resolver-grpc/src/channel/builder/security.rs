//! Options of a channel that concern its transport security.

use super::ChannelBuilder;
use crate::subchannel::connections::security::Plaintext;

/// Transport security.
impl ChannelBuilder {
    /// Connects with TLS only. Endpoints whose protocol is `grpcs` or `https`, or that state none, are connected to
    /// with TLS; others are not used, and their [`last_failure`](crate::InstanceStats::last_failure) and the failed
    /// calls state the reason. Of an instance with several endpoints the first with TLS is used. Default: plaintext
    /// endpoints are used as long as the channel has no [interceptor](Self::intercept) and their
    /// [settings](Self::settings) have no TLS.
    ///
    /// tonic's own interceptors wrap the channel, which does not see them: require TLS if they add credentials. Without
    /// [`authority`](Self::authority) the writer of the registry also chooses the name that certificates are checked
    /// against.
    pub fn require_tls(mut self) -> Self {
        self.settings.security.plaintext = Plaintext::Refused;
        self
    }

    /// Connects to plaintext endpoints even if the channel has an [interceptor](Self::intercept), whose credentials are
    /// then readable on the network, or if their [settings](Self::settings) have TLS, which is used only where an
    /// endpoint does not state another protocol. Of this method and [`require_tls`](Self::require_tls) the later call
    /// applies.
    pub fn allow_plaintext(mut self) -> Self {
        self.settings.security.plaintext = Plaintext::Allowed;
        self
    }

    /// Connects to endpoints that are unix domain sockets, in plaintext, also with [`require_tls`](Self::require_tls).
    /// Without this they are not used: a writer of the registry could make the client connect to any socket of its
    /// machine. Default: no.
    pub fn allow_unix(mut self) -> Self {
        self.settings.security.unix = true;
        self
    }

    /// Sets the authority (`host` or `host:port`) of all calls. Its host is the name that certificates must have,
    /// unless the TLS settings of an instance name another one. Default: the endpoint's `host:port`, as the registry
    /// lists it, so any certificate for it by a trusted root is accepted.
    pub fn authority(mut self, authority: impl Into<String>) -> Self {
        self.settings.security.authority = Some(authority.into());
        self
    }
}
