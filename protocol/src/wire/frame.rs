//! One frame: envelope, header, payload.

use std::ops::RangeInclusive;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error as ThisError;

/// Bytes of an envelope.
pub const ENVELOPE_LEN: usize = 18;

/// Longest header that any protocol may allow: 4 MiB, some tens of thousands of table rows.
pub const MAX_HEADER_LEN: usize = 4 << 20;

fn bincode_config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_HEADER_LEN>()
}

/// Protocol of one kind of link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// Name for error texts.
    pub name: &'static str,
    /// First bytes of every frame.
    pub magic: [u8; 4],
    /// Versions that this side understands.
    pub versions: RangeInclusive<u16>,
    /// Flag bits that this side understands.
    pub flags: u16,
    /// Longest header in bytes, at most [`MAX_HEADER_LEN`].
    pub max_header: usize,
    /// Longest payload in bytes, at most `u32::MAX`.
    pub max_payload: usize,
}

/// Why a frame cannot be read or written. After a read error the stream is of no use.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum Error {
    /// Another protocol.
    #[error(
        "frame starts with {got:02x?}, the {protocol} protocol with {expected:02x?}: is this the right port?"
    )]
    Magic {
        /// The protocol that was expected.
        protocol: &'static str,
        /// Its magic.
        expected: [u8; 4],
        /// Received value.
        got: [u8; 4],
    },
    /// A version that this side does not speak.
    #[error("{protocol} protocol version {got} is not supported, versions {first} to {last} are")]
    Version {
        /// The protocol.
        protocol: &'static str,
        /// Received value.
        got: u16,
        /// First version spoken here.
        first: u16,
        /// Last version spoken here.
        last: u16,
    },
    /// A flag that this side does not know; what it would mean cannot be ignored.
    #[error("{protocol} frame has the unknown flags {flags:#06x}")]
    Flags {
        /// The protocol.
        protocol: &'static str,
        /// The unknown ones.
        flags: u16,
    },
    /// A part beyond its limit.
    #[error("{protocol} frame has a {part} of {length} bytes, at most {limit} are allowed")]
    TooLarge {
        /// The protocol.
        protocol: &'static str,
        /// "header" or "payload".
        part: &'static str,
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A header that is not what its kind says.
    #[error("header of a {expected} frame cannot be read: {detail}")]
    Header {
        /// The type that was expected.
        expected: &'static str,
        /// Error of the decoder.
        detail: String,
    },
    /// A header that cannot be encoded.
    #[error("header of a {expected} frame cannot be written: {detail}")]
    Encode {
        /// The type to be written.
        expected: &'static str,
        /// Error of the encoder.
        detail: String,
    },
}

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// Protocol version of the sender for this frame.
    pub version: u16,
    /// Kind of the header; numbers belong to the protocol.
    pub kind: u16,
    /// Flag bits; they belong to the protocol.
    pub flags: u16,
    /// Bytes of the header.
    pub header_len: usize,
    /// Bytes of the payload.
    pub payload_len: usize,
}

impl Protocol {
    fn check(&self, part: &'static str, length: usize, limit: usize) -> Result<(), Error> {
        if length > limit {
            return Err(Error::TooLarge { protocol: self.name, part, length, limit });
        }
        Ok(())
    }

    fn check_lengths(&self, header: usize, payload: usize) -> Result<(), Error> {
        self.check("header", header, self.max_header.min(MAX_HEADER_LEN))?;
        self.check("payload", payload, self.max_payload.min(u32::MAX as usize))
    }

    /// Reads and checks the envelope at the start of `input`; `None`: more bytes are needed. A wrong
    /// magic is noticed from the first byte on.
    ///
    /// # Errors
    /// All of [`Error`] but those of headers.
    pub fn envelope(&self, input: &[u8]) -> Result<Option<Envelope>, Error> {
        if input.iter().zip(&self.magic).any(|(got, expected)| got != expected) {
            let mut got = [0; 4];
            got.iter_mut().zip(input).for_each(|(to, from)| *to = *from);
            return Err(Error::Magic { protocol: self.name, expected: self.magic, got });
        }
        let Some(mut fixed) = input.get(self.magic.len()..ENVELOPE_LEN) else { return Ok(None) };
        let envelope = Envelope {
            version: fixed.get_u16(),
            kind: fixed.get_u16(),
            flags: fixed.get_u16(),
            header_len: fixed.get_u32() as usize,
            payload_len: fixed.get_u32() as usize,
        };
        if !self.versions.contains(&envelope.version) {
            return Err(Error::Version {
                protocol: self.name,
                got: envelope.version,
                first: *self.versions.start(),
                last: *self.versions.end(),
            });
        }
        if envelope.flags & !self.flags != 0 {
            return Err(Error::Flags { protocol: self.name, flags: envelope.flags & !self.flags });
        }
        self.check_lengths(envelope.header_len, envelope.payload_len)?;
        Ok(Some(envelope))
    }
}

