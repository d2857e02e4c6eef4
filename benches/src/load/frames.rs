//! The client's half of WebSocket (RFC 6455), as far as a byte stream of MQTT needs it (MQTT-6.0.0).
//!
//! Written for the load generator alone, so that it shares no code with the server: what is masked wrongly,
//! or comes back masked, is noticed.

use anyhow::{Context, Result, bail};
use bytes::{Buf, BufMut, BytesMut};

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
/// Lengths that say where the length is (RFC 6455, 5.2).
const IN_TWO_BYTES: u8 = 0x7e;
const IN_EIGHT_BYTES: u8 = 0x7f;

/// Largest control frame (RFC 6455, 5.5), in bytes.
const MAX_CONTROL: u64 = 125;

/// Between the bytes of the socket and those of MQTT.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// What came from the socket and is not taken apart yet.
    pub(super) received: BytesMut,
    /// Frames on their way to the socket.
    pub(super) sending: BytesMut,
    /// Payload of the frame under way that has not come yet.
    left: u64,
}

/// The request that opens a WebSocket for MQTT at `/mqtt`. The key is the sample of RFC 6455, 1.3: it hides
/// nothing, it only keeps caches from answering.
pub(super) fn request(address: &str) -> String {
    format!(
        "GET /mqtt HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
}

/// What the server has to answer to that key (RFC 6455, 4.2.2).
const ACCEPT: &str = "s3pplmbitxaq9kygzzhzrbk+xoo=";

impl Frames {
    /// Takes the answer to [`request`] from what was received; false while it is not complete.
    pub(super) fn take_answer(&mut self) -> Result<bool> {
        let Some(end) = self.received.windows(4).position(|at| at == b"\r\n\r\n") else { return Ok(false) };
        let head = self.received.split_to(end + 4);
        let head = std::str::from_utf8(&head).context("the answer is not HTTP")?.to_ascii_lowercase();
        if !head.starts_with("http/1.1 101 ") || !head.contains(ACCEPT) {
            bail!("the server does not open a WebSocket: {}", head.lines().next().unwrap_or_default());
        }
        Ok(true)
    }

    /// Puts bytes of MQTT into one frame on its way out.
    pub(super) fn wrap(&mut self, bytes: &[u8]) {
        self.frame(BINARY, bytes);
    }

    fn frame(&mut self, opcode: u8, payload: &[u8]) {
        let out = &mut self.sending;
        out.reserve(payload.len() + 14);
        out.put_u8(FINAL | opcode);
        match payload.len() {
            length @ ..=125 => out.put_u8(MASKED | length as u8),
            length @ ..=65_535 => {
                out.put_u8(MASKED | IN_TWO_BYTES);
                out.put_u16(length as u16);
            }
            length => {
                out.put_u8(MASKED | IN_EIGHT_BYTES);
                out.put_u64(length as u64);
            }
        }
        let mask: [u8; 4] = rand::random();
        out.put_slice(&mask);
        let start = out.len();
        out.put_slice(payload);
        for chunk in out[start..].chunks_mut(4) {
            chunk.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        }
    }

    /// Takes the frames apart that have come, and appends what they carry.
    pub(super) fn unwrap_into(&mut self, bytes: &mut BytesMut) -> Result<()> {
        loop {
            if self.left > 0 {
                let now = self.left.min(self.received.len() as u64) as usize;
                bytes.extend_from_slice(&self.received[..now]);
                self.received.advance(now);
                self.left -= now as u64;
                if self.left > 0 {
                    return Ok(());
                }
            }
            let Some((opcode, head, length)) = header(&self.received)? else { return Ok(()) };
            match opcode {
                BINARY | CONTINUATION => {
                    self.received.advance(head);
                    self.left = length;
                }
                CLOSE => bail!("the server closed the WebSocket"),
                PING | PONG => {
                    let whole = head + length as usize;
                    if self.received.len() < whole {
                        return Ok(());
                    }
                    let frame = self.received.split_to(whole);
                    if opcode == PING {
                        self.frame(PONG, &frame[head..]);
                    }
                }
                other => bail!("the server sends a WebSocket frame of type {other}"),
            }
        }
    }
}

/// Type of the next frame, and the lengths of its head and its payload.
fn header(bytes: &[u8]) -> Result<Option<(u8, usize, u64)>> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    let opcode = first & 15;
    if second & MASKED != 0 {
        bail!("the server masks its frames");
    }
    let (head, length) = match second {
        IN_TWO_BYTES => match rest.first_chunk() {
            Some(length) => (4, u64::from(u16::from_be_bytes(*length))),
            None => return Ok(None),
        },
        IN_EIGHT_BYTES => match rest.first_chunk() {
            Some(length) => (10, u64::from_be_bytes(*length)),
            None => return Ok(None),
        },
        length => (2, u64::from(length)),
    };
    if opcode >= CLOSE && length > MAX_CONTROL {
        bail!("the server sends a control frame of {length} bytes");
    }
    Ok(Some((opcode, head, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same bytes as a server sends them: not masked.
    fn from_server(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![FINAL | opcode];
        match payload.len() {
            length @ ..=125 => frame.push(length as u8),
            length @ ..=65_535 => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(payload);
        frame
    }

    #[test]
    fn what_comes_in_pieces_is_put_together_at_every_length() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let wire = [from_server(BINARY, &payload), from_server(BINARY, b"next")].concat();
            for piece in [1, 7, wire.len()] {
                let (mut frames, mut bytes) = (Frames::default(), BytesMut::new());
                for part in wire.chunks(piece) {
                    frames.received.extend_from_slice(part);
                    frames.unwrap_into(&mut bytes).unwrap();
                }
                assert_eq!(bytes, [payload.as_slice(), b"next"].concat(), "{length} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_frame_out_is_masked_and_says_its_length() {
        for length in [5, 126, 70_000] {
            let payload = vec![b'x'; length];
            let mut frames = Frames::default();
            frames.wrap(&payload);
            let sent = frames.sending;
            assert_eq!((sent[0], sent[1] & MASKED), (FINAL | BINARY, MASKED));
            let head = match length {
                5 => 2,
                126 => 4,
                _ => 10,
            };
            let mask = &sent[head..head + 4];
            let plain: Vec<u8> =
                sent[head + 4..].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            assert_eq!(plain, payload);
        }
    }

    #[test]
    fn a_ping_is_answered_and_a_close_ends() {
        let (mut frames, mut bytes) = (Frames::default(), BytesMut::new());
        frames.received.extend(from_server(PING, b"there?"));
        frames.unwrap_into(&mut bytes).unwrap();
        assert!(bytes.is_empty());
        assert_eq!((frames.sending[0], frames.sending[1]), (FINAL | PONG, MASKED | 6));
        frames.received.extend(from_server(CLOSE, b""));
        assert!(frames.unwrap_into(&mut bytes).is_err());
        let mut masked = Frames::default();
        masked.received.extend([FINAL | BINARY, MASKED | 1]);
        assert!(masked.unwrap_into(&mut bytes).is_err());
    }

    #[test]
    fn the_answer_must_open_the_websocket() {
        let mut frames = Frames::default();
        frames.received.extend(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: ");
        assert!(!frames.take_answer().unwrap());
        frames.received.extend(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nrest");
        assert!(frames.take_answer().unwrap());
        assert_eq!(frames.received, b"rest"[..]);
        frames.received.clear();
        frames.received.extend(b"HTTP/1.1 404 Not Found\r\n\r\n");
        assert!(frames.take_answer().unwrap_err().to_string().contains("404"));
    }
}
