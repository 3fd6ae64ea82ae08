//! Classification of errors from below tonic's channel: the progress of the call, and the status for the caller.

use std::{any::Any, error::Error as StdError};

use h2::Reason;
use tonic::{Code, ConnectError, Status, TimeoutExpired};

/// Any error: of settings, of a connector, or of the transport.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Progress of a call that ended without a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It provably was not sent.
    NeverSent,
    /// It was sent, and the server reported that it did not process it.
    Refused,
    /// It was sent, and its outcome is unknown.
    Unknown,
    /// Its deadline passed.
    OutOfTime,
}

/// Facts about an attempt that its call knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempted {
    /// A part of its request was read, so there was a stream for it.
    pub(crate) is_begun: bool,
    /// Its deadline has passed.
    pub(crate) is_late: bool,
}

/// A call that ended without a response.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reach: Reach,
    pub(crate) status: Status,
    /// The connection cannot be used any more.
    pub(crate) broken: bool,
}

impl Failure {
    /// Classifies `error` of a call to `instance`.
    pub(crate) fn of(error: BoxError, instance: &str, attempted: Attempted) -> Self {
        let reach = reach(&*error, attempted);
        Self::reaching(reach, error, instance)
    }

    /// A call to `instance` whose deadline passed before a response.
    pub(crate) fn late(instance: &str) -> Self {
        Self { reach: Reach::OutOfTime, status: late(instance), broken: false }
    }

    /// A call that the connection did not accept.
    pub(crate) fn not_taken(error: BoxError, instance: &str) -> Self {
        Self::reaching(Reach::NeverSent, error, instance)
    }

    fn reaching(reach: Reach, error: BoxError, instance: &str) -> Self {
        let (reset, cause) = (reset(&*error), innermost(&*error));
        let broken = reach != Reach::OutOfTime && reset.is_none();
        let status = match (reach, reset) {
            (Reach::OutOfTime, _) => late(instance),
            (Reach::NeverSent, _) => Status::unavailable(format!("instance {instance} could not be reached: {cause}")),
            (Reach::Refused, _) => Status::unavailable(format!("instance {instance} refused the call: {cause}")),
            (Reach::Unknown, Some(reason)) => {
                Status::new(reset_code(reason), format!("the call to instance {instance} was reset: {cause}"))
            }
            (Reach::Unknown, None) => {
                Status::unavailable(format!("the connection to instance {instance} was lost during the call: {cause}"))
            }
        };
        Self { reach, status: with_source(status, error), broken }
    }
}

/// The status of a response of `instance` that broke off with `status`, by its HTTP/2 error.
pub(crate) fn broken_off(status: Status, instance: &str) -> Status {
    let is_transport = |error: &(dyn StdError + 'static)| error.is::<hyper::Error>() || error.is::<h2::Error>();
    if chain(&status).any(is_transport) {
        return Failure::of(status.into(), instance, Attempted { is_begun: true, is_late: false }).status;
    }
    status
}

/// Returns `true` if hyper refused the request itself: nothing was sent, and the connection takes other requests.
pub(crate) fn is_invalid_request(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(|error| error.downcast_ref().is_some_and(hyper::Error::is_user))
}

/// The status of a call to `instance` whose deadline passed.
pub(crate) fn late(instance: &str) -> Status {
    Status::deadline_exceeded(format!("instance {instance} did not answer in time"))
}

/// The error for a panic in the user's code for `what`.
pub(crate) fn panicked(what: &str, panic: &(dyn Any + Send)) -> BoxError {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the {what} panicked: {}", text.unwrap_or("without a message")).into()
}

fn with_source(mut status: Status, error: BoxError) -> Status {
    status.set_source(std::sync::Arc::from(error));
    status
}

/// The chain of sources, outermost first.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map_or_else(String::new, ToString::to_string)
}

