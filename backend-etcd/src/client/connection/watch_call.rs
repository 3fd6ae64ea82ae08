//! The call that opens a watch.
//!
//! The client library has one with a watch in it for each call: buffers of 16 KiB, and a queue for 100 requests. A
//! process that follows a thousand services has as many calls, which are idle most of the time.

use std::future::ready;

use enlist::Revision;
use etcd_client::{WatchResponse, proto::PbWatchResponse};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tonic::{
    GrpcMethod, Request, Status, Streaming,
    client::Grpc,
    codec::{BufferSettings, Codec},
};
use tonic_prost::ProstCodec;
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use crate::{
    client::{
        connection::layers::Requests,
        requests::{limits::MAX_ANSWER, response::signed},
    },
    watch::record::KeyRange,
};

/// Bytes of the two buffers of a call at first. Each grows to the size of its largest message.
const BUFFER_BYTES: usize = 512;

/// Bytes of requests after which they are sent. There are rarely two at a time.
const YIELD_BYTES: usize = 32 << 10;

/// Properties of a watch. By default it begins with the next change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WatchOptions {
    /// First revision of its events; 0: the next one.
    pub(crate) from: Revision,
    /// etcd reports the progress of the idle watch from time to time.
    pub(crate) reports_progress: bool,
    /// Only deletions are reported.
    pub(crate) only_deletions: bool,
}

/// A message to etcd (`etcdserverpb.WatchRequest`, `rpc.proto`). The client library does not export its own.
#[derive(Clone, PartialEq, prost::Message)]
struct WatchRequest {
    #[prost(oneof = "RequestKind", tags = "1, 3")]
    kind: Option<RequestKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum RequestKind {
    #[prost(message, tag = "1")]
    Create(CreateRequest),
    #[prost(message, tag = "3")]
    Progress(ProgressRequest),
}

/// `etcdserverpb.WatchCreateRequest`, without the fields that are not used.
#[derive(Clone, PartialEq, prost::Message)]
struct CreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    start_revision: i64,
    #[prost(bool, tag = "4")]
    progress_notify: bool,
    /// Kinds of events that are left out, see [`NO_PUT`].
    #[prost(int32, repeated, tag = "5")]
    filters: Vec<i32>,
}

/// `etcdserverpb.WatchProgressRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct ProgressRequest {}

/// `WatchCreateRequest.FilterType.NOPUT`.
const NO_PUT: i32 = 0;

impl CreateRequest {
    fn new(range: &KeyRange, options: WatchOptions) -> Self {
        Self {
            key: range.start.clone(),
            range_end: range.end.clone().unwrap_or_default(),
            start_revision: signed(options.from),
            progress_notify: options.reports_progress,
            filters: if options.only_deletions { vec![NO_PUT] } else { Vec::new() },
        }
    }
}

/// An open call. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct WatchCall {
    progress: mpsc::Sender<()>,
    messages: Streaming<PbWatchResponse>,
}

impl WatchCall {
    /// Opens a watch of `range`.
    pub(crate) fn open(
        requests: Requests,
        range: &KeyRange,
        options: WatchOptions,
    ) -> BoxFuture<'static, Result<Self, Status>> {
        let (progress, asked) = mpsc::channel(1);
        let create = RequestKind::Create(CreateRequest::new(range, options));
        let progress_requests = stream::unfold(asked, |mut asked| async move {
            let () = asked.recv().await?;
            Some((RequestKind::Progress(ProgressRequest {}), asked))
        });
        let kinds = stream::once(ready(create)).chain(progress_requests);
        let mut request = Request::new(kinds.map(|kind| WatchRequest { kind: Some(kind) }));
        request.extensions_mut().insert(GrpcMethod::new("etcdserverpb.Watch", "Watch"));
        let requests = BoxCloneSyncService::new(requests.map_err(Status::from_error));
        let mut grpc = Grpc::new(requests).max_decoding_message_size(MAX_ANSWER);
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let open = async move {
            grpc.ready().await?;
            let messages = grpc.streaming(request, path, SmallBuffers).await?.into_inner();
            Ok(Self { progress, messages })
        };
        open.boxed()
    }

    /// Requests the progress of the watch. etcd answers with a message.
    pub(crate) fn request_progress(&self) {
        // If there is no room, an earlier request has not been sent yet. An ended call is noticed by its messages.
        let _ = self.progress.try_send(());
    }

    /// Waits for the next message; `None` after the last one.
    ///
    /// Dropping the future loses no message.
    pub(crate) async fn message(&mut self) -> Result<Option<WatchResponse>, Status> {
        Ok(self.messages.message().await?.map(WatchResponse))
    }
}

/// Codec with [`BUFFER_BYTES`].
#[derive(Clone, Copy, Debug)]
struct SmallBuffers;

type WatchCodec = ProstCodec<WatchRequest, PbWatchResponse>;

impl Codec for SmallBuffers {
    type Encode = WatchRequest;
    type Decode = PbWatchResponse;
    type Encoder = <WatchCodec as Codec>::Encoder;
    type Decoder = <WatchCodec as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        WatchCodec::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        WatchCodec::raw_decoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::{PbWatchRequest, PbWatchRequestUnion};
    use prost::Message as _;

    use super::*;

    /// Returns a request as etcd's own definition reads it.
    fn read(kind: RequestKind) -> PbWatchRequestUnion {
        let bytes = WatchRequest { kind: Some(kind) }.encode_to_vec();
        PbWatchRequest::decode(&*bytes).unwrap().request_union.unwrap()
    }

    #[test]
    fn requests_are_those_of_etcd() {
        let created = |range: &KeyRange, options| match read(RequestKind::Create(CreateRequest::new(range, options))) {
            PbWatchRequestUnion::CreateRequest(create) => create,
            other => panic!("{other:?}"),
        };
        let all = WatchOptions { from: Revision::new(7), reports_progress: true, only_deletions: true };
        let create = created(&KeyRange::prefix("a"), all);
        assert_eq!((&*create.key, &*create.range_end), (&b"a"[..], &b"b"[..]));
        assert_eq!((create.start_revision, create.progress_notify, &*create.filters), (7, true, &[NO_PUT][..]));
        assert!(!create.prev_kv && !create.fragment && create.watch_id == 0);
        let create = created(&KeyRange::key("k"), WatchOptions::default());
        assert_eq!((&*create.key, &*create.range_end), (&b"k"[..], &b""[..]));
        assert_eq!((create.start_revision, create.progress_notify, &*create.filters), (0, false, &[][..]));
        let progress = read(RequestKind::Progress(ProgressRequest {}));
        assert!(matches!(progress, PbWatchRequestUnion::ProgressRequest(_)), "{progress:?}");
    }
}
