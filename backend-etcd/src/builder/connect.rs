//! Creation of a client from its options.

use std::{sync::Arc, time::Duration};

use enlist::{Error, backend::LONGEST};
use tonic::transport::Endpoint;

use super::EtcdBuilder;
use crate::{
    client::{
        connection::{
            dial_settings::DialSettings,
            endpoint_url::{Tls, endpoint_url},
            failover::Failover,
            member_sync,
            members::Members,
            tls::{self, TlsFiles},
        },
        store_client::StoreClient,
    },
    error::Failure,
    etcd::Etcd,
    layout::{Guarded, GuardedLocks, Layout, native::Native},
    session::{Session, lifecycle::RuntimeHandle},
    watch::{context::WatchSettings, record::KeyRange},
};

/// Minimum interval between pings. etcd closes a connection with three pings that each arrive within 5 s of the
/// previous one; one second is a margin for the transport.
const MIN_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(6);

/// Maximum time of the first request on the watch connection when a client is created.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

impl EtcdBuilder {
    /// Creates the client without connecting; the first request dials. The client recovers by itself, also from a start
    /// without etcd.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for endpoints that [`endpoint_url`] refuses, for a mixture of `http` and `https`
    /// endpoints, for `https` endpoints in a build without TLS, for an empty prefix, for timeouts, intervals or limits
    /// of zero, and for pings that are too frequent.
    pub fn build(self) -> Result<Etcd, Error> {
        self.check()?;
        let Self { endpoints, channel, credentials, tls, settings, layers, prefix, .. } = self;
        let Self { layout, lock_layout, config_layout, .. } = self;
        let native = match prefix {
            Some(prefix) => Native::with_prefix(&prefix)?,
            None => Native::default(),
        };
        let connect_timeout = self.connect_timeout.min(LONGEST);
        let (interval, timeout) = (self.keep_alive_interval.min(LONGEST), self.keep_alive_timeout.min(LONGEST));
        let set_up = move |url: Endpoint| {
            let url = url.connect_timeout(connect_timeout).http2_keep_alive_interval(interval);
            url.keep_alive_timeout(timeout).keep_alive_while_idle(true)
        };
        let members = match channel {
            Some(channel) => Members::Fixed(channel),
            None => members(&endpoints, tls, settings, connect_timeout, set_up)?,
        };
        let configured = members.urls();
        let runtime = RuntimeHandle::new(self.runtime)?;
        let control = Failover::new(members.clone(), runtime.runtime.clone());
        let data = Failover::new(members, runtime.runtime.clone());
        let (credentials, limit) = (credentials.as_ref(), self.request_timeout);
        let client = StoreClient::new(&runtime.tasks, control, data, &layers, credentials, limit, self.limits);
        let layout: Arc<dyn Layout> = match layout {
            Some(layout) => Arc::new(Guarded::new(layout)?),
            None => Arc::new(native.clone()),
        };
        let config_layout = config_layout.unwrap_or_else(|| native.clone().into());
        let lock_layout = Arc::new(GuardedLocks::new(lock_layout.unwrap_or_else(|| Arc::new(native)))?);
        let Self { audit, serializable_first_list, probe, .. } = self;
        let settings = WatchSettings { audit, serializable_first_list, probe };
        let session = Session::new(runtime, client, &layout, lock_layout, config_layout, settings);
        if let Some(interval) = self.member_sync.filter(|_| !configured.is_empty()) {
            let client = Arc::clone(&session.client);
            session
                .lifecycle
                .tasks
                .spawn_until_stopped("member sync", member_sync::follow(client, configured, interval, set_up))?;
        }
        Ok(Etcd { session })
    }

    /// Creates the client and waits for one answer of etcd.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build); [`Error::Unavailable`] with the failed attempts if no endpoint answers;
    /// [`Error::AuthFailed`] for a wrong user or password; [`Error::Closed`] outside a tokio runtime. A role without
    /// the right to read is no error here.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn connect(self) -> Result<Etcd, Error> {
        let etcd = self.build()?;
        etcd.session.check_open()?;
        let client = &etcd.session.client;
        // The other connection will be needed soon, and is dialled concurrently. Its failure shows at its first use.
        let other = Arc::clone(client);
        etcd.session.lifecycle.tasks.spawn_until_stopped("dial", async move {
            other.answers(&KeyRange::key(*b"\0"), DIAL_TIMEOUT).await;
        })?;
        match client.get(b"\0").await {
            Ok(_) | Err(Failure::Denied) => Ok(etcd),
            Err(failure) => Err(failure.into_error("connecting")),
        }
    }

    /// Rejects timeouts, intervals and limits of zero, and pings that are too frequent.
    fn check(&self) -> Result<(), Error> {
        for (field, limit) in [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("keep_alive_timeout", self.keep_alive_timeout),
        ] {
            if limit.is_zero() {
                return Err(Error::invalid_config(field, "it must be above zero"));
            }
        }
        if self.keep_alive_interval < MIN_KEEP_ALIVE_INTERVAL {
            let reason = "it must be at least 6 s: etcd closes connections that are pinged more often than every 5 s";
            return Err(Error::invalid_config("keep_alive_interval", reason));
        }
        for (field, interval) in [
            ("audit", self.audit),
            ("probe", self.probe),
            ("member_sync", self.member_sync),
            ("serializable_first_list", self.serializable_first_list),
        ] {
            if interval.is_some_and(|interval| interval.is_zero()) {
                return Err(Error::invalid_config(field, "it must be above zero"));
            }
        }
        for (field, limit) in [("max_range_keys", self.limits.keys), ("max_range_bytes", self.limits.bytes)] {
            if limit == Some(0) {
                return Err(Error::invalid_config(field, "it must be above zero"));
            }
        }
        Ok(())
    }
}

