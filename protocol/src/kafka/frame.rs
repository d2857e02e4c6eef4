//! The frames of Kafka's protocol: a 4-byte length, then that many bytes.
//!
//! Invariant: no memory is reserved for a frame whose length is not within the limit.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error as ThisError;

/// Bytes of the length in front of a frame.
pub const PREFIX_LEN: usize = 4;

/// Why a frame cannot be read or written. The stream is of no use afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
pub enum Error {
    /// A negative length.
    #[error("frame declares a length of {length} bytes, the other side is not speaking kafka's protocol")]
    Negative {
        /// Value of the length field.
        length: i32,
    },
    /// More than the limit.
    #[error(
        "frame declares a length of {length} bytes, at most {limit} are allowed: the limit is too small or the other side is not speaking kafka's protocol"
    )]
    TooLarge {
        /// Value of the length field.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

/// Cuts a byte stream into frames.
#[derive(Debug, Clone)]
pub struct FrameDecoder {
    limit: usize,
}

impl FrameDecoder {
    /// For frames of at most `limit` bytes (without their length field).
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.min(i32::MAX as usize) }
    }

    /// Takes the next frame out of `input`, without its length field. `None`: more bytes are needed;
    /// room for the rest of the frame is then reserved in `input`.
    ///
    /// # Errors
    /// [`Error`], as soon as the four bytes of a bad length are there.
    pub fn decode(&self, input: &mut BytesMut) -> Result<Option<Bytes>, Error> {
        let Some(prefix) = input.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let declared = i32::from_be_bytes(*prefix);
        let length = usize::try_from(declared).map_err(|_| Error::Negative { length: declared })?;
        if length > self.limit {
            return Err(Error::TooLarge { length, limit: self.limit });
        }
        let missing = (PREFIX_LEN + length).saturating_sub(input.len());
        if missing > 0 {
            input.reserve(missing);
            return Ok(None);
        }
        input.advance(PREFIX_LEN);
        Ok(Some(input.split_to(length).freeze()))
    }
}

/// Starts a frame at the end of `out`: reserves its length field and returns the mark that [`finish`]
/// needs.
pub fn start(out: &mut BytesMut) -> usize {
    let mark = out.len();
    out.extend_from_slice(&[0; PREFIX_LEN]);
    mark
}

/// Fills in the length of the frame that was started at `mark`, counting `beside` more bytes that the
/// caller sends behind `out` (so that record bytes need not be copied).
///
/// # Errors
/// [`Error::TooLarge`] beyond `i32::MAX` bytes.
pub fn finish(out: &mut BytesMut, mark: usize, beside: usize) -> Result<(), Error> {
    let length = out.len().saturating_sub(mark + PREFIX_LEN).saturating_add(beside);
    let declared = i32::try_from(length).map_err(|_| Error::TooLarge { length, limit: i32::MAX as usize })?;
    if let Some(prefix) = out.get_mut(mark..).and_then(|rest| rest.first_chunk_mut::<PREFIX_LEN>()) {
        *prefix = declared.to_be_bytes();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let mut stream = BytesMut::new();
        let bodies: [&[u8]; 3] = [b"first", b"", b"the third one"];
        for body in bodies {
            let mark = start(&mut stream);
            stream.extend_from_slice(body);
            finish(&mut stream, mark, 0).unwrap();
        }
        for step in 1..stream.len() {
            let decoder = FrameDecoder::new(64);
            let (mut input, mut found) = (BytesMut::new(), Vec::new());
            for part in stream.chunks(step) {
                input.extend_from_slice(part);
                while let Some(frame) = decoder.decode(&mut input).unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, bodies, "in steps of {step}");
            assert!(input.is_empty());
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_reserved() {
        let decoder = FrameDecoder::new(100);
        let mut input = BytesMut::from(&101i32.to_be_bytes()[..]);
        let before = input.capacity();
        assert_eq!(decoder.decode(&mut input), Err(Error::TooLarge { length: 101, limit: 100 }));
        assert_eq!(input.capacity(), before);
        let mut input = BytesMut::from(&(-1i32).to_be_bytes()[..]);
        assert_eq!(decoder.decode(&mut input), Err(Error::Negative { length: -1 }));
    }

    #[test]
    fn bytes_that_are_sent_beside_the_buffer_count_into_the_frame() {
        let mut out = BytesMut::new();
        let mark = start(&mut out);
        out.extend_from_slice(b"head");
        finish(&mut out, mark, 1000).unwrap();
        assert_eq!(out[..4], 1004i32.to_be_bytes());
    }
}
