//! Delay of the write of a request's head, so that the head and the body of a small request are one write. Pure.
//!
//! h2 assigns send capacity to the body of a request only once the head was taken for writing. Without a delay they are
//! two writes, and wake the server twice. One more pass of the scheduler is enough for the body to join the head.

/// Type of the first frame of a request, and the flag of a request without a body (RFC 9113, section 6.2).
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Position of the next write in the frames of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HeadWrite {
    /// The next byte is the first one of a frame.
    #[default]
    AtFrame,
    /// A frame was written in part.
    InFrame,
    /// The next frame is the head of a request, whose write was deferred.
    Deferred,
}

/// Decision about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteDecision {
    Now,
    /// The write is deferred until the connection is polled again.
    Defer,
}

impl HeadWrite {
    /// Decides about the write of `bytes`. It is deferred if they begin with the head of a request that has a body. A
    /// head is deferred at most once.
    pub(crate) fn decide(&mut self, bytes: &[u8]) -> WriteDecision {
        let is_head = matches!(bytes, [_, _, _, HEADERS, flags, ..] if flags & END_STREAM == 0);
        if *self != Self::AtFrame || !is_head {
            return WriteDecision::Now;
        }
        *self = Self::Deferred;
        WriteDecision::Defer
    }

    /// Notes that `written` of `offered` bytes were written.
    pub(crate) fn wrote(&mut self, written: usize, offered: usize) {
        *self = if written == offered { Self::AtFrame } else { Self::InFrame };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a frame, and a byte of its payload.
    fn frame(kind: u8, flags: u8) -> [u8; 10] {
        [0, 0, 1, kind, flags, 0, 0, 0, 1, 0]
    }

    #[test]
    fn a_head_with_a_body_is_deferred_once() {
        let mut write = HeadWrite::default();
        let head = frame(HEADERS, 4);
        assert_eq!([write.decide(&head), write.decide(&head)], [WriteDecision::Defer, WriteDecision::Now]);
        write.wrote(head.len(), head.len());
        assert_eq!(write.decide(&head), WriteDecision::Defer, "the next request");
    }

    #[test]
    fn other_frames_are_not_deferred() {
        let whole = frame(HEADERS, 4 | END_STREAM);
        let (data, preface) = (frame(0, 0), *b"PRI * HTTP/2.0");
        let decided = [&whole[..], &data, &preface, &[]].map(|bytes| HeadWrite::default().decide(bytes));
        assert_eq!(decided, [WriteDecision::Now; 4]);
    }

    #[test]
    fn the_rest_of_a_frame_is_not_deferred() {
        let mut write = HeadWrite::default();
        write.wrote(9, 30);
        assert_eq!(write.decide(&frame(HEADERS, 4)), WriteDecision::Now, "these bytes are payload");
        write.wrote(21, 21);
        assert_eq!(write.decide(&frame(HEADERS, 4)), WriteDecision::Defer);
    }
}
