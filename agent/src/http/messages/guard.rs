//! Decisions on requests before they are served: the host that they name, the page that they come from, their method
//! and size. Without the check of the host, a page of another site could read the registry: it lets its own name
//! resolve to the address of the agent (DNS rebinding).

use std::net::IpAddr;

use super::error::{ApiError, Code};

/// Maximum bytes of the path and the query of a request. Two names of 255 bytes, percent-encoded, have 1,530.
pub(crate) const MAX_URI_BYTES: usize = 4096;

/// Names of this agent in the header `host`, besides `localhost` and all IP addresses. An address is safe: a page whose
/// origin is an address was served by that address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts(Vec<String>);

impl Hosts {
    /// Creates the list of further names.
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().map(|name| normal(&name)).collect())
    }

    /// Returns `false` for a name with a port, or of another form than a host has: no request would have it.
    pub(crate) fn can_have(name: &str) -> bool {
        host_of(name) == Some(name)
    }

    /// Checks the authority that a request names, `HOST` or `HOST:PORT`.
    fn admits(&self, authority: &str) -> bool {
        let Some(host) = host_of(authority) else { return false };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let host = normal(host);
        bare.parse::<IpAddr>().is_ok() || host == "localhost" || self.0.contains(&host)
    }
}

/// Returns a host name in lower case and without the dot of the root.
fn normal(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Returns the host of an authority; `None` if it is not of the form `HOST` or `HOST:PORT`.
fn host_of(authority: &str) -> Option<&str> {
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, port) = authority.split_at(end);
    let numeric = port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    (!host.is_empty() && (port.is_empty() || numeric)).then_some(host)
}

/// Parts of a request that its admission depends on. Header values that are not text are `None`.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestHead<'a> {
    /// Values of all headers `host`.
    pub(crate) hosts: Vec<Option<&'a str>>,
    /// Authority of a request target in absolute form.
    pub(crate) target: Option<&'a str>,
    /// Values of all headers `origin`.
    pub(crate) origins: Vec<Option<&'a str>>,
    /// Value of `sec-fetch-site`, which browsers send: the relation of the page to this server.
    pub(crate) fetch_site: Option<&'a str>,
    /// Value of `sec-fetch-dest`, which browsers send: `document` if the response is shown in a tab.
    pub(crate) fetch_dest: Option<&'a str>,
    /// Bytes of path and query.
    pub(crate) uri_bytes: usize,
    /// Value of `content-length`.
    pub(crate) content_length: Option<&'a str>,
    /// Value of `transfer-encoding`.
    pub(crate) transfer_encoding: Option<&'a str>,
}

