//! Examination of each endpoint by itself: connection, and answer of etcd.

use std::{io, time::Duration};

use enlist::Error;
use etcd_client::{Client, ConnectOptions, GetOptions};
use secrecy::ExposeSecret;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{finding::EndpointFault, reply::Reply, tls_options::TlsOptions};
use crate::{
    client::connection::{
        request_channel::Credentials,
        tls::{self, TlsFiles},
    },
    error::answers::{self, Answer, answer},
};

/// Key of the read that every member answers by itself, also one without a leader. Its answer shows the acceptance of
/// the user.
pub(super) const KEY: &str = "\0";

/// Default ports of URLs.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Answer of etcd to a user.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Accepted<C = Client, E = etcd_client::Error> {
    /// It accepts the user of this client.
    Yes(C),
    /// It refuses the user, for this reason.
    No(E),
}

/// Absence of an answer of etcd.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) fault: EndpointFault,
    pub(super) cause: String,
}

impl Unanswered {
    fn silent(limit: Duration) -> Self {
        Self { fault: EndpointFault::Silent, cause: format!("no answer within {limit:?}") }
    }

    fn failed(error: &io::Error) -> Self {
        let cause = error.to_string();
        Self { fault: answers::dial_fault(&cause), cause }
    }

    fn by_its_own_data(cause: String) -> Self {
        Self { fault: EndpointFault::NotServing, cause }
    }
}

/// Options of the requests to endpoints.
pub(super) struct Asking {
    limit: Duration,
    tls: TlsOptions,
    credentials: Option<Credentials>,
}

impl Asking {
    /// Reads the TLS files.
    pub(super) async fn new(
        files: Option<TlsFiles>,
        credentials: Option<Credentials>,
        limit: Duration,
    ) -> Result<Self, Error> {
        let tls = TlsOptions::read(files).await?;
        Ok(Self { limit, tls, credentials })
    }

    /// Returns the answer of etcd at an endpoint, or the reason for its absence.
    pub(super) async fn probe(&self, url: &str) -> Result<Accepted, Unanswered> {
        let address = authority(url);
        self.dial(&address).await?;
        let cause = match self.ask(url, self.credentials.as_ref()).await {
            Reply::Success(client) => return self.served(client).await,
            Reply::Failure(error) => match answer(&error) {
                Answer::NotEtcd => answers::text(&error),
                Answer::Other => return Err(Unanswered::by_its_own_data(answers::text(&error))),
                Answer::Refusal(_) | Answer::Denied => return Ok(Accepted::No(error)),
            },
            Reply::Silence => return Err(Unanswered::silent(self.limit)),
        };
        if url.starts_with("https://") {
            return Err(Unanswered { fault: self.tls_fault(&address, &cause).await, cause });
        }
        if !tls::AVAILABLE {
            let cause = format!("{cause}; the other end may speak TLS: {}", tls::NEEDS_FEATURE);
            return Err(Unanswered { fault: EndpointFault::NotEtcd, cause });
        }
        let over_tls = match self.ask(&format!("https://{address}"), self.credentials.as_ref()).await {
            Reply::Success(_) => Ok(()),
            Reply::Failure(error) => Err(answers::text(&error)),
            Reply::Silence => Err("no answer".to_owned()),
        };
        Err(Unanswered { fault: answers::plain_fault(over_tls), cause })
    }

    /// Resolves the host and opens a connection, each within the limit.
    async fn dial(&self, address: &str) -> Result<(), Unanswered> {
        let addresses: Vec<_> = resolved(lookup_host(address), self.limit).await?.collect();
        let connected = timeout(self.limit, TcpStream::connect(&addresses[..])).await;
        connected.map_err(|_| Unanswered::silent(self.limit))?.map(drop).map_err(|error| Unanswered::failed(&error))
    }

    /// Returns the fault of a failed request over TLS.
    ///
    /// A connection is reset by a server that refuses the client's certificate, and by one that was sent a handshake
    /// and speaks no TLS. An answer without TLS tells them apart.
    async fn tls_fault(&self, address: &str, cause: &str) -> EndpointFault {
        let fault = answers::tls_fault(cause);
        if fault != EndpointFault::ClosedAfterHandshake || !answers::is_reset(cause) {
            return fault;
        }
        // Without the password, which must not be sent in clear text.
        match self.ask(&format!("http://{address}"), None).await {
            Reply::Success(_) => EndpointFault::NoTls,
            Reply::Failure(error) if answer(&error) != Answer::NotEtcd => EndpointFault::NoTls,
            Reply::Failure(_) | Reply::Silence => fault,
        }
    }

    /// Sends a read that needs the other members to a member that answers by itself.
    async fn served(&self, mut client: Client) -> Result<Accepted, Unanswered> {
        let read = GetOptions::new().with_count_only();
        let cause = match Reply::within(self.limit, client.get(KEY, Some(read))).await {
            Reply::Success(_) => return Ok(Accepted::Yes(client)),
            Reply::Failure(error) => match answer(&error) {
                Answer::Denied => return Ok(Accepted::Yes(client)),
                Answer::Refusal(_) => return Ok(Accepted::No(error)),
                Answer::Other | Answer::NotEtcd => answers::text(&error),
            },
            Reply::Silence => format!("no answer within {:?}", self.limit),
        };
        Err(Unanswered::by_its_own_data(cause))
    }

    /// Connects to one endpoint and reads. A refusal to read that key is an answer of etcd to a user that it accepts.
    async fn ask(&self, url: &str, credentials: Option<&Credentials>) -> Reply<Client> {
        let mut options = ConnectOptions::new().with_connect_timeout(self.limit).with_timeout(self.limit);
        if url.starts_with("https://") {
            options = self.tls.apply(options);
        }
        if let Some(Credentials { user, password }) = credentials {
            options = options.with_user(user, password.expose_secret());
        }
        let asking = async {
            let mut client = Client::connect([url], Some(options)).await?;
            let read = GetOptions::new().with_count_only().with_serializable();
            match client.get(KEY, Some(read)).await {
                Err(error) if [Answer::Denied, Answer::Other].contains(&answer(&error)) => Ok(client),
                asked => asked.map(|_| client),
            }
        };
        Reply::within(self.limit, asking).await
    }
}

/// Returns `host:port` of a URL.
fn authority(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let port = if scheme == "https" { HTTPS_PORT } else { HTTP_PORT };
    let host = rest.split('/').next().unwrap_or_default();
    if host.ends_with(']') || !host.contains(':') { format!("{host}:{port}") } else { host.to_owned() }
}

/// Returns the addresses that a lookup finds within `limit`.
async fn resolved<A>(lookup: impl Future<Output = io::Result<A>>, limit: Duration) -> Result<A, Unanswered> {
    let late = |_| Unanswered {
        fault: EndpointFault::UnknownHost,
        cause: format!("the name was not resolved within {limit:?}"),
    };
    timeout(limit, lookup).await.map_err(late)?.map_err(|error| Unanswered::failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_name_server_is_an_unknown_host() {
        let unanswered = resolved(std::future::pending::<io::Result<()>>(), Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(unanswered.fault, EndpointFault::UnknownHost);
        assert_eq!(unanswered.cause, "the name was not resolved within 1s");
    }

    #[test]
    fn a_url_leads_to_a_host_and_a_port() {
        for (url, expected) in [
            ("http://etcd:2379/", "etcd:2379"),
            ("https://etcd", "etcd:443"),
            ("http://[::1]", "[::1]:80"),
            ("http://[::1]:2379", "[::1]:2379"),
        ] {
            assert_eq!(authority(url), expected);
        }
    }
}
