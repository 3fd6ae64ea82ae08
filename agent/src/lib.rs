//! The registry of `enlist` for programs in other languages, over any [`Resolver`](enlist::Resolver).
//!
//! An [`Agent`] serves xDS: gRPC clients in any language find instances as `xds:///SERVICE`, without a library of this
//! project, and so does Envoy. Connections go from the client to the instance; the agent is not on their way.
//!
//! It serves the same registry over HTTP as well, if [`AgentBuilder::http`] is set: as JSON and as events, and as
//! targets for Prometheus, with metrics of its own and a web console. All of it is read-only.
//!
//! | feature | content |
//! |---|---|
//! | `tls` | TLS for the servers, and certificates of clients |

mod agent;
mod connections;
mod error;
mod http;
mod limits;
#[cfg(test)]
mod logged;
mod security;
mod staleness;
#[cfg(feature = "tls")]
mod tls;
mod xds;

#[cfg(feature = "tls")]
pub use self::security::TlsIdentity;
#[doc(inline)]
pub use self::{
    agent::{Agent, AgentBuilder, AgentStatus},
    error::AgentError,
    http::{
        DEFAULT_HTTP_CONNECTIONS, DEFAULT_HTTP_EVENT_CLIENTS, DEFAULT_HTTP_PORT, DEFAULT_HTTP_SERVICES,
        DEFAULT_HTTP_VIEWS, HttpOptions,
    },
    security::BearerToken,
    xds::{
        DEFAULT_XDS_CONNECT_TIMEOUT, DEFAULT_XDS_NAMES, DEFAULT_XDS_PORT, DEFAULT_XDS_SERVICES, DEFAULT_XDS_SETTLE,
        DEFAULT_XDS_STREAMS, EnvoyListener, Omission, ResourceType, XdsClient, XdsOptions, XdsRejection, XdsTotals,
    },
};

/// Compiles the programs of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/agent.md")]
#[doc = include_str!("../../docs/agent-http.md")]
#[doc = include_str!("../../docs/clients/envoy.md")]
struct AgentPages;