/// Checks a request.
pub(crate) fn admit(head: &RequestHead<'_>, hosts: &Hosts) -> Result<(), ApiError> {
    let [Some(host)] = head.hosts[..] else {
        return Err(ApiError::new(Code::ForbiddenHost, "a request needs one header `host`"));
    };
    if !hosts.admits(host) || !head.target.is_none_or(|target| hosts.admits(target)) {
        return Err(ApiError::new(Code::ForbiddenHost, "the agent does not have this name: configure it as a host"));
    }
    let same = |origin: Option<&str>| {
        origin
            .and_then(|origin| origin.split_once("://"))
            .is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
    };
    if head.origins.len() > 1 || !head.origins.iter().copied().all(same) {
        return Err(ApiError::new(Code::ForbiddenOrigin, "pages of other origins are not served"));
    }
    // A page can request a resource without CORS, as an image: that has no `origin`, and its page cannot read the
    // response, but it would open views and streams of events. A link opens a tab of its own.
    let is_own = matches!(head.fetch_site, None | Some("same-origin" | "none")) || head.fetch_dest == Some("document");
    if !is_own {
        return Err(ApiError::new(Code::ForbiddenOrigin, "pages of other origins are not served"));
    }
    if head.uri_bytes > MAX_URI_BYTES {
        return Err(ApiError::new(Code::UriTooLong, format_args!("at most {MAX_URI_BYTES} bytes of path and query")));
    }
    if head.transfer_encoding.is_some() || head.content_length.is_some_and(|length| length != "0") {
        return Err(ApiError::new(Code::BodyNotAllowed, "requests have no body"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(host: &str) -> RequestHead<'_> {
        RequestHead { hosts: vec![Some(host)], ..RequestHead::default() }
    }

    fn code(head: &RequestHead<'_>) -> Option<Code> {
        admit(head, &Hosts::new(["Agent.Example".to_owned()])).err().map(|error| error.code())
    }

    #[test]
    fn only_own_names_are_hosts() {
        for (host, admitted) in [
            ("localhost", true),
            ("LOCALHOST:18001", true),
            ("localhost.", true),
            ("127.0.0.1:1", true),
            ("10.1.2.3", true),
            ("[::1]:1", true),
            ("agent.example:80", true),
            ("evil.example", false),
            ("agent.example.evil.example", false),
            ("localhost.evil.example:18001", false),
            ("127.0.0.1.evil.example", false),
            ("user@localhost", false),
            ("localhost:", false),
            ("localhost:x", false),
            ("localhost:1:2", false),
            ("[::1", false),
            ("[::1]x", false),
            ("", false),
        ] {
            assert_eq!(code(&head(host)), (!admitted).then_some(Code::ForbiddenHost), "{host}");
        }
        for hosts in [vec![], vec![None], vec![Some("localhost"), Some("localhost")]] {
            assert_eq!(code(&RequestHead { hosts, ..RequestHead::default() }), Some(Code::ForbiddenHost));
        }
        let target = RequestHead { target: Some("evil.example"), ..head("localhost") };
        assert_eq!(code(&target), Some(Code::ForbiddenHost));
    }

    #[test]
    fn only_pages_of_the_agent_are_origins() {
        for (origin, admitted) in [
            ("http://localhost:18001", true),
            ("https://LOCALHOST:18001", true),
            ("http://localhost", false),
            ("http://evil.example", false),
            ("null", false),
            ("", false),
        ] {
            let head = RequestHead { origins: vec![Some(origin)], ..head("localhost:18001") };
            assert_eq!(code(&head), (!admitted).then_some(Code::ForbiddenOrigin), "{origin}");
        }
        let two =
            RequestHead { origins: vec![Some("http://localhost"), Some("http://localhost")], ..head("localhost") };
        assert_eq!(code(&two), Some(Code::ForbiddenOrigin));
    }

    #[test]
    fn requests_of_other_pages_are_refused() {
        for (site, dest, admitted) in [
            (None, None, true),
            (Some("same-origin"), Some("empty"), true),
            (Some("none"), Some("document"), true),
            (Some("cross-site"), Some("document"), true),
            (Some("cross-site"), Some("image"), false),
            (Some("cross-site"), Some("iframe"), false),
            (Some("same-site"), Some("empty"), false),
            (Some("cross-site"), None, false),
            (Some("?"), None, false),
        ] {
            let head = RequestHead { fetch_site: site, fetch_dest: dest, ..head("localhost") };
            assert_eq!(code(&head), (!admitted).then_some(Code::ForbiddenOrigin), "{site:?} {dest:?}");
        }
    }

    #[test]
    fn long_requests_are_refused() {
        assert_eq!(code(&RequestHead { uri_bytes: MAX_URI_BYTES, ..head("localhost") }), None);
        assert_eq!(code(&RequestHead { uri_bytes: MAX_URI_BYTES + 1, ..head("localhost") }), Some(Code::UriTooLong));
        assert_eq!(code(&RequestHead { content_length: Some("0"), ..head("localhost") }), None);
        assert_eq!(code(&RequestHead { content_length: Some("1"), ..head("localhost") }), Some(Code::BodyNotAllowed));
        assert_eq!(
            code(&RequestHead { transfer_encoding: Some("chunked"), ..head("localhost") }),
            Some(Code::BodyNotAllowed)
        );
    }
}
