//! WebSocket frames from a client, as a stream of their payload (RFC 6455, section 5).
//!
//! MQTT takes the payload of binary frames as one byte stream, whatever the frames' borders are (MQTT-5.0
//! 6.0.0-2). So nothing is put together here: payload is unmasked and moved to the front of the buffer it
//! arrived in, as far as it has arrived, and only a header or control frame that is cut in two is kept.
//!
//! Invariants:
//! * What is kept is at most a header (14 bytes) and a control frame's payload (125 bytes). The length
//!   that a frame declares allocates nothing and needs no limit; packets have theirs in the MQTT decoder.
//! * After an error, and behind a close frame, nothing more is decoded.

use std::io::Cursor;

use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

/// Bytes of the longest header from a client.
const LONGEST_HEADER: usize = 14;

/// Payload bytes that a control frame may have (RFC 6455 5.5).
const LONGEST_CONTROL: usize = 125;

/// Why a client's frames are refused: the code for our close frame, and words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: CloseCode,
    pub(super) why: &'static str,
}

impl Refused {
    const fn protocol(why: &'static str) -> Self {
        Self { code: CloseCode::Protocol, why }
    }
}

/// A control frame that is to be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// To be answered with a pong with this payload.
    Ping(Box<[u8]>),
    /// The client closes, with this code if it gave one.
    Close(Option<u16>),
}

#[derive(Debug)]
enum State {
    /// Bytes of a header that is not complete.
    Header { bytes: [u8; LONGEST_HEADER], used: usize },
    /// In the payload of a binary frame.
    Payload { left: u64, mask: [u8; 4] },
    /// In the payload of a control frame.
    Control { kind: Control, left: usize, mask: [u8; 4], payload: Vec<u8> },
    /// Behind a close frame: what else comes is discarded (RFC 6455 1.4).
    Closed,
}

/// Decoder of WebSocket frames (RFC 6455 5).
#[derive(Debug)]
pub(super) struct FrameDecoder {
    state: State,
    /// A message began whose last frame has not come.
    fragmented: bool,
}

const AT_HEADER: State = State::Header { bytes: [0; LONGEST_HEADER], used: 0 };

impl Default for FrameDecoder {
    fn default() -> Self {
        Self { state: AT_HEADER, fragmented: false }
    }
}

