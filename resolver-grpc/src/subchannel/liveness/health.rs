//! Health of an instance, by the gRPC health checking protocol
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>, client side: gRFC A17).

use std::time::Duration;

use enlist::BackoffPolicy;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::subchannel::connectivity::Health;

/// Maximum duration of opening a health stream, up to its first report.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Shortest and longest delay before a broken health stream is opened again.
const REOPEN_DELAYS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// State of the health stream of an instance.
pub(crate) struct Watch {
    client: HealthClient<Channel>,
    service: String,
    stream: Option<Streaming<HealthCheckResponse>>,
    reported: Health,
    /// The server has no health service, which counts as serving.
    unknown: bool,
}

impl Watch {
    /// Opens the stream and waits for its first report.
    pub(crate) async fn begin(channel: Channel, service: &str) -> Self {
        let client = HealthClient::new(channel);
        let mut watch =
            Self { client, service: service.to_owned(), stream: None, reported: Health::NotServing, unknown: false };
        watch.open().await;
        watch
    }

    /// The latest report.
    pub(crate) fn reported(&self) -> Health {
        self.reported
    }

    /// Returns `true` if the watch occupies a stream of the connection, now or after a retry.
    pub(crate) fn takes_a_stream(&self) -> bool {
        !self.unknown
    }

    /// Passes every change to `note`, without end.
    pub(crate) async fn follow(mut self, note: impl Fn(Health)) {
        let mut backoff = BackoffPolicy::new(REOPEN_DELAYS.0, REOPEN_DELAYS.1).unwrap_or_default().start();
        while !self.unknown {
            if self.stream.is_some() {
                self.listen().await;
                backoff.reset();
            } else {
                tokio::time::sleep(backoff.next_delay()).await;
                // Without a first report the instance stays as it was reported: not serving.
                let _ = timeout(OPEN_TIMEOUT, self.open()).await;
            }
            note(self.reported);
        }
        std::future::pending::<()>().await;
    }

    async fn open(&mut self) {
        let request = HealthCheckRequest { service: self.service.clone() };
        match self.client.watch(request).await {
            Ok(response) => {
                self.stream = Some(response.into_inner());
                self.listen().await;
            }
            Err(status) => self.broke(&status),
        }
    }

    /// Waits for the next report of the stream.
    async fn listen(&mut self) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        match stream.message().await {
            Ok(Some(response)) if response.status() == ServingStatus::Serving => self.reported = Health::Serving,
            Ok(Some(_)) => self.reported = Health::NotServing,
            Ok(None) => self.broke(&Status::unavailable("the stream ended")),
            Err(status) => self.broke(&status),
        }
    }

    fn broke(&mut self, status: &Status) {
        self.stream = None;
        self.unknown = status.code() == Code::Unimplemented;
        self.reported = if self.unknown { Health::Serving } else { Health::NotServing };
        if self.unknown {
            tracing::debug!("the instance has no health service, taken as serving");
        }
    }
}