fn members(
    endpoints: &[String],
    tls: Option<TlsFiles>,
    settings: Option<DialSettings>,
    connect_timeout: Duration,
    set_up: impl Fn(Endpoint) -> Endpoint,
) -> Result<Members, Error> {
    if endpoints.is_empty() {
        return Err(Error::invalid_config("endpoints", "at least one is needed"));
    }
    let options = if tls.is_some() { Tls::Configured } else { Tls::Absent };
    let (mut urls, mut secure) = (Vec::new(), 0);
    for endpoint in endpoints {
        let url = endpoint_url(endpoint, options)?;
        secure += usize::from(url.starts_with("https"));
        let url = Endpoint::from_shared(url)
            .map_err(|error| Error::invalid_config("endpoints", format!("{endpoint:?}: {error}")))?;
        urls.push(set_up(url));
    }
    if secure != 0 && secure != endpoints.len() {
        return Err(Error::invalid_config("endpoints", "http and https do not mix"));
    }
    let tls = if secure > 0 { Some(tls::for_https(tls)?) } else { None };
    Ok(Members::Urls { urls, tls, settings, connect_timeout })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SessionRuntime;

    fn refused(builder: EtcdBuilder) -> String {
        builder.build().unwrap_err().to_string()
    }

    #[test]
    fn bad_options_are_refused_by_name_before_anything_is_dialled() {
        for (builder, says) in [
            (Etcd::builder(Vec::<String>::new()), "at least one"),
            (Etcd::builder(["127.0.0.1:etcd"]), "http://host:port"),
            (Etcd::builder(["https://h:1", "h:2"]), "do not mix"),
            (Etcd::builder(["http://"]), "http://host:port"),
            (Etcd::builder(["ftp://h:1"]), "http://host:port"),
            (Etcd::builder(["http://h:1", "https://h:2"]), "do not mix"),
            (Etcd::builder(["http://h:1"]).prefix("/"), "prefix"),
            (Etcd::builder(["http://h:1"]).request_timeout(Duration::ZERO), "request_timeout"),
            (Etcd::builder(["http://h:1"]).keep_alive_interval(Duration::from_secs(5)), "keep_alive_interval"),
            (Etcd::builder(["http://h:1"]).keep_alive_timeout(Duration::ZERO), "keep_alive_timeout"),
            (Etcd::builder(["http://h:1"]).audit(Some(Duration::ZERO)), "audit"),
            (Etcd::builder(["http://h:1"]).probe(Some(Duration::ZERO)), "probe"),
            (Etcd::builder(["http://h:1"]).member_sync(Some(Duration::ZERO)), "member_sync"),
            (Etcd::builder(["http://h:1"]).serializable_first_list(Some(Duration::ZERO)), "serializable_first_list"),
            (Etcd::builder(["http://h:1"]).max_range_keys(Some(0)), "max_range_keys"),
            (Etcd::builder(["http://h:1"]).max_range_bytes(Some(0)), "max_range_bytes"),
            (Etcd::builder(["http://h:1"]).runtime(SessionRuntime::Caller), "runtime"),
        ] {
            let error = refused(builder);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn an_endpoint_needs_no_scheme() {
        Etcd::builder(["127.0.0.1:2379", "etcd", "http://h:1"]).build().unwrap();
    }

    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))]
    #[test]
    fn tls_options_mean_https_endpoints() {
        let with_authority = |endpoints: &[&str]| Etcd::builder(endpoints.iter().copied()).ca_certificate("ca.pem");
        with_authority(&["127.0.0.1:2379", "::1", "https://h:1"]).build().unwrap();
        assert!(refused(with_authority(&["http://h:1"])).contains("https"));
    }

    #[test]
    fn outside_a_runtime_it_refuses_instead_of_panicking() {
        let connecting = std::pin::pin!(Etcd::connect("http://127.0.0.1:9"));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let refused = Future::poll(connecting, &mut context);
        assert!(matches!(refused, std::task::Poll::Ready(Err(Error::Closed))), "{refused:?}");
    }

    #[test]
    fn secrets_do_not_show() {
        let builder = Etcd::builder(["http://h:1"]).user("root", "hunter2".to_owned());
        assert!(!format!("{builder:?}").contains("hunter2"));
        let etcd = builder.build().unwrap();
        assert!(!format!("{etcd:?}{:?}", etcd.session).contains("hunter2"));
        let in_url = refused(Etcd::builder(["http://root:hunter2@h:1"]));
        assert!(in_url.contains("as options") && !in_url.contains("hunter2"), "{in_url}");
    }

    #[test]
    fn the_environment_is_read_in_pairs() {
        let from = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            EtcdBuilder::from_variables(move |name| {
                pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
            })
        };
        let both = from(&[("ENLIST_ENDPOINTS", "http://a:1, http://b:2"), ("ENLIST_PREFIX", "p")]).unwrap();
        assert_eq!((both.endpoints.len(), both.prefix.as_deref()), (2, Some("p")));
        assert!(from(&[("ENLIST_USER", "u")]).is_err());
        assert!(from(&[("ENLIST_CERT", "c")]).is_err());
        assert!(from(&[("ENLIST_USER", "u"), ("ENLIST_PASSWORD_FILE", "/nowhere")]).is_err());
    }
}
