//! W3C trace context: its headers, and the current context of a task.

use std::{fmt, future::Future};

use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::Span;

const PARENT: HeaderName = HeaderName::from_static("traceparent");
const STATE: HeaderName = HeaderName::from_static("tracestate");

/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// Position of a call in a trace: W3C trace context, version 00.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    flags: u8,
    state: Option<HeaderValue>,
}

impl TraceContext {
    /// The root of a new trace, marked as sampled: its callees are asked to record it.
    pub fn root() -> Self {
        Self { flags: SAMPLED, ..Self::unsampled_root() }
    }

    /// The root of a new trace that is not sampled.
    pub fn unsampled_root() -> Self {
        Self { trace: fastrand::u128(1..), span: fastrand::u64(1..), flags: 0, state: None }
    }

    /// The root of a new trace, sampled if `span` is recorded.
    pub(super) fn root_of(span: &Span) -> Self {
        if span.is_disabled() { Self::unsampled_root() } else { Self::root() }
    }

    /// A span below this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span: fastrand::u64(1..), ..self.clone() }
    }

    /// Reads the context from the headers of a request; `None` if there is none or it is malformed.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(PARENT).iter();
        let text = parents.next()?.to_str().ok()?;
        if parents.next().is_some() {
            return None;
        }
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex =
            |text: &str, digits| text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        // Later versions may have more parts; version 00 has none, and ff is none.
        let fits = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        if !(fits && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2)) {
            return None;
        }
        let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
        let flags = u8::from_str_radix(flags, 16).ok()?;
        (trace != 0 && span != 0).then(|| Self { trace, span, flags, state: state(headers) })
    }

    /// Adds the context to the headers of a request.
    pub fn write(&self, headers: &mut HeaderMap) {
        // Hexadecimal digits and hyphens.
        if let Ok(parent) = HeaderValue::try_from(self.to_string()) {
            headers.insert(PARENT, parent);
        }
        if let Some(state) = &self.state {
            headers.insert(STATE, state.clone());
        }
    }

    /// The context of the current task.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs `future` in this context: calls made in it are children.
    ///
    /// # Cancel safety
    ///
    /// As that of `future`.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// The id of the trace, in 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The id of the span, in 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// The joined state of all headers: they can be split like any other list (section 3.3.1).
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let states = headers.get_all(STATE).iter().map(HeaderValue::as_bytes).filter(|state| !state.is_empty());
    let states: Vec<_> = states.collect();
    if states.is_empty() { None } else { HeaderValue::from_bytes(&states.join(&b","[..])).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parent: &str) -> Option<TraceContext> {
        TraceContext::read(&HeaderMap::from_iter([(PARENT, HeaderValue::from_str(parent).unwrap())]))
    }

    /// The examples of the recommendation, sections 3.2.2 and 3.2.4.
    #[test]
    fn the_parent_is_read_as_w3c_has_it() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = read(text).unwrap();
        assert_eq!(context.to_string(), text);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(read("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes-later").is_some());
        for malformed in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "",
        ] {
            assert_eq!(read(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn a_child_stays_in_its_trace() {
        let mut headers = HeaderMap::new();
        TraceContext::root().write(&mut headers);
        headers.insert(STATE, HeaderValue::from_static("vendor=1"));
        let parent = TraceContext::read(&headers).unwrap();
        let child = parent.child();
        assert_eq!((child.trace_id(), &child.state), (parent.trace_id(), &parent.state));
        assert_ne!(child.span_id(), parent.span_id());
    }

    #[test]
    fn all_of_a_state_is_kept() {
        let mut headers = HeaderMap::new();
        TraceContext::root().write(&mut headers);
        for state in ["one=1,two=2", "", "three=3"] {
            headers.append(STATE, HeaderValue::from_static(state));
        }
        let parent = TraceContext::read(&headers).unwrap();
        let mut next = HeaderMap::new();
        parent.child().write(&mut next);
        assert_eq!(next.get_all(STATE).iter().collect::<Vec<_>>(), ["one=1,two=2,three=3"]);
    }

    #[test]
    fn two_parents_are_none() {
        let mut headers = HeaderMap::new();
        TraceContext::root().write(&mut headers);
        headers.append(PARENT, HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert_eq!(TraceContext::read(&headers), None);
    }
}
