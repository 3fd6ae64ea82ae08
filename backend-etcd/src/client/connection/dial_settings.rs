//! The user's change to tonic's settings of each dial. It outlives every connection;
//! [`crate::client::connection::dial`] applies it to each of them.

use std::{fmt, sync::Arc};

use enlist::{Cause, backend::caught_now, with_causes};
use tonic::transport::Endpoint;
use tower::BoxError;

use crate::error::text_cause;

/// The user's change to the settings of each dial.
#[derive(Clone)]
pub(crate) struct DialSettings(Arc<dyn Fn(Endpoint) -> Result<Endpoint, BoxError> + Send + Sync>);

impl fmt::Debug for DialSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DialSettings")
    }
}

impl DialSettings {
    pub(crate) fn new(change: impl Fn(Endpoint) -> Result<Endpoint, BoxError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(change))
    }

    /// Returns the changed settings, or the reason for not dialling this endpoint: the user's error, a panic, or the
    /// loss of TLS.
    pub(crate) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, Cause> {
        let url = endpoint.uri().clone();
        let refused = |reason: String| text_cause(format!("{url}: {reason}"));
        let changed = match caught_now(|| (self.0)(endpoint)) {
            Ok(changed) => changed.map_err(|error| refused(with_causes(&*error).to_string()))?,
            Err(message) => return Err(refused(format!("the settings panicked: {message}"))),
        };
        if url.scheme_str() == Some("https") && changed.uri().scheme_str() != Some("https") {
            return Err(refused("the settings were replaced by some without TLS".to_owned()));
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(
        endpoint: Endpoint,
        change: impl Fn(Endpoint) -> Result<Endpoint, BoxError> + Send + Sync + 'static,
    ) -> Result<String, String> {
        let changed = DialSettings::new(change).apply(endpoint);
        changed.map(|endpoint| endpoint.uri().to_string()).map_err(|cause| cause.to_string())
    }

    #[test]
    fn settings_that_fail_say_so_of_their_endpoint() {
        let plain = || Endpoint::from_static("http://h:1");
        assert_eq!(applied(plain(), Ok), Ok("http://h:1/".to_owned()));
        assert_eq!(applied(plain(), |_| Err("not this one".into())), Err("http://h:1/: not this one".to_owned()));
        let panicked = applied(plain(), |_| panic!("on purpose"));
        assert_eq!(panicked, Err("http://h:1/: the settings panicked: on purpose".to_owned()));
    }

    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
    #[test]
    fn settings_do_not_take_tls_away() {
        let tls = tonic::transport::ClientTlsConfig::new;
        let secure = || Endpoint::from_static("https://h:1").tls_config(tls()).unwrap();
        let plain = |_| Ok(Endpoint::from_static("http://h:1"));
        assert!(applied(secure(), plain).unwrap_err().contains("without TLS"));
        assert_eq!(applied(secure(), Ok), Ok("https://h:1/".to_owned()));
    }
}
