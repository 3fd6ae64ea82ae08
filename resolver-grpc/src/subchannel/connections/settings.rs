//! tonic's settings for the connection to an endpoint of an instance.
//! [`crate::subchannel::connections::security`] decides which endpoints those may be.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use enlist::{Endpoint, Instance};
use tonic::transport::Endpoint as Settings;

use crate::{
    retry::failure::{BoxError, panicked},
    subchannel::connections::{
        connection_options::ConnectionOptions,
        security::{Connect, Security, TlsSettings, Wire},
    },
};

/// URL that reveals TLS in settings: tonic refuses to configure TLS for a socket, and offers no other way to find out.
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
const PROBE: &str = "unix:///settings-with-tls-are-refused-here";

type Change = dyn Fn(&Instance, Settings) -> Result<Settings, BoxError> + Send + Sync;

/// Settings of a channel's connections: the rules, and the user's changes for each instance.
#[derive(Clone, Default)]
pub(crate) struct SettingsFor {
    change: Option<Arc<Change>>,
    pub(crate) security: Security,
}

impl fmt::Debug for SettingsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed = if self.change.is_some() { "changed by the user" } else { "as they come" };
        f.debug_struct("SettingsFor").field("change", &changed).field("security", &self.security).finish()
    }
}

impl SettingsFor {
    pub(crate) fn change(
        &mut self,
        change: impl Fn(&Instance, Settings) -> Result<Settings, BoxError> + Send + Sync + 'static,
    ) {
        self.change = Some(Arc::new(change));
    }

    /// The first endpoint that can be used, or else the first gRPC endpoint.
    pub(crate) fn endpoint<'a>(&self, instance: &'a Instance) -> Option<&'a Endpoint> {
        // The settings are known only at a dial: the user's code runs nowhere else.
        let settings = [TlsSettings::Absent, TlsSettings::Present];
        let possible = if self.change.is_some() { &settings[..] } else { &settings[..1] };
        self.security.endpoint(instance, possible)
    }

    /// The settings for a connection to `endpoint` of `instance`: those of `options`, changed by the user.
    ///
    /// # Errors
    ///
    /// A [`Refusal`](crate::subchannel::connections::security::Refusal) for an endpoint that must not be used, or the
    /// user's error.
    /// A panic of the user's code is an error.
    pub(crate) fn of(
        &self,
        instance: &Instance,
        endpoint: &Endpoint,
        options: &ConnectionOptions,
    ) -> Result<Settings, BoxError> {
        let wire = Wire::of(endpoint).ok_or("gRPC is not spoken with this endpoint")?;
        let tls = if wire == Wire::Tls { TlsSettings::Absent } else { self.tls(instance, endpoint)? };
        let connect = self.security.decide(wire, tls)?;
        let settings = self.settings(endpoint, connect)?;
        let settings = if tls == TlsSettings::Present { settings } else { with_roots(settings)? };
        let settings = options.applied_to(self.changed(instance, options.below(settings))?);
        if connect == Connect::Tls && !is_https(&settings) {
            return Err("the settings were replaced by some without TLS".into());
        }
        Ok(settings)
    }

    fn settings(&self, endpoint: &Endpoint, connect: Connect) -> Result<Settings, BoxError> {
        Ok(Settings::from_shared(self.security.url(endpoint, connect))?.tcp_nodelay(true))
    }

    /// The user's version of `settings`.
    fn changed(&self, instance: &Instance, settings: Settings) -> Result<Settings, BoxError> {
        let Some(change) = &self.change else { return Ok(settings) };
        catch_unwind(AssertUnwindSafe(|| change(instance, settings)))
            .unwrap_or_else(|panic| Err(panicked("settings", &*panic)))
    }

    /// Determines if the user's settings have TLS, which tonic would ignore for a plaintext endpoint.
    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
    fn tls(&self, instance: &Instance, endpoint: &Endpoint) -> Result<TlsSettings, BoxError> {
        if self.change.is_none() {
            return Ok(TlsSettings::Absent);
        }
        match self.changed(instance, Settings::from_static(PROBE)) {
            Ok(settings) => Ok(if is_https(&settings) { TlsSettings::Present } else { TlsSettings::Absent }),
            // Either TLS is the reason, or the change fails for the endpoint itself too, which is an error.
            Err(_) => {
                self.changed(instance, self.settings(endpoint, Connect::Plaintext)?).map(|_| TlsSettings::Present)
            }
        }
    }

    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as with TLS")]
    fn tls(&self, _: &Instance, _: &Endpoint) -> Result<TlsSettings, BoxError> {
        Ok(TlsSettings::Absent)
    }
}