/// A frame as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The fixed part.
    pub envelope: Envelope,
    /// The header, encoded.
    pub header: Bytes,
    /// The bytes beside it.
    pub payload: Bytes,
}

impl Frame {
    /// Decodes the header. It must be used up to its last byte.
    ///
    /// # Errors
    /// [`Error::Header`].
    pub fn header<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let fail = |detail: String| Error::Header { expected: short_name::<T>(), detail };
        let (value, used) = bincode::serde::decode_from_slice(&self.header, bincode_config())
            .map_err(|error| fail(error.to_string()))?;
        if used != self.header.len() {
            return Err(fail(format!("{} bytes are left behind it", self.header.len() - used)));
        }
        Ok(value)
    }
}

/// The type's name without its path.
fn short_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

/// Cuts a byte stream into frames.
#[derive(Debug, Clone)]
pub struct FrameDecoder {
    protocol: Protocol,
}

impl FrameDecoder {
    /// For frames of `protocol`.
    pub fn new(protocol: Protocol) -> Self {
        Self { protocol }
    }

    /// Takes the next frame out of `input`. `None`: more bytes are needed; room for the rest of the
    /// frame, once its lengths are known and allowed, is then reserved in `input`.
    ///
    /// # Errors
    /// Those of [`Protocol::envelope`].
    pub fn decode(&self, input: &mut BytesMut) -> Result<Option<Frame>, Error> {
        let Some(envelope) = self.protocol.envelope(input)? else { return Ok(None) };
        let total = ENVELOPE_LEN + envelope.header_len + envelope.payload_len;
        if input.len() < total {
            input.reserve(total - input.len());
            return Ok(None);
        }
        input.advance(ENVELOPE_LEN);
        let header = input.split_to(envelope.header_len).freeze();
        let payload = input.split_to(envelope.payload_len).freeze();
        Ok(Some(Frame { envelope, header, payload }))
    }
}

