//! An empty replacement for the span of a call without the feature `trace`.

use std::future::Future;

use enlist::{Endpoint, ServiceRef};
use http::request::Parts;
use tonic::Status;

/// No span.
#[derive(Debug)]
pub(crate) struct CallSpan;

#[expect(clippy::unused_self, reason = "the span that it stands in for needs it")]
impl CallSpan {
    pub(crate) fn begin(_: &ServiceRef, _: &Parts) -> Self {
        Self
    }

    pub(crate) fn inject(&self, _: &mut Parts) {}

    pub(crate) fn scope(&self) -> Scope {
        Scope
    }

    pub(crate) fn called(&mut self, _: &Endpoint) {}

    pub(crate) fn follow<B>(self, outcome: Result<http::Response<B>, Status>) -> Result<http::Response<B>, Status> {
        outcome
    }
}

/// Nothing to run in.
pub(crate) struct Scope;

impl Scope {
    #[expect(clippy::unused_self, reason = "the scope that it stands in for needs it")]
    pub(crate) fn run<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        future
    }
}