fn is_https(settings: &Settings) -> bool {
    settings.uri().scheme_str() == Some("https")
}

/// Lets an `https` endpoint trust the roots of tonic's features, unless the user's settings state others.
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
fn with_roots(settings: Settings) -> Result<Settings, BoxError> {
    if !is_https(&settings) {
        return Ok(settings);
    }
    Ok(settings.tls_config(tonic::transport::ClientTlsConfig::new().with_enabled_roots())?)
}

#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
fn with_roots(settings: Settings) -> Result<Settings, BoxError> {
    refuse_plain_text(&settings)?;
    Ok(settings)
}

/// Refuses `https` endpoints without a TLS feature, to which tonic would send plaintext.
pub(crate) fn refuse_plain_text(settings: &Settings) -> Result<(), BoxError> {
    let can = cfg!(any(feature = "tls-ring", feature = "tls-aws-lc"));
    if !can && is_https(settings) {
        return Err("TLS needs the feature `tls-ring` or `tls-aws-lc` of enlist-grpc".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::InstanceId;

    fn instance(endpoints: &[&str]) -> Instance {
        let endpoints = endpoints.iter().map(|text| Endpoint::parse(text).unwrap());
        Instance::new(InstanceId::parse("a").unwrap(), endpoints).unwrap()
    }

    fn changing(
        change: impl Fn(&Instance, Settings) -> Result<Settings, BoxError> + Send + Sync + 'static,
    ) -> SettingsFor {
        let mut settings = SettingsFor::default();
        settings.change(change);
        settings
    }

    fn made(settings: &SettingsFor, text: &str) -> Result<Settings, BoxError> {
        settings.of(&instance(&[text]), &Endpoint::parse(text).unwrap(), &ConnectionOptions::default())
    }

    #[test]
    fn the_first_endpoint_that_speaks_grpc_is_used() {
        let used = |endpoints: &[&str]| SettingsFor::default().endpoint(&instance(endpoints)).map(ToString::to_string);
        assert_eq!(used(&["redis://h:1", "grpc://h:2", "h:3"]).as_deref(), Some("grpc://h:2"));
        assert_eq!(used(&["unix:///run/a.sock", "h:3"]).as_deref(), Some("h:3"));
        assert_eq!(used(&["redis://h:1"]), None);
    }

    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
    #[test]
    fn settings_with_tls_are_never_ignored() {
        let settings = changing(|_, settings| Ok(settings.tls_config(tonic::transport::ClientTlsConfig::new())?));
        let of = |text: &str| {
            made(&settings, text).map(|settings| settings.uri().to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(of("h:1").unwrap(), "https://h:1/");
        assert_eq!(of("grpcs://h:1").unwrap(), "https://h:1/");
        assert!(of("grpc://h:1").unwrap_err().contains("settings have TLS"));
        let conditional = changing(|_, settings| {
            let tls = tonic::transport::ClientTlsConfig::new();
            if is_https(&settings) { Ok(settings.tls_config(tls)?) } else { Ok(settings) }
        });
        let plain = made(&conditional, "grpc://h:1").unwrap();
        assert_eq!(plain.uri(), "http://h:1/");
    }

    #[test]
    fn user_settings_are_applied_or_fail_the_dial() {
        let plain = made(&SettingsFor::default(), "grpc://[::1]:2").unwrap();
        assert_eq!(plain.uri(), "http://[::1]:2/");
        let timed = changing(|_, settings| Ok(settings.connect_timeout(std::time::Duration::from_secs(7))));
        assert_eq!(made(&timed, "grpc://[::1]:2").unwrap().get_connect_timeout().unwrap().as_secs(), 7);
        assert!(made(&changing(|_, _| Err("no".into())), "grpc://[::1]:2").is_err());
    }

    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc")))]
    #[test]
    fn tls_endpoints_are_refused_without_the_feature() {
        let refused = made(&SettingsFor::default(), "grpcs://h:1").unwrap_err();
        assert!(refused.to_string().contains("tls-ring"), "{refused}");
    }
}
