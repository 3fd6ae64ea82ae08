//! Options of a channel that concern its transport security.

use super::ChannelBuilder;
use crate::subchannel::security::Plaintext;

/// Transport security.
impl ChannelBuilder {
    /// Connects with TLS only. Endpoints whose protocol is `grpcs` or `https`, or that state none, are connected to
    /// with TLS; others are not used, and their [`last_failure`](crate::InstanceStats::last_failure) and failing calls
    /// tell the reason. Of an instance with several endpoints the first with TLS is used. Default: plaintext endpoints
    /// are used as long as the channel has no [interceptor](Self::intercept) and their [settings](Self::settings) have
    /// no TLS.
    ///
    /// tonic's own interceptors wrap the channel, which does not see them: require TLS if they add credentials. Without
    /// [`authority`](Self::authority) the writer of the registry chooses the name that a certificate is checked for,
    /// too.
    pub fn require_tls(mut self) -> Self {
        self.settings.security.plaintext = Plaintext::Refused;
        self
    }

    /// Connects to plaintext endpoints even if the channel has an [interceptor](Self::intercept), whose credentials can
    /// be read on the network then, or if their [settings](Self::settings) have TLS, which is used only where an
    /// endpoint does not state another protocol. Of this and [`require_tls`](Self::require_tls) the later call counts.
    pub fn allow_plaintext(mut self) -> Self {
        self.settings.security.plaintext = Plaintext::Allowed;
        self
    }

    /// Connects to endpoints that are unix domain sockets, in plaintext and also beside
    /// [`require_tls`](Self::require_tls). Without this they are not used: whoever writes the registry could make the
    /// client connect to any socket of its machine. Default: no.
    pub fn allow_unix(mut self) -> Self {
        self.settings.security.unix = true;
        self
    }

    /// Sets the authority (`host` or `host:port`) of all calls, whose host is the name that certificates have to be
    /// for, unless the TLS settings of an instance name another one. Default: the endpoint's `host:port`, as the
    /// registry lists it, so that any certificate passes that the trusted roots vouch for.
    pub fn authority(mut self, authority: impl Into<String>) -> Self {
        self.settings.security.authority = Some(authority.into());
        self
    }
}
