//! How an instance is connected to: which of its endpoints, with which of tonic's settings.

use std::{fmt, sync::Arc};

use enlist::{Endpoint, Instance};
use tonic::transport::Endpoint as Settings;

use crate::failure::BoxError;

/// Protocols that gRPC is spoken over, and whether that is with TLS.
const PROTOCOLS: [(&str, bool); 6] =
    [("grpc", false), ("http", false), ("tcp", false), ("unix", false), ("grpcs", true), ("https", true)];

type Change = dyn Fn(&Instance, Settings) -> Result<Settings, BoxError> + Send + Sync;

/// What a user changes of an instance's settings.
#[derive(Clone, Default)]
pub(crate) struct SettingsFor(Option<Arc<Change>>);

impl fmt::Debug for SettingsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "changed by the user" } else { "as they come" })
    }
}

impl SettingsFor {
    pub(crate) fn new(
        change: impl Fn(&Instance, Settings) -> Result<Settings, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(change)))
    }

    /// The settings for a connection to `endpoint` of `instance`.
    pub(crate) fn of(&self, instance: &Instance, endpoint: &Endpoint) -> Result<Settings, BoxError> {
        let url = match (endpoint.is_unix(), with_tls(endpoint)) {
            // What a server behind a socket sees as the authority.
            (true, _) => "http://localhost".to_owned(),
            (false, Some(true)) => format!("https://{}", endpoint.authority()),
            (false, _) => format!("http://{}", endpoint.authority()),
        };
        let settings = with_roots(Settings::from_shared(url)?.tcp_nodelay(true))?;
        match &self.0 {
            Some(change) => change(instance, settings),
            None => Ok(settings),
        }
    }
}

/// An `https` endpoint trusts the roots that tonic's features bring, until the user says otherwise.
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
fn with_roots(settings: Settings) -> Result<Settings, BoxError> {
    if settings.uri().scheme_str() != Some("https") {
        return Ok(settings);
    }
    Ok(settings.tls_config(tonic::transport::ClientTlsConfig::new().with_enabled_roots())?)
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
fn with_roots(settings: Settings) -> Result<Settings, BoxError> {
    refuse_plain_text(&settings)?;
    Ok(settings)
}

/// tonic without TLS speaks plain text to an `https` endpoint.
pub(crate) fn refuse_plain_text(settings: &Settings) -> Result<(), BoxError> {
    let can = cfg!(any(feature = "tls-ring", feature = "tls-aws-lc"));
    if !can && settings.uri().scheme_str() == Some("https") {
        return Err("TLS needs the feature `tls-ring` or `tls-aws-lc` of enlist-grpc".into());
    }
    Ok(())
}

/// The first endpoint that gRPC can be spoken with.
pub(crate) fn usable(instance: &Instance) -> Option<&Endpoint> {
    instance.endpoints().iter().find(|endpoint| with_tls(endpoint).is_some())
}

/// Whether an endpoint is spoken to with TLS; `None` if gRPC is not spoken there.
pub(crate) fn with_tls(endpoint: &Endpoint) -> Option<bool> {
    let Some(protocol) = endpoint.protocol() else {
        return Some(false);
    };
    PROTOCOLS.iter().find(|(known, _)| *known == protocol).map(|(_, tls)| *tls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::InstanceId;

    fn instance(endpoints: &[&str]) -> Instance {
        let endpoints = endpoints.iter().map(|text| Endpoint::parse(text).unwrap());
        Instance::new(InstanceId::parse("a").unwrap(), endpoints).unwrap()
    }

    #[test]
    fn the_first_endpoint_that_speaks_grpc_is_used() {
        let used = |endpoints: &[&str]| usable(&instance(endpoints)).map(ToString::to_string);
        assert_eq!(used(&["redis://h:1", "grpc://h:2", "h:3"]).as_deref(), Some("grpc://h:2"));
        assert_eq!(used(&["unix:///run/a.sock"]).as_deref(), Some("unix:///run/a.sock"));
        assert_eq!(used(&["redis://h:1"]), None);
    }

    #[test]
    fn what_the_user_changes_is_kept_and_what_the_user_refuses_is_refused() {
        let (instance, endpoint) = (instance(&["grpc://[::1]:2"]), Endpoint::parse("grpc://[::1]:2").unwrap());
        let plain = SettingsFor::default().of(&instance, &endpoint).unwrap();
        assert_eq!(plain.uri(), "http://[::1]:2/");
        let timed = SettingsFor::new(|_, settings| Ok(settings.connect_timeout(std::time::Duration::from_secs(7))));
        assert_eq!(timed.of(&instance, &endpoint).unwrap().get_connect_timeout().unwrap().as_secs(), 7);
        assert!(SettingsFor::new(|_, _| Err("no".into())).of(&instance, &endpoint).is_err());
    }

    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
    #[test]
    fn without_tls_nothing_is_sent_in_plain_text_instead() {
        let endpoint = Endpoint::parse("grpcs://h:1").unwrap();
        let refused = SettingsFor::default().of(&instance(&["grpcs://h:1"]), &endpoint).unwrap_err();
        assert!(refused.to_string().contains("tls-ring"), "{refused}");
    }
}
