//! One open watch. It requests the progress of a silent watch, because a dead peer sends nothing.
//!
//! Fragments are not requested: etcd would measure the growing message after each event, which took 26 s for the 50,000
//! keys of one revoked lease, and less than one second without. A message above the limit ends the watch, and its task
//! lists again.

use std::{sync::Arc, time::Duration};

use enlist::{Counter, Counters, backend::count};
use etcd_client::WatchResponse;
use tokio::sync::Notify;

use crate::{
    client::{
        connection::{
            dialled::Dialled,
            watch_call::{WatchCall, WatchOptions},
        },
        store_client::StoreClient,
    },
    deliberate_defects::DeliberateDefect,
    error::{Failure, classify, text_cause},
    watch::record::KeyRange,
};

/// Time without a message after which the progress of a watch is requested.
const SILENCE: Duration = Duration::from_secs(5);

/// Maximum time until the reply to that request. A healthy watch needs milliseconds.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// Maximum time after that for a reply of the member to another request, and for a late message of the watch.
const ANSWER: Duration = Duration::from_secs(2);

/// End of an open watch.
#[derive(Debug)]
pub(crate) enum StreamEnd {
    /// The stream ended or broke.
    Broken(Failure),
    /// The watch gives no sign of life. Its member may still answer other requests.
    Silent { member_answers: bool },
}

impl StreamEnd {
    /// Converts the end into the failure of a request.
    pub(crate) fn into_failure(self) -> Failure {
        match self {
            Self::Broken(failure) => failure,
            Self::Silent { .. } => Failure::Lost(text_cause("the watch is silent")),
        }
    }
}

/// Open watch of a range.
#[derive(Debug)]
pub(crate) struct OpenWatch {
    call: WatchCall,
    connection: Dialled,
    /// Signal to request the progress of the watch.
    progress: Arc<Notify>,
}

impl OpenWatch {
    /// Opens a watch of `range` with `options`.
    pub(crate) async fn open(client: &StoreClient, range: &KeyRange, options: WatchOptions) -> Result<Self, Failure> {
        let (call, connection) = client.data.watch(range, options).await?;
        Ok(Self { call, connection, progress: Arc::default() })
    }

    /// Returns its connection.
    pub(crate) fn connection(&self) -> &Dialled {
        &self.connection
    }

    /// Returns the signal that requests the progress of the watch while [`next`](Self::next) waits.
    pub(crate) fn progress(&self) -> Arc<Notify> {
        Arc::clone(&self.progress)
    }

    /// Waits for the next message, and checks a silent watch.
    ///
    /// Dropping the future loses no message, but the time of the silence starts over.
    pub(crate) async fn next(
        &mut self,
        client: &StoreClient,
        counters: &Counters,
        range: &KeyRange,
    ) -> Result<WatchResponse, StreamEnd> {
        if DeliberateDefect::SilenceTolerated.is_on() {
            return self.message().await;
        }
        if let Ok(heard) = tokio::time::timeout(SILENCE, self.message()).await {
            return heard;
        }
        count(counters, Counter::WatchChecks);
        self.call.request_progress();
        if let Ok(heard) = tokio::time::timeout(SIGN_OF_LIFE, self.message()).await {
            return heard;
        }
        let mut asking = std::pin::pin!(client.answers(range, ANSWER));
        let mut limit = std::pin::pin!(tokio::time::sleep(ANSWER));
        let mut answer = None;
        loop {
            tokio::select! {
                // After a busy period, a message and the end of the limit are ready at once. The message takes
                // precedence.
                biased;
                heard = self.message() => return heard,
                answers = &mut asking, if answer.is_none() => answer = Some(answers),
                () = &mut limit => return Err(StreamEnd::Silent { member_answers: answer == Some(true) }),
            }
        }
    }

    /// Waits for the next message, without a limit.
    ///
    /// Dropping the future loses no message.
    pub(crate) async fn message(&mut self) -> Result<WatchResponse, StreamEnd> {
        let broken = |failure| Err(StreamEnd::Broken(failure));
        loop {
            tokio::select! {
                read = self.call.message() => return match read {
                    Ok(Some(message)) => Ok(message),
                    Ok(None) => broken(Failure::Lost(text_cause("the watch ended"))),
                    Err(status) => broken(classify(&status.into())),
                },
                () = self.connection.given_up() => {
                    return broken(Failure::Lost(text_cause("the connection of the watch was given up")));
                }
                () = self.progress.notified() => self.call.request_progress(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// The task of the watch did not poll it for as long as its limit.
    #[tokio::test(start_paused = true)]
    async fn a_message_that_waits_comes_before_the_limit() {
        // Without a fixed order, each attempt would fail with a probability of one half.
        for _ in 0..20 {
            let (fake, etcd) = testing::session();
            let (client, counters, range) = (&etcd.session.client, Counters::default(), KeyRange::key("k"));
            let mut watch = OpenWatch::open(client, &range, WatchOptions::default()).await.unwrap();
            assert!(watch.message().await.unwrap().created());
            fake.freeze();
            let mut next = std::pin::pin!(watch.next(client, &counters, &range));
            assert!(tokio::time::timeout(SILENCE + SIGN_OF_LIFE + ANSWER / 2, &mut next).await.is_err());
            fake.thaw();
            tokio::time::sleep(ANSWER).await;
            assert!(next.await.is_ok(), "the member has answered");
        }
    }
}
