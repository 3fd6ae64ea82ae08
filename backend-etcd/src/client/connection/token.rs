//! The token of the user, which all requests of a channel carry.

use std::{
    fmt,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use enlist::backend::MutexExt as _;
use http::HeaderValue;
use tonic::body::Body;
use tower::{BoxError, Service};

use crate::client::connection::layers::Requests;

/// Path of the request for a token. It carries none: a stale one would be refused.
const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";

/// Header of the token.
const TOKEN: &str = "token";

/// The present token, if there is one. Clones are the same one. `Debug` does not show it.
#[derive(Clone, Default)]
pub(crate) struct Token(Arc<Mutex<Option<HeaderValue>>>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

impl Token {
    /// Replaces the token for later requests.
    pub(crate) fn replace(&self, token: Option<HeaderValue>) {
        *self.0.locked() = token;
    }
}

/// Requests with a token.
#[derive(Clone)]
pub(crate) struct WithToken {
    inner: Requests,
    token: Token,
}

impl WithToken {
    pub(crate) fn new(inner: Requests, token: Token) -> Self {
        Self { inner, token }
    }
}

impl Service<http::Request<Body>> for WithToken {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = <Requests as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let token = self.token.0.locked().clone().filter(|_| request.uri().path() != AUTHENTICATE);
        if let Some(token) = token {
            request.headers_mut().insert(TOKEN, token);
        }
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tower::{ServiceExt, service_fn};

    use super::*;

    /// Returns the token of a request with this path.
    async fn sent(token: &Token, path: &str) -> Option<String> {
        let seen = Arc::new(Mutex::new(None));
        let record = Arc::clone(&seen);
        let inner = service_fn(move |request: http::Request<Body>| {
            *record.locked() = request.headers().get(TOKEN).cloned();
            ready(Ok::<_, BoxError>(http::Response::new(Body::empty())))
        });
        let request = http::Request::builder().uri(path).body(Body::empty()).unwrap();
        WithToken::new(Requests::new(inner), token.clone()).oneshot(request).await.unwrap();
        seen.locked().take().map(|token| token.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn requests_carry_the_latest_token_except_the_one_for_a_token() {
        const WATCH: &str = "/etcdserverpb.Watch/Watch";
        let token = Token::default();
        assert_eq!(sent(&token, WATCH).await, None);
        for latest in ["a", "b"] {
            token.replace(Some(HeaderValue::from_static(latest)));
            assert_eq!(sent(&token, WATCH).await.as_deref(), Some(latest));
            assert_eq!(sent(&token, AUTHENTICATE).await, None);
        }
        assert!(!format!("{token:?}").contains('b'), "a token is a secret");
        token.replace(None);
        assert_eq!(sent(&token, WATCH).await, None);
    }
}