/// Unmasks `data`, whose first byte is masked with the first byte of `mask`; the mask for what follows.
fn unmask(data: &mut [u8], mask: [u8; 4]) -> [u8; 4] {
    let mut chunks = data.chunks_exact_mut(4);
    for chunk in &mut chunks {
        for (byte, mask) in chunk.iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
    let rest = chunks.into_remainder();
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    let mut next = mask;
    next.rotate_left(rest.len());
    next
}

impl FrameDecoder {
    /// Decodes `data`, which follows what was decoded before. Answers how many bytes of payload stand at its
    /// front now; control frames go to `events`.
    pub(super) fn decode(&mut self, data: &mut [u8], events: &mut Vec<Event>) -> Result<usize, Refused> {
        let (mut read, mut written) = (0, 0);
        loop {
            let rest = data.get_mut(read..).unwrap_or_default();
            match &mut self.state {
                State::Header { bytes, used } => {
                    let Some(space) = bytes.get_mut(*used..) else { return Ok(written) };
                    let count = rest.len().min(space.len());
                    for (to, from) in space.iter_mut().zip(rest.iter()) {
                        *to = *from;
                    }
                    let known = *used + count;
                    let mut cursor = Cursor::new(bytes.get(..known).unwrap_or_default());
                    let parsed = FrameHeader::parse(&mut cursor)
                        .map_err(|_| Refused::protocol("a frame of an unknown kind"))?;
                    let Some((header, length)) = parsed else {
                        *used = known;
                        return Ok(written);
                    };
                    let length_of_header = cursor.position() as usize;
                    read += length_of_header - *used;
                    self.state = self.begin(&header, length)?;
                    self.end_control(events)?;
                }
                State::Payload { left, mask } => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    if let Some(payload) = rest.get_mut(..count) {
                        *mask = unmask(payload, *mask);
                    }
                    data.copy_within(read..read + count, written);
                    read += count;
                    written += count;
                    *left -= count as u64;
                    if *left > 0 {
                        return Ok(written);
                    }
                    self.state = AT_HEADER;
                }
                State::Control { left, mask, payload, .. } => {
                    let count = (*left).min(rest.len());
                    if let Some(part) = rest.get_mut(..count) {
                        *mask = unmask(part, *mask);
                        payload.extend_from_slice(part);
                    }
                    read += count;
                    *left -= count;
                    if *left > 0 {
                        return Ok(written);
                    }
                    self.end_control(events)?;
                }
                State::Closed => return Ok(written),
            }
            if read >= data.len() {
                return Ok(written);
            }
        }
    }

    /// A header is complete.
    fn begin(&mut self, header: &FrameHeader, length: u64) -> Result<State, Refused> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Refused::protocol("a reserved bit is set"));
        }
        let Some(mask) = header.mask else { return Err(Refused::protocol("a frame without a mask")) };
        match header.opcode {
            OpCode::Data(Data::Text) => {
                // MQTT-6.0.0-1.
                Err(Refused { code: CloseCode::Unsupported, why: "MQTT takes binary frames only" })
            }
            OpCode::Data(Data::Binary | Data::Continue) if length > i64::MAX as u64 => {
                Err(Refused::protocol("a length with its highest bit set"))
            }
            OpCode::Data(Data::Binary) if self.fragmented => {
                Err(Refused::protocol("a message inside another"))
            }
            OpCode::Data(Data::Continue) if !self.fragmented => {
                Err(Refused::protocol("a continuation of nothing"))
            }
            OpCode::Data(Data::Binary | Data::Continue) => {
                self.fragmented = !header.is_final;
                Ok(if length == 0 { AT_HEADER } else { State::Payload { left: length, mask } })
            }
            OpCode::Control(kind @ (Control::Close | Control::Ping | Control::Pong)) => {
                if !header.is_final || length > LONGEST_CONTROL as u64 {
                    return Err(Refused::protocol("a control frame that is cut or too long"));
                }
                Ok(State::Control { kind, left: length as usize, mask, payload: Vec::new() })
            }
            OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => {
                Err(Refused::protocol("a frame of an unknown kind"))
            }
        }
    }

    /// Acts on a control frame that is complete.
    fn end_control(&mut self, events: &mut Vec<Event>) -> Result<(), Refused> {
        let State::Control { kind, left: 0, payload, .. } = &mut self.state else { return Ok(()) };
        let next = if *kind == Control::Close { State::Closed } else { AT_HEADER };
        match kind {
            Control::Ping => events.push(Event::Ping(std::mem::take(payload).into_boxed_slice())),
            Control::Close => match payload.as_slice() {
                [] => events.push(Event::Close(None)),
                [high, low, reason @ ..] => {
                    let code = u16::from_be_bytes([*high, *low]);
                    if !CloseCode::from(code).is_allowed() || std::str::from_utf8(reason).is_err() {
                        return Err(Refused::protocol("a close frame with a wrong code or reason"));
                    }
                    events.push(Event::Close(Some(code)));
                }
                [_] => return Err(Refused::protocol("a close frame with half a code")),
            },
            Control::Pong | Control::Reserved(_) => {}
        }
        self.state = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;

    use super::*;

    fn frame(opcode: u8, is_final: bool, payload: &[u8]) -> Vec<u8> {
        let header = FrameHeader {
            is_final,
            rsv1: false,
            rsv2: false,
            rsv3: false,
            opcode: OpCode::from(opcode),
            mask: Some([0x11, 0x22, 0x33, 0x44]),
        };
        let mut bytes = Vec::new();
        Frame::from_payload(header, payload.to_vec().into()).format(&mut bytes).unwrap();
        bytes
    }

    /// Everything that comes of `input` in pieces of `size`.
    fn decode(input: &[u8], size: usize) -> Result<(Vec<u8>, Vec<Event>), Refused> {
        let (mut decoder, mut payload, mut events) = (FrameDecoder::default(), Vec::new(), Vec::new());
        for piece in input.chunks(size) {
            let mut piece = piece.to_vec();
            let count = decoder.decode(&mut piece, &mut events)?;
            payload.extend_from_slice(&piece[..count]);
        }
        Ok((payload, events))
    }

    #[test]
    fn payload_is_the_same_whatever_the_frames_and_pieces() {
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..300 {
            let mut payload = vec![0; random.random_range(0..200_usize)];
            random.fill(&mut payload[..]);
            let (mut input, mut pings) = (Vec::new(), Vec::new());
            let mut rest = &payload[..];
            let mut first = true;
            while !rest.is_empty() || first {
                let (now, later) = rest.split_at(random.random_range(0..=rest.len()));
                rest = later;
                let is_final = rest.is_empty();
                input.extend(frame(if first { 2 } else { 0 }, is_final, now));
                first = false;
                if random.random_bool(0.3) {
                    let ping = vec![7; random.random_range(0..126)];
                    input.extend(frame(9, true, &ping));
                    pings.push(Event::Ping(ping.into()));
                }
            }
            input.extend(frame(0xA, true, b"unasked"));
            input.extend(frame(8, true, &1000_u16.to_be_bytes()));
            pings.push(Event::Close(Some(1000)));
            for size in [1, 2, 3, 7, 64, input.len()] {
                let decoded = decode(&input, size).unwrap();
                assert_eq!((&decoded.0, &decoded.1), (&payload, &pings), "seed {seed}, pieces of {size}");
            }
        }
    }

    #[test]
    fn what_is_behind_a_close_frame_is_discarded() {
        let input =
            [frame(2, true, b"before"), frame(8, true, b""), frame(2, true, b"behind"), frame(1, true, b"x")]
                .concat();
        for size in [1, 5, input.len()] {
            assert_eq!(decode(&input, size).unwrap(), (b"before".to_vec(), vec![Event::Close(None)]));
        }
    }

    #[test]
    fn every_length_form_is_read() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 100_000] {
            let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
            for size in [1, 4096, usize::MAX] {
                assert_eq!(decode(&frame(2, true, &payload), size.min(200_000)).unwrap().0, payload);
            }
        }
    }

    #[test]
    fn frames_that_break_the_rules_are_refused_with_their_code() {
        let unmasked = vec![0x82, 0x01, 0x00];
        let reserved = |bit: u8| {
            let mut bytes = frame(2, true, b"x");
            bytes[0] |= bit;
            bytes
        };
        let too_long = [&[0x82, 0xFF][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
        let cases: [(Vec<u8>, u16, &str); 15] = [
            (frame(1, true, b"text"), 1003, "binary frames only"),
            (unmasked, 1002, "without a mask"),
            (reserved(0x40), 1002, "reserved bit"),
            (reserved(0x20), 1002, "reserved bit"),
            (reserved(0x10), 1002, "reserved bit"),
            (vec![0x83, 0x80, 0, 0, 0, 0], 1002, "unknown kind"),
            (vec![0x8B, 0x80, 0, 0, 0, 0], 1002, "unknown kind"),
            (too_long, 1002, "highest bit"),
            (frame(0, true, b"x"), 1002, "continuation of nothing"),
            ([frame(2, false, b"x"), frame(2, true, b"y")].concat(), 1002, "inside another"),
            (frame(9, false, b"x"), 1002, "control frame"),
            (frame(9, true, &[0; 126]), 1002, "control frame"),
            (frame(8, true, &[3]), 1002, "half a code"),
            (frame(8, true, &1005_u16.to_be_bytes()), 1002, "wrong code"),
            (frame(8, true, &[3, 0xE8, 0xFF]), 1002, "wrong code or reason"),
        ];
        for (input, code, why) in cases {
            for size in [1, input.len()] {
                let refused = decode(&input, size).unwrap_err();
                assert_eq!(u16::from(refused.code), code, "{input:02X?}");
                assert!(refused.why.contains(why), "{input:02X?}: {}", refused.why);
            }
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused() {
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..20_000 {
            let mut input = vec![0; random.random_range(1..64_usize)];
            random.fill(&mut input[..]);
            input[0] = [0x82, 0x02, 0x00, 0x89, 0x88, input[0]][random.random_range(0..6)];
            let whole = decode(&input, input.len());
            assert_eq!(decode(&input, 1), whole, "seed {seed}: {input:02X?}");
        }
    }
}
