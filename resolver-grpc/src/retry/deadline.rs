//! The deadline of a call: the `grpc-timeout` header, over all attempts and waits, to the end of the response.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use enlist::Moment;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Sleep, sleep, timeout};

use crate::retry::status::value;

/// The header and its format are those of the gRPC protocol
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>): at most eight digits and a unit.
pub(crate) const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Largest number that the header can hold.
const MAX_NUMBER: u128 = 99_999_999;

/// Maximum duration of a call, from its beginning; `None` for none. Without one, no clock is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<(Moment, Duration)>);

impl Deadline {
    /// The deadline of a call that begins now.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let limit = value(headers, &TIMEOUT).and_then(|value| value.to_str().ok()).and_then(read);
        Self(limit.map(|limit| (Moment::now(), limit)))
    }

    /// The sooner of two deadlines.
    pub(crate) fn sooner(self, other: Self) -> Self {
        match (self.remaining(), other.remaining()) {
            (Some(left), Some(others)) if left <= others => self,
            (Some(_), None) => self,
            (_, _) => other,
        }
    }

    /// Remaining time; `None` if there is no deadline.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.0.map(|(begun, limit)| begun.remaining(limit))
    }

    /// Returns `true` if there is time for a wait.
    pub(crate) fn allows(&self, wait: Duration) -> bool {
        self.remaining().is_none_or(|left| left > wait)
    }

    /// Returns `true` once it has passed.
    pub(crate) fn is_past(&self) -> bool {
        !self.allows(Duration::ZERO)
    }

    /// Waits for `wait`. Returns `None` if the deadline is sooner.
    pub(crate) async fn bound<F: Future>(&self, wait: F) -> Option<F::Output> {
        match self.remaining() {
            None => Some(wait.await),
            Some(left) => timeout(left, wait).await.ok(),
        }
    }

    /// A wait for the deadline.
    pub(crate) fn expiry(&self) -> Expiry {
        Expiry(self.remaining().map(|left| Box::pin(sleep(left))))
    }

    /// Sets the header to the remaining time.
    pub(crate) fn set_header(&self, headers: &mut HeaderMap) {
        if let Some(left) = self.remaining() {
            headers.insert(TIMEOUT, write(left));
        }
    }
}

/// A wait for a deadline. Without a deadline it never ends.
#[derive(Debug, Default)]
pub(crate) struct Expiry(Option<Pin<Box<Sleep>>>);

impl Expiry {
    /// Ready once the deadline has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().map_or(Poll::Pending, |sleep| sleep.as_mut().poll(cx))
    }
}

fn read(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|number| u128::from(*number) <= MAX_NUMBER)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn write(left: Duration) -> HeaderValue {
    let finest =
        [(left.as_micros(), 'u'), (left.as_millis(), 'm')].into_iter().find(|(number, _)| *number <= MAX_NUMBER);
    let (number, unit) = finest.unwrap_or((u128::from(left.as_secs()).min(MAX_NUMBER), 'S'));
    // Digits and a letter.
    HeaderValue::try_from(format!("{number}{unit}")).unwrap_or(HeaderValue::from_static("0u"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Deadline = Deadline(None);

    fn within(timeout: &'static str) -> Deadline {
        Deadline::of(&HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static(timeout))]))
    }

    /// Returns the hours that remain, rounded: the real time of the test counts as well.
    fn hours(deadline: Deadline) -> Option<f64> {
        deadline.remaining().map(|left| (left.as_secs_f64() / 3600.0).round())
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_passes_after_its_time() {
        let (hour, deadline) = (Duration::from_secs(3600), within("2H"));
        assert_eq!(hours(deadline), Some(2.0));
        assert!(deadline.allows(hour) && !deadline.allows(2 * hour) && !deadline.is_past());
        tokio::time::advance(hour).await;
        assert!(!deadline.allows(hour) && !deadline.is_past());
        let mut headers = HeaderMap::new();
        deadline.set_header(&mut headers);
        assert_eq!(hours(Deadline::of(&headers)), Some(1.0));
        tokio::time::advance(hour).await;
        assert!(deadline.is_past() && !deadline.allows(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_deadline_every_wait_is_allowed() {
        assert!(NONE.allows(Duration::MAX) && !NONE.is_past() && NONE.remaining().is_none());
        let mut headers = HeaderMap::new();
        NONE.set_header(&mut headers);
        assert!(headers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_sooner_deadline_counts() {
        let (one, two) = (within("1H"), within("2H"));
        for sooner in [one.sooner(two), two.sooner(one), one.sooner(NONE), NONE.sooner(one)] {
            assert_eq!(hours(sooner), Some(1.0));
        }
        assert!(NONE.sooner(NONE).remaining().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_the_deadline() {
        assert_eq!(within("1H").bound(std::future::pending::<()>()).await, None);
        assert_eq!((within("1H").bound(async { 1 }).await, NONE.bound(async { 2 }).await), (Some(1), Some(2)));
    }

    #[test]
    fn the_units_of_the_protocol_are_read() {
        let seconds = |text| read(text).map(|limit| limit.as_secs_f64());
        assert_eq!(["2H", "2M", "2S", "2000m"].map(seconds), [Some(7200.0), Some(120.0), Some(2.0), Some(2.0)]);
        assert_eq!((seconds("1500000u"), seconds("500000000n")), (Some(1.5), None));
        assert_eq!(seconds("50000000n"), Some(0.05));
        assert_eq!(["", "S", "1", "-1S", "1.5S", "é"].map(seconds), [None; 6]);
    }

    #[test]
    fn a_written_timeout_is_read_again() {
        for left in
            [Duration::ZERO, Duration::from_millis(1500), Duration::from_secs(3600), Duration::from_secs(1 << 40)]
        {
            let written = write(left);
            let text = written.to_str().unwrap();
            assert!(text.len() <= 9 && read(text).is_some_and(|again| again <= left), "{left:?}: {text}");
        }
        assert_eq!(write(Duration::from_secs(3600)), "3600000m");
    }
}
