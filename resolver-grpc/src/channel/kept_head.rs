//! The head of a call, kept for further attempts.

use http::{Extensions, HeaderMap, HeaderName, Method, Uri, Version, request::Parts};
use tonic::body::Body;

/// Copy of the head of a call. The first attempt sends the caller's own, so that no empty one is built and replaced.
pub(crate) struct KeptHead {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    extensions: Extensions,
}

impl KeptHead {
    /// A copy of `head`. It takes the extensions: they are for this client and are not sent.
    pub(crate) fn of(head: &mut Parts) -> Self {
        let extensions = std::mem::take(&mut head.extensions);
        let (method, uri) = (head.method.clone(), head.uri.clone());
        Self { method, uri, version: head.version, headers: head.headers.clone(), extensions }
    }

    /// The method that is called: `/package.Service/Method`.
    pub(crate) fn path(&self) -> &str {
        self.uri.path()
    }

    pub(crate) fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    /// The bytes of a header.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.headers.get(name).map(http::HeaderValue::as_bytes)
    }

    /// The extension of this type.
    pub(crate) fn extension<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.extensions.get()
    }

    /// The request of another attempt.
    pub(crate) fn request(&self, body: Body) -> http::Request<Body> {
        let mut request = http::Request::new(body);
        (*request.method_mut(), *request.uri_mut()) = (self.method.clone(), self.uri.clone());
        (*request.version_mut(), *request.headers_mut()) = (self.version, self.headers.clone());
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_attempt_has_the_same_head_without_extensions() {
        let request = http::Request::post("http://greeter/greeter.Greeter/Hello").header("te", "trailers");
        let (mut head, ()) = request.version(Version::HTTP_2).extension(7_u8).body(()).unwrap().into_parts();
        let kept = KeptHead::of(&mut head);
        let again = kept.request(Body::empty());
        assert_eq!((again.method(), again.uri(), again.version()), (&head.method, &head.uri, head.version));
        assert_eq!((again.headers(), again.headers().len()), (&head.headers, 1));
        assert_eq!((kept.extension::<u8>(), kept.path()), (Some(&7), "/greeter.Greeter/Hello"));
        assert!(head.extensions.is_empty() && again.extensions().is_empty());
    }
}
