//! Optional synchronization of the member list: the advertised members are dialled, and the configured endpoints after
//! them. [`crate::client::connection::failover`] dials.

use std::{net::IpAddr, sync::Arc, time::Duration};

use enlist::{backend::jitter, with_causes};
use http::Uri;
use tonic::transport::Endpoint;

use crate::client::store_client::StoreClient;

/// Requests the member list every `interval`, with 10 % jitter, without end. `endpoint` configures a URL like the
/// configured ones.
pub(crate) async fn follow(
    client: Arc<StoreClient>,
    configured: Vec<Uri>,
    interval: Duration,
    endpoint: impl Fn(Endpoint) -> Endpoint,
) {
    let mut known = Vec::new();
    let mut refused = false;
    loop {
        match client.advertised().await {
            Ok(advertised) => {
                let members: Vec<Uri> = advertised.iter().filter_map(|url| usable(url, &configured)).collect();
                refused = false;
                if members != known {
                    tracing::info!(?members, "members of the cluster taken over");
                    let endpoints: Vec<_> = members.iter().cloned().map(|url| endpoint(url.into())).collect();
                    client.take_over(&endpoints);
                    known = members;
                }
            }
            Err(failure) => {
                // A proxy may refuse it for good.
                let error = failure.into_error("the member list");
                if std::mem::replace(&mut refused, true) {
                    tracing::debug!(cause = %with_causes(&error), "member list not read");
                } else {
                    let cause = with_causes(&error);
                    tracing::warn!(%cause, "member list not read, the endpoints stay as they are");
                }
            }
        }
        tokio::time::sleep(interval.saturating_sub(interval / 10) + jitter(interval / 5)).await;
    }
}

/// Returns the advertised URL of a member if this client can use it. It has the scheme of the configured endpoints, so
/// no connection moves from TLS to plain text. Addresses that mean another machine here are rejected: `0.0.0.0`, and
/// `localhost` unless a configured endpoint is local.
fn usable(advertised: &str, configured: &[Uri]) -> Option<Uri> {
    let url: Uri = advertised.parse().ok()?;
    let scheme = configured.first()?.scheme();
    let local = configured.iter().any(is_loopback);
    let fits = url.scheme() == scheme && !is_unspecified(&url) && (local || !is_loopback(&url));
    fits.then_some(url)
}

fn address(url: &Uri) -> Option<IpAddr> {
    url.host()?.trim_matches(['[', ']']).parse().ok()
}

fn is_unspecified(url: &Uri) -> bool {
    address(url).is_some_and(|address| address.is_unspecified())
}

fn is_loopback(url: &Uri) -> bool {
    url.host() == Some("localhost") || address(url).is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_meant_for_this_client_is_taken_over() {
        for (configured, advertised, taken) in [
            ("http://etcd:2379", "http://10.0.0.1:2379", true),
            ("https://etcd:2379", "http://10.0.0.1:2379", false),
            ("http://etcd:2379", "https://10.0.0.1:2379", false),
            ("http://etcd:2379", "http://0.0.0.0:2379", false),
            ("http://etcd:2379", "http://[::]:2379", false),
            ("http://etcd:2379", "http://localhost:2379", false),
            ("http://etcd:2379", "http://127.0.0.1:2379", false),
            ("http://127.0.0.1:1", "http://127.0.0.1:2379", true),
            ("http://[::1]:1", "http://localhost:2379", true),
            ("http://etcd:2379", "unix:///run/etcd.sock", false),
            ("http://etcd:2379", "", false),
        ] {
            let usable = usable(advertised, &[configured.parse().unwrap()]);
            assert_eq!(usable.is_some(), taken, "{configured} {advertised}");
        }
    }
}