fn reach(error: &(dyn StdError + 'static), attempted: Attempted) -> Reach {
    // Both sides cancel a late call, and either one may be first.
    if attempted.is_late && reset(error) == Some(Reason::CANCEL) {
        return Reach::OutOfTime;
    }
    for error in chain(error) {
        if error.is::<TimeoutExpired>() {
            return Reach::OutOfTime;
        }
        if error.is::<ConnectError>() || error.downcast_ref().is_some_and(hyper::Error::is_canceled) {
            return Reach::NeverSent;
        }
        if error.downcast_ref().is_some_and(|error| is_refusal(error, attempted)) {
            return Reach::Refused;
        }
    }
    Reach::Unknown
}

/// RFC 9113: a stream above the last one that a GOAWAY names was not processed, whatever its code (section 6.8), nor
/// was one that is reset with `REFUSED_STREAM` (section 8.7). `h2` fails a stream with the GOAWAY itself only if it is
/// such a stream. But hyper also fails a call with the GOAWAY of the connection if it arrives while hyper passes the
/// call to h2: then nothing of its body was read, and its head may have been sent.
fn is_refusal(error: &h2::Error, attempted: Attempted) -> bool {
    let is_gone = error.is_go_away() && attempted.is_begun;
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (is_gone || is_refused)
}

/// The reason with which the stream was reset, which is no evidence about the connection.
fn reset(error: &(dyn StdError + 'static)) -> Option<Reason> {
    let mut resets =
        chain(error).filter_map(|error| error.downcast_ref()).filter(|error: &&h2::Error| error.is_reset());
    resets.find_map(h2::Error::reason)
}

/// The code of a stream that was reset with `reason`
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#errors>). Those that the specification leaves out
/// are `INTERNAL`, as in grpc-go.
fn reset_code(reason: Reason) -> Code {
    match reason {
        Reason::REFUSED_STREAM => Code::Unavailable,
        Reason::CANCEL => Code::Cancelled,
        Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fmt, future::poll_fn, io};

    const LEFT: Attempted = Attempted { is_begun: false, is_late: false };

    /// An error around another one, as each layer adds.
    #[derive(Debug)]
    struct Layer(BoxError);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("layer")
        }
    }

    impl StdError for Layer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&*self.0)
        }
    }

    #[test]
    fn errors_have_their_reach_with_a_code() {
        let cases: [(BoxError, Reach, Code); 4] = [
            (Box::new(ConnectError("refused".into())), Reach::NeverSent, Code::Unavailable),
            (Box::new(h2::Error::from(Reason::REFUSED_STREAM)), Reach::Unknown, Code::Unavailable),
            (Box::new(io::Error::from(io::ErrorKind::BrokenPipe)), Reach::Unknown, Code::Unavailable),
            (Box::new(TimeoutExpired(())), Reach::OutOfTime, Code::DeadlineExceeded),
        ];
        for (error, reach, code) in cases {
            let shown = format!("{error:?}");
            let failure = Failure::of(Box::new(Layer(error)), "a", LEFT);
            assert_eq!((failure.reach, failure.status.code()), (reach, code), "{shown}");
        }
    }

    #[test]
    fn a_status_has_the_innermost_cause() {
        let failure = Failure::not_taken(Box::new(Layer("no room".into())), "a");
        assert_eq!(failure.status.message(), "instance a could not be reached: no room");
    }

    /// Returns the error that the client gets while the server runs.
    async fn error_of(client: impl Future<Output = h2::Error>, server: impl Future<Output = ()>) -> h2::Error {
        tokio::select! {
            error = client => error,
            () = server => panic!("the server has stopped"),
        }
    }

    /// Returns the error of a request whose stream the server resets.
    async fn reset_by_server(reason: Reason) -> h2::Error {
        let (client, server) = tokio::io::duplex(1 << 16);
        let server = async {
            let mut server = h2::server::handshake(server).await.unwrap();
            while let Some(accepted) = server.accept().await {
                accepted.unwrap().1.send_reset(reason);
            }
        };
        let client = async {
            let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
            let request = http::Request::post("http://a/").body(()).unwrap();
            let (response, _stream) = requests.send_request(request, false).unwrap();
            tokio::select! {
                response = response => response.unwrap_err(),
                ended = connection => panic!("the connection ended: {ended:?}"),
            }
        };
        error_of(client, server).await
    }

    #[tokio::test]
    async fn only_other_errors_than_resets_break_the_connection() {
        let cases: [(BoxError, bool); 3] = [
            (Box::new(reset_by_server(Reason::INTERNAL_ERROR).await), false),
            (Box::new(io::Error::from(io::ErrorKind::BrokenPipe)), true),
            (Box::new(TimeoutExpired(())), false),
        ];
        for (error, broken) in cases {
            let shown = format!("{error:?}");
            assert_eq!(Failure::of(Box::new(Layer(error)), "a", LEFT).broken, broken, "{shown}");
        }
    }

    /// Both sides cancel a call at its deadline.
    #[tokio::test]
    async fn a_cancelled_call_is_late_only_after_its_deadline() {
        let late = Attempted { is_late: true, ..LEFT };
        let of = async |reason: Reason, attempted| {
            Failure::of(Box::new(Layer(reset_by_server(reason).await.into())), "a", attempted)
        };
        assert_eq!(of(Reason::CANCEL, late).await.reach, Reach::OutOfTime);
        assert_eq!(of(Reason::INTERNAL_ERROR, late).await.reach, Reach::Unknown);
        let failure = of(Reason::CANCEL, LEFT).await;
        assert_eq!((failure.reach, failure.status.code()), (Reach::Unknown, Code::Cancelled));
    }

    #[tokio::test]
    async fn a_response_that_breaks_off_has_the_code_of_its_reset() {
        let reset = reset_by_server(Reason::ENHANCE_YOUR_CALM).await;
        let status = broken_off(with_source(Status::unknown("h2"), Box::new(reset)), "a");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("instance a was reset"), "{status}");
    }

    #[tokio::test]
    async fn only_a_refused_stream_was_not_processed() {
        for (reason, reach) in [(Reason::REFUSED_STREAM, Reach::Refused), (Reason::CANCEL, Reach::Unknown)] {
            let error = reset_by_server(reason).await;
            assert!(error.is_remote() && error.is_reset(), "{error:?}");
            assert_eq!(Failure::of(Box::new(error), "a", LEFT).reach, reach, "{reason:?}");
        }
    }

    #[test]
    fn resets_have_the_codes_of_the_specification() {
        let internal = [
            Reason::NO_ERROR,
            Reason::PROTOCOL_ERROR,
            Reason::INTERNAL_ERROR,
            Reason::FLOW_CONTROL_ERROR,
            Reason::SETTINGS_TIMEOUT,
            Reason::FRAME_SIZE_ERROR,
            Reason::COMPRESSION_ERROR,
            Reason::CONNECT_ERROR,
        ];
        assert_eq!(internal.map(reset_code), [Code::Internal; 8]);
        let others = [Reason::REFUSED_STREAM, Reason::CANCEL, Reason::ENHANCE_YOUR_CALM, Reason::INADEQUATE_SECURITY];
        let codes = [Code::Unavailable, Code::Cancelled, Code::ResourceExhausted, Code::PermissionDenied];
        assert_eq!(others.map(reset_code), codes);
    }

    #[test]
    fn a_status_of_the_server_is_kept() {
        let status = broken_off(Status::data_loss("by the server"), "a");
        assert_eq!((status.code(), status.message()), (Code::DataLoss, "by the server"));
    }

    /// The error of a connection whose server is stopping, after it has accepted the one request there was.
    async fn goaway() -> h2::Error {
        let (client, server) = tokio::io::duplex(1 << 16);
        let server = async {
            let mut server = h2::server::handshake(server).await.unwrap();
            let accepted = server.accept().await.unwrap().unwrap();
            server.graceful_shutdown();
            // The connection stays as long as the first request is held.
            while server.accept().await.is_some() {}
            drop(accepted);
        };
        let client = async {
            let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
            let send = async {
                let request = http::Request::post("http://a/").body(()).unwrap();
                let _sent = requests.send_request(request, false).unwrap();
                loop {
                    if let Err(error) = poll_fn(|cx| requests.poll_ready(cx)).await {
                        return error;
                    }
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                error = send => error,
                ended = connection => panic!("the connection ended: {ended:?}"),
            }
        };
        error_of(client, server).await
    }

    /// hyper asks h2 for room after it has passed on a request, and fails the request with the result: the GOAWAY of
    /// the connection, although the server has promised to process the stream.
    #[tokio::test]
    async fn a_goaway_refuses_only_begun_calls() {
        let error = goaway().await;
        assert!(error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR), "{error:?}");
        let failure = Failure::of(Box::new(error), "a", LEFT);
        assert_eq!((failure.reach, failure.status.code()), (Reach::Unknown, Code::Unavailable));
        // A call whose stream was opened and that fails with a GOAWAY is one that the server has not promised to
        // process.
        let failure = Failure::of(Box::new(goaway().await), "a", Attempted { is_begun: true, ..LEFT });
        assert_eq!((failure.reach, failure.status.code()), (Reach::Refused, Code::Unavailable));
    }
}
