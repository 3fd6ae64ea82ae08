//! A reader of a server's HTTP/2 frames: the limit of streams, and GOAWAY. tonic and hyper expose neither. Only the
//! headers of frames and the settings are read (RFC 9113, sections 4.1, 6.5 and 6.8).

/// Bytes of a frame's header, and of a setting.
const HEADER: usize = 9;
const SETTING: usize = 6;

/// Types of frames, the flag of an acknowledgement, and the setting that is read.
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];

/// A statement of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    /// Maximum number of concurrent streams.
    MaxStreams(u32),
    /// A frame with its settings has ended.
    Settings,
    /// The server takes no more streams.
    GoAway,
}

/// A header or a setting, as far as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Whole,
    Partial,
}

/// Reads frames from the bytes of a connection, in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    /// The beginning of a header or of a setting.
    buffer: [u8; HEADER],
    filled: usize,
    /// Bytes left of the payload of the current frame.
    payload: usize,
    is_settings: bool,
}

impl FrameReader {
    /// Reads `bytes`, which follow those that were read before, and gives each statement to `note`.
    pub(crate) fn read(&mut self, mut bytes: &[u8], mut note: impl FnMut(Statement)) {
        while !bytes.is_empty() {
            let read = match (self.payload, self.is_settings) {
                (0, _) => self.header(bytes, &mut note),
                (_, true) => self.setting(bytes, &mut note),
                (left, false) => {
                    let read = left.min(bytes.len());
                    self.payload -= read;
                    read
                }
            };
            bytes = &bytes[read..];
        }
    }

    /// Reads a part of a header, and returns its length in bytes.
    fn header(&mut self, bytes: &[u8], note: &mut impl FnMut(Statement)) -> usize {
        let (read, piece) = self.keep(bytes, HEADER);
        if piece == Piece::Whole {
            let [high, middle, low, kind, flags, ..] = self.buffer;
            self.payload = u32::from_be_bytes([0, high, middle, low]) as usize;
            self.is_settings = kind == SETTINGS && flags & ACK == 0;
            if kind == GOAWAY {
                note(Statement::GoAway);
            }
            if self.is_settings && self.payload == 0 {
                note(Statement::Settings);
            }
        }
        read
    }

    /// Reads a part of a setting, and returns its length in bytes.
    fn setting(&mut self, bytes: &[u8], note: &mut impl FnMut(Statement)) -> usize {
        // A payload that is no multiple of a setting is an error, which h2 reports.
        let (read, piece) = self.keep(bytes, SETTING.min(self.filled + self.payload));
        self.payload -= read;
        if piece == Piece::Whole {
            let [id_high, id_low, value @ ..] = self.buffer;
            if [id_high, id_low] == MAX_CONCURRENT_STREAMS {
                note(Statement::MaxStreams(u32::from_be_bytes([value[0], value[1], value[2], value[3]])));
            }
        }
        if self.payload == 0 {
            note(Statement::Settings);
        }
        read
    }

    /// Keeps bytes until there are `whole` of them. Returns the number of bytes taken.
    fn keep(&mut self, bytes: &[u8], whole: usize) -> (usize, Piece) {
        let read = (whole - self.filled).min(bytes.len());
        self.buffer[self.filled..self.filled + read].copy_from_slice(&bytes[..read]);
        self.filled += read;
        if self.filled < whole {
            return (read, Piece::Partial);
        }
        self.filled = 0;
        (read, Piece::Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[high, middle, low, kind, flags, 0, 0, 0, 0], payload].concat()
    }

    /// Settings with an id and a value each.
    fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
        let bytes = settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
        frame(SETTINGS, 0, &bytes.collect::<Vec<_>>())
    }

    fn read(bytes: &[u8], piece: usize) -> Vec<Statement> {
        let (mut reader, mut noted) = (FrameReader::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            reader.read(piece, |statement| noted.push(statement));
        }
        noted
    }

    #[test]
    fn statements_are_read_in_any_pieces() {
        use Statement::{GoAway, MaxStreams, Settings};
        let bytes = [
            settings(&[(4, 65_535), (3, 4), (5, 3)]),
            frame(SETTINGS, ACK, &[]),
            // Data that looks like frames.
            frame(0, 0, &settings(&[(3, 7)])),
            frame(0, 1, &[]),
            settings(&[]),
            settings(&[(3, 100)]),
            frame(GOAWAY, 0, &[0; 8]),
            frame(6, 0, &[7; 8]),
        ]
        .concat();
        let stated = [MaxStreams(4), Settings, Settings, MaxStreams(100), Settings, GoAway];
        for piece in 1..=bytes.len() {
            assert_eq!(read(&bytes, piece), stated, "pieces of {piece}");
        }
    }
}
