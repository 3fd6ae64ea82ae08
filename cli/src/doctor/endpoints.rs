//! Each endpoint by itself: can it be reached, and does etcd answer there.

use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};
use tokio::{net::TcpStream, time::error::Elapsed};

use super::{
    Report, Status,
    causes::{self, Cause, Meaning, meaning},
};
use crate::{args::Global, connect::authority, output::Failure};

/// A read that every member answers by itself, also one without a leader, and that tells whether the user is accepted.
const KEY: &str = "\0";

/// What etcd answers: it accepts the user, or does not.
pub(super) type Answer = Result<Client, etcd_client::Error>;

/// An endpoint at which etcd answers.
pub(super) struct Found {
    pub(super) url: String,
    pub(super) answer: Answer,
}

/// Asks each endpoint, and reports on it. Returns those at which etcd answers.
pub(super) async fn examine(global: &Global, report: &mut Report) -> Result<Vec<Found>, Failure> {
    let asking = Asking::new(global)?;
    let mut found = Vec::new();
    for url in global.urls()? {
        match asking.probe(&url).await {
            Ok(answer) => {
                report.tell("endpoint", Status::Ok, &format!("{url} answers"), "")?;
                found.push(Found { url, answer });
            }
            Err(Cause { detail, advice }) => {
                report.tell("endpoint", Status::Failed, &format!("{url}: {detail}"), advice)?;
            }
        }
    }
    Ok(found)
}

/// How endpoints are asked.
struct Asking {
    limit: Duration,
    tls: TlsOptions,
    credentials: Option<(String, String)>,
}

impl Asking {
    fn new(global: &Global) -> Result<Self, Failure> {
        let mut tls = TlsOptions::new();
        if let Some(path) = &global.cacert {
            tls = tls.ca_certificate(Certificate::from_pem(pem(path)?));
        }
        if let (Some(cert), Some(key)) = (&global.cert, &global.key) {
            tls = tls.identity(Identity::from_pem(pem(cert)?, pem(key)?));
        }
        Ok(Self { limit: global.timeout, tls, credentials: global.credentials()? })
    }

    /// Returns the answer of etcd at an endpoint, or the cause of there being none.
    async fn probe(&self, url: &str) -> Result<Answer, Cause> {
        let address = authority(url);
        let silence = |_| causes::of_silence(self.limit);
        let dialled = tokio::time::timeout(self.limit, TcpStream::connect(&address)).await;
        dialled.map_err(silence)?.map_err(|error| causes::of_dialling(&error.to_string()))?;
        let answer = self.ask(url).await.map_err(silence)?;
        let text = match &answer {
            Err(error) if meaning(error) == Meaning::NotReached => causes::text(error),
            _ => return Ok(answer),
        };
        if url.starts_with("https://") {
            return Err(causes::of_tls(&text));
        }
        let over_tls = match self.ask(&format!("https://{address}")).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(causes::text(&error)),
            Err(_) => Err("no answer".to_owned()),
        };
        Err(causes::of_plain(&text, over_tls))
    }

    /// Connects to one endpoint and reads. A refusal to read that key is an answer of etcd's to a user that it accepts.
    async fn ask(&self, url: &str) -> Result<Answer, Elapsed> {
        let mut options = ConnectOptions::new().with_connect_timeout(self.limit).with_timeout(self.limit);
        if url.starts_with("https://") {
            options = options.with_tls(self.tls.clone());
        }
        if let Some((user, password)) = &self.credentials {
            options = options.with_user(user, password);
        }
        let asking = async {
            let mut client = Client::connect([url], Some(options)).await?;
            let read = GetOptions::new().with_count_only().with_serializable();
            match client.get(KEY, Some(read)).await {
                Err(error) if [Meaning::Denied, Meaning::Answered].contains(&meaning(&error)) => Ok(client),
                asked => asked.map(|_| client),
            }
        };
        tokio::time::timeout(self.limit, asking).await
    }
}

fn pem(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))
}
