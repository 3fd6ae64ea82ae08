//! A plain tonic channel with one connection at a time, to an instance that can be connected to.

use std::time::Duration;

use enlist::{Endpoint, Error, Instance, PickError, PickPolicy, ServiceView};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint as Settings};
use tower::service_fn;

use crate::{
    retry::failure::BoxError,
    subchannel::connections::{
        security::Wire,
        settings::refuse_plain_text,
        transport::{Stream, connect, tcp},
    },
};

/// Maximum wait of a dial for a service that is not known yet.
const UNKNOWN_SERVICE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum duration of connecting to one instance before the next one is tried.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// A plain tonic channel with one connection: whenever it dials, it tries the instances of `view` in random order until
/// one can be connected to. `settings` apply to that instance. Their URL only sets the authority, and its scheme
/// decides about TLS, regardless of the endpoints. Endpoints that are unix sockets are not used.
///
/// - Calls are not distributed: all go to one instance for as long as the connection lasts, also if the instance is no
///   longer listed, until the server closes the connection.
/// - After a lost connection the calls in flight fail, and the next call dials. A dial waits up to 5 s for a service
///   that is not known yet, and gives each instance 2 s.
pub fn pick_first(view: &ServiceView, settings: &Settings) -> Channel {
    let (view, dialled_with) = (view.clone(), settings.clone());
    let connector = service_fn(move |_: Uri| dial(view.clone(), dialled_with.clone()));
    settings.connect_with_connector_lazy(connector)
}

async fn dial(view: ServiceView, settings: Settings) -> Result<TokioIo<Box<dyn Stream>>, BoxError> {
    refuse_plain_text(&settings)?;
    timeout(UNKNOWN_SERVICE_TIMEOUT, view.ready()).await.map_err(|_| Error::unavailable(PickError::Unknown))??;
    let mut candidates = view.picker(PickPolicy::Random).candidates()?.to_vec();
    fastrand::shuffle(&mut candidates);
    let mut trouble: BoxError = "no instance has an endpoint that gRPC is spoken with".into();
    for endpoint in candidates.iter().filter_map(|entry| usable(entry.instance())) {
        match timeout(DIAL_TIMEOUT, connect(endpoint, tcp(&settings))).await {
            Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
            Ok(Err(error)) => trouble = error,
            Err(elapsed) => trouble = elapsed.into(),
        }
    }
    Err(trouble)
}

/// The first gRPC endpoint that is no socket.
fn usable(instance: &Instance) -> Option<&Endpoint> {
    let over_network = |endpoint: &&Endpoint| Wire::of(endpoint).is_some_and(|wire| wire != Wire::Socket);
    instance.endpoints().iter().find(over_network)
}