/// Appends envelope and header of a frame of `version` to `out`; the caller sends `payload_len` bytes
/// of payload behind them.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::Encode`]; `out` is then as it was.
pub fn encode<T: Serialize>(
    protocol: &Protocol,
    version: u16,
    kind: u16,
    header: &T,
    payload_len: usize,
    out: &mut BytesMut,
) -> Result<(), Error> {
    let start = out.len();
    let result = encode_behind(protocol, version, kind, header, payload_len, out);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn encode_behind<T: Serialize>(
    protocol: &Protocol,
    version: u16,
    kind: u16,
    header: &T,
    payload_len: usize,
    out: &mut BytesMut,
) -> Result<(), Error> {
    out.put_slice(&protocol.magic);
    out.put_u16(version);
    out.put_u16(kind);
    out.put_u16(0);
    let lengths = out.len();
    out.put_u64(0);
    let header_start = out.len();
    bincode::serde::encode_into_std_write(header, &mut out.writer(), bincode_config())
        .map_err(|error| Error::Encode { expected: short_name::<T>(), detail: error.to_string() })?;
    let header_len = out.len() - header_start;
    protocol.check_lengths(header_len, payload_len)?;
    if let Some(mut room) = out.get_mut(lengths..header_start) {
        room.put_u32(header_len as u32);
        room.put_u32(payload_len as u32);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Sample {
        Ping,
        Rows { names: Vec<String>, counts: BTreeMap<u32, i64>, last: Option<u8> },
    }

    fn protocol() -> Protocol {
        Protocol {
            name: "test",
            magic: *b"TEST",
            versions: 2..=3,
            flags: 0b1,
            max_header: 1000,
            max_payload: 500,
        }
    }

    fn rows() -> Sample {
        Sample::Rows {
            names: vec!["one".into(), "größer".into()],
            counts: [(1, -1), (70_000, i64::MAX)].into(),
            last: Some(7),
        }
    }

    fn frame(header: &Sample, payload: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        encode(&protocol(), 2, 9, header, payload.len(), &mut out).unwrap();
        out.put_slice(payload);
        out
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let mut stream = frame(&rows(), b"beside");
        stream.put_slice(&frame(&Sample::Ping, b""));
        let decoder = FrameDecoder::new(protocol());
        for step in 1..=stream.len() {
            let (mut input, mut found) = (BytesMut::new(), Vec::new());
            for part in stream.chunks(step) {
                input.put_slice(part);
                while let Some(frame) = decoder.decode(&mut input).unwrap() {
                    assert_eq!((frame.envelope.version, frame.envelope.kind), (2, 9));
                    found.push((frame.header::<Sample>().unwrap(), frame.payload));
                }
            }
            let expected = [(rows(), Bytes::from_static(b"beside")), (Sample::Ping, Bytes::new())];
            assert_eq!(found, expected, "in steps of {step}");
        }
    }

    fn envelope_error(change: impl FnOnce(&mut BytesMut)) -> Error {
        let mut input = frame(&Sample::Ping, b"");
        change(&mut input);
        input.truncate(ENVELOPE_LEN);
        let before = input.capacity();
        let error = FrameDecoder::new(protocol()).decode(&mut input).unwrap_err();
        assert_eq!(input.capacity(), before, "room was reserved for a frame that is refused");
        error
    }

    #[test]
    fn a_bad_envelope_is_refused_before_anything_is_reserved() {
        let too_large = |part, length, limit| Error::TooLarge { protocol: "test", part, length, limit };
        let lengths = |header: u32, payload: u32| {
            envelope_error(|input| {
                input[10..14].copy_from_slice(&header.to_be_bytes());
                input[14..18].copy_from_slice(&payload.to_be_bytes());
            })
        };
        assert_eq!(lengths(1001, 0), too_large("header", 1001, 1000));
        assert_eq!(lengths(u32::MAX, 0), too_large("header", u32::MAX as usize, 1000));
        assert_eq!(lengths(1, 501), too_large("payload", 501, 500));
        assert_eq!(
            envelope_error(|input| input[5] = 4),
            Error::Version { protocol: "test", got: 4, first: 2, last: 3 }
        );
        assert_eq!(envelope_error(|input| input[9] = 0b11), Error::Flags { protocol: "test", flags: 0b10 });
        let magic = |got| Error::Magic { protocol: "test", expected: *b"TEST", got };
        assert_eq!(envelope_error(|input| input[0] = b'G'), magic(*b"GEST"));
        let mut first_byte = BytesMut::from(&b"G"[..]);
        assert_eq!(FrameDecoder::new(protocol()).decode(&mut first_byte), Err(magic(*b"G\0\0\0")));
    }

    #[test]
    fn a_header_must_be_used_up_and_be_of_its_type() {
        let mut input = BytesMut::new();
        encode(&protocol(), 2, 1, &(3u8, 4u8), 0, &mut input).unwrap();
        let frame = FrameDecoder::new(protocol()).decode(&mut input).unwrap().unwrap();
        assert!(matches!(frame.header::<u8>(), Err(Error::Header { expected: "u8", .. })));
        assert!(matches!(frame.header::<(u8, u8, u8)>(), Err(Error::Header { .. })));
        assert_eq!(frame.header::<(u8, u8)>(), Ok((3, 4)));
    }

    #[test]
    fn a_header_that_claims_more_than_it_has_is_refused() {
        for claimed in [u64::MAX, u64::from(u32::MAX), MAX_HEADER_LEN as u64] {
            // 253 announces a 64-bit length.
            let mut header = vec![253];
            header.extend_from_slice(&claimed.to_le_bytes());
            let envelope =
                Envelope { version: 2, kind: 0, flags: 0, header_len: header.len(), payload_len: 0 };
            let frame = Frame { envelope, header: header.into(), payload: Bytes::new() };
            assert!(matches!(frame.header::<String>(), Err(Error::Header { .. })));
            assert!(matches!(frame.header::<Vec<u64>>(), Err(Error::Header { .. })));
        }
    }

    #[test]
    fn a_header_beyond_the_limit_is_not_sent() {
        let mut out = BytesMut::from(&b"before"[..]);
        let header = Sample::Rows { names: vec!["x".repeat(1001)], counts: BTreeMap::new(), last: None };
        assert!(matches!(
            encode(&protocol(), 2, 1, &header, 0, &mut out),
            Err(Error::TooLarge { part: "header", .. })
        ));
        assert_eq!(out, b"before"[..]);
    }

    #[test]
    fn damaged_frames_are_refused_without_panic() {
        let whole = frame(&rows(), b"beside");
        let decoder = FrameDecoder::new(protocol());
        for seed in 0..20_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut input = whole.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..input.len());
                input[at] = rng.random();
            }
            input.truncate(rng.random_range(0..=input.len()));
            let outcome = std::panic::catch_unwind(|| {
                let mut input = input.clone();
                if let Ok(Some(frame)) = decoder.decode(&mut input) {
                    let _ = frame.header::<Sample>();
                }
            });
            assert!(outcome.is_ok(), "panic with seed {seed}");
        }
    }
}
