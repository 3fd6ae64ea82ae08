//! xDS for gRPC clients and Envoy. Each stream has a task ([`client_stream`]), whose decisions are in its state
//! ([`stream`]): what the client subscribes to, has, and is to receive. Listeners, routes and clusters depend on names
//! only ([`resources`]); assignments follow the views of the services, are encoded once, and are shared between streams
//! ([`shared`]). Begin with `resource.rs` and `stream.rs`.

mod assignment;
mod client_stream;
mod clients;
mod delivery;
mod envoy;
mod inbox;
mod name_budget;
mod options;
mod requests;
mod resource;
mod resources;
mod responses;
mod server;
mod service;
mod shared;
mod status;
mod stream;
mod subscription;
mod target;

pub use self::{
    assignment::Omission,
    clients::{XdsClient, XdsRejection, XdsTotals},
    envoy::EnvoyListener,
    options::{
        DEFAULT_XDS_CONNECT_TIMEOUT, DEFAULT_XDS_NAMES, DEFAULT_XDS_PORT, DEFAULT_XDS_SERVICES, DEFAULT_XDS_SETTLE,
        DEFAULT_XDS_STREAMS, XdsOptions,
    },
    resource::ResourceType,
};
pub(crate) use self::{clients::ClientEntry, server::XdsServer, status::XdsStatus};
