//! Parameters of requests, in their query.

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use enlist::{Namespace, ServiceName, ServiceRef};
use serde::{Deserialize, de::DeserializeOwned};

use super::error::{ApiError, Code};
use crate::http::following::state::Scope;

/// Parameters of a request. An unknown one is an error: ignored, it would silently return too much.
#[derive(Debug)]
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = Query::try_from_uri(&parts.uri);
        query.map(|Query(query)| Self(query)).map_err(|error| ApiError::new(Code::InvalidParameter, error.body_text()))
    }
}

/// Parameters of a request that has none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoQuery {}

/// Parameter of requests for a namespace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamespaceQuery {
    namespace: Option<String>,
}

impl NamespaceQuery {
    /// Returns the namespace.
    pub(crate) fn namespace(&self) -> Result<Namespace, ApiError> {
        parse_namespace(self.namespace.as_deref())
    }
}

/// Parameters of requests for a namespace or a service.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScopeQuery {
    namespace: Option<String>,
    service: Option<String>,
}

impl ScopeQuery {
    /// Returns the scope.
    pub(crate) fn scope(&self) -> Result<Scope, ApiError> {
        parse_scope(self.namespace.as_deref(), self.service.as_deref())
    }
}

/// Returns the scope of parameters: a service, or all services of a namespace.
pub(crate) fn parse_scope(namespace: Option<&str>, service: Option<&str>) -> Result<Scope, ApiError> {
    let namespace = parse_namespace(namespace)?;
    let Some(service) = service else { return Ok(Scope::Namespace(namespace)) };
    let name = ServiceName::parse(service).map_err(|error| ApiError::of_store(&error))?;
    Ok(Scope::Service(ServiceRef::new(namespace, name)))
}

/// Returns the namespace of a parameter; `default` without it.
pub(crate) fn parse_namespace(text: Option<&str>) -> Result<Namespace, ApiError> {
    let namespace = text.map_or_else(|| Ok(Namespace::default()), Namespace::parse);
    namespace.map_err(|error| ApiError::of_store(&error))
}
