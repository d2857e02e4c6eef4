//! Decodes one packet at a time from the front of a read buffer.
//!
//! Invariants:
//! * A decoded packet borrows from the input and allocates only lists whose entries are there.
//! * What can be told from the fixed header (type, flags, length) is refused before the rest arrives, so
//!   that no memory is held for a packet that will not be accepted.
//! * A prefix of a legal packet is always [`Decoded::Incomplete`].
//! * Every illegal packet is refused with the reason code that the standard names. Where it names none: a
//!   packet that cannot be parsed is malformed (0x81), one that can and is not allowed is a protocol error
//!   (0x82), by the definitions of MQTT-5.0 1.2.
//!
//! MQTT 3.1 is held to its own text, which disregards some fields that 3.1.1 forbids. Client identifiers of
//! more than 23 bytes are accepted there, as 3.1.1 lets a server do.

mod acknowledge;
mod connect;
mod publish;
mod session;
mod subscribe;

use super::error::{DecodeError, malformed, protocol};
use super::reader::{Reader, VariableByteInteger};
use super::{Packet, QoS, ReasonCode, Version, topic};

/// Which end of the connection decodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// We are the server: the packets come from a client.
    #[default]
    Server,
    /// We are a client: the packets come from a server.
    Client,
}

/// Limits and context for decoding one direction of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoder {
    /// The version the connection speaks. A server leaves it `None` until it has seen the CONNECT and then
    /// sets it to the version named there; a client sets it before it connects.
    pub version: Option<Version>,
    /// Which end we are.
    pub role: Role,
    /// Largest packet in bytes, fixed header included (MQTT-5.0 3.1.2.11.4, 3.2.2.3.6).
    pub max_packet_size: u32,
    /// Most levels of a topic name or filter.
    pub max_topic_levels: u16,
}

/// The largest packet that MQTT can express, in bytes: fixed header and 268,435,455 more.
pub const MAX_PACKET_SIZE: u32 = 268_435_460;

/// Content at the front of the input.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded<'a> {
    /// Not a whole packet yet.
    Incomplete {
        /// How many bytes the input must have for the next step, always more than it has: the length of
        /// the packet once its fixed header is there.
        needed: usize,
    },
    /// A packet.
    Packet {
        /// The packet, borrowing from the input.
        packet: Packet<'a>,
        /// Its length: where the next one begins.
        consumed: usize,
    },
}

/// Control packet types (MQTT-5.0 2.1.2).
mod kind {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const CONNACK: u8 = 2;
    pub(super) const PUBLISH: u8 = 3;
    pub(super) const PUBACK: u8 = 4;
    pub(super) const PUBREC: u8 = 5;
    pub(super) const PUBREL: u8 = 6;
    pub(super) const PUBCOMP: u8 = 7;
    pub(super) const SUBSCRIBE: u8 = 8;
    pub(super) const SUBACK: u8 = 9;
    pub(super) const UNSUBSCRIBE: u8 = 10;
    pub(super) const UNSUBACK: u8 = 11;
    pub(super) const PINGREQ: u8 = 12;
    pub(super) const PINGRESP: u8 = 13;
    pub(super) const DISCONNECT: u8 = 14;
    pub(super) const AUTH: u8 = 15;
}

/// A whole packet, its fixed header read and checked.
struct Frame<'a> {
    first: u8,
    body: &'a [u8],
    consumed: usize,
    /// The remaining length has its shortest form.
    minimal: bool,
}

impl Decoder {
    /// A decoder for `role` that takes packets up to `max_packet_size` bytes and topics of
    /// [`topic::DEFAULT_MAX_LEVELS`] levels.
    pub fn new(role: Role, max_packet_size: u32) -> Self {
        Self { version: None, role, max_packet_size, max_topic_levels: topic::DEFAULT_MAX_LEVELS }
    }

    /// Decodes the packet at the front of `input`.
    ///
    /// # Errors
    /// The packet is illegal or larger than allowed: the connection must be closed (MQTT-5.0 4.13).
    #[inline]
    pub fn decode<'a>(&self, input: &'a [u8]) -> Result<Decoded<'a>, DecodeError> {
        let known = |error: DecodeError| error.in_version(self.version);
        let frame = match self.frame(input).map_err(known)? {
            Ok(frame) => frame,
            Err(needed) => return Ok(Decoded::Incomplete { needed }),
        };
        let Frame { first, body, consumed, .. } = frame;
        let packet = match self.version {
            Some(version) if first >> 4 == kind::PUBLISH => {
                Packet::Publish(self.publish(first, body, version).map_err(known)?)
            }
            _ => self.decode_other(&frame).map_err(known)?,
        };
        Ok(Decoded::Packet { packet, consumed })
    }

    /// The packet at the front of `input`, or how many bytes it takes to know more.
    #[inline]
    fn frame(self, input: &[u8]) -> Result<Result<Frame<'_>, usize>, DecodeError> {
        let Some((&first, behind)) = input.split_first() else {
            return Ok(Err(2));
        };
        self.check_first_byte(first)?;
        let (remaining, length, minimal) = match VariableByteInteger::read(behind) {
            VariableByteInteger::Complete { value, length, minimal } => (value, length, minimal),
            VariableByteInteger::Incomplete => return Ok(Err(input.len() + 1)),
            VariableByteInteger::TooLong => return Err(malformed("remaining length of more than 4 bytes")),
        };
        let header = 1 + length;
        let consumed = header + remaining as usize;
        if consumed > self.max_packet_size as usize {
            return Err(DecodeError::new(ReasonCode::PacketTooLarge, "packet larger than this end accepts")
                .with_value(consumed as u32));
        }
        // Before 5.0 no rule asks for the shortest form of the remaining length (MQTT-3.1.1 2.2.3).
        if !minimal && self.version == Some(Version::V5) {
            return Err(LONG_REMAINING_LENGTH.with_value(remaining));
        }
        self.check_length(first >> 4, remaining)?;
        Ok(match input.get(header..consumed) {
            Some(body) => Ok(Frame { first, body, consumed, minimal }),
            None => Err(consumed),
        })
    }

    fn decode_other<'a>(self, frame: &Frame<'a>) -> Result<Packet<'a>, DecodeError> {
        let kind = frame.first >> 4;
        let Some(version) = self.version else {
            if kind != kind::CONNECT {
                return Err(NOT_CONNECTED);
            }
            let connect = self.connect(frame.body)?;
            let flags = frame.first & 0x0F;
            if flags != 0 && connect.version != Version::V31 {
                return Err(RESERVED_FLAGS.with_value(u32::from(flags)).in_version(Some(connect.version)));
            }
            if !frame.minimal && connect.version == Version::V5 {
                return Err(LONG_REMAINING_LENGTH.in_version(Some(Version::V5)));
            }
            return Ok(Packet::Connect(Box::new(connect)));
        };
        let reader = Reader::new(frame.body);
        Ok(match kind {
            kind::CONNACK => Packet::ConnAck(Box::new(connect::connack(reader, version)?)),
            kind::PUBACK => Packet::PubAck(acknowledge::puback_or_pubrec(reader, version)?),
            kind::PUBREC => Packet::PubRec(acknowledge::puback_or_pubrec(reader, version)?),
            kind::PUBREL => Packet::PubRel(acknowledge::pubrel_or_pubcomp(reader, version)?),
            kind::PUBCOMP => Packet::PubComp(acknowledge::pubrel_or_pubcomp(reader, version)?),
            kind::SUBSCRIBE => Packet::Subscribe(self.subscribe(reader, version)?),
            kind::SUBACK => Packet::SubAck(subscribe::suback(reader, version)?),
            kind::UNSUBSCRIBE => Packet::Unsubscribe(self.unsubscribe(reader, version)?),
            kind::UNSUBACK => Packet::UnsubAck(subscribe::unsuback(reader, version)?),
            kind::PINGREQ => Packet::PingReq,
            kind::PINGRESP => Packet::PingResp,
            kind::DISCONNECT => Packet::Disconnect(session::disconnect(reader, version, self.role)?),
            kind::AUTH => Packet::Auth(session::auth(reader, self.role)?),
            _ => return Err(RESERVED_TYPE),
        })
    }

    /// Type, flags and direction (MQTT-5.0 2.1.2, 2.1.3).
    #[inline]
    fn check_first_byte(self, first: u8) -> Result<(), DecodeError> {
        let (kind, flags) = (first >> 4, first & 0x0F);
        if kind != kind::PUBLISH {
            return self.check_other_first_byte(kind, flags);
        }
        if self.version.is_none() {
            return Err(NOT_CONNECTED);
        }
        if flags & 0b0110 == 0b0110 {
            return Err(malformed("PUBLISH with QoS 3: must be 0, 1 or 2"));
        }
        if flags & 0b1110 == 0b1000 {
            return Err(malformed("PUBLISH with DUP and QoS 0: DUP needs QoS 1 or 2"));
        }
        Ok(())
    }

    fn check_other_first_byte(self, kind: u8, flags: u8) -> Result<(), DecodeError> {
        let expected = match kind {
            0 => return Err(RESERVED_TYPE),
            kind::AUTH if !matches!(self.version, Some(Version::V5) | None) => return Err(RESERVED_TYPE),
            kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE => 0b0010,
            _ => 0,
        };
        let ignored = match (self.version, kind) {
            // Which version it is stands behind the fixed header: see `Decoder::connect`.
            (None, kind::CONNECT) => 0b1111,
            // MQTT 3.1 does not use these flags, marks re-deliveries of three kinds too, and forbids no value
            // (MQTT-3.1 2.1).
            (Some(Version::V31), _) if expected == 0 => 0b1111,
            (Some(Version::V31), _) => 0b1001,
            _ => 0,
        };
        if flags & !ignored != expected & !ignored {
            return Err(RESERVED_FLAGS.with_value(u32::from(flags)));
        }
        match (self.role, kind) {
            (Role::Server, kind::CONNACK | kind::SUBACK | kind::UNSUBACK | kind::PINGRESP) => {
                Err(protocol("packet that only a server sends").with_value(u32::from(kind)))
            }
            (Role::Client, kind::CONNECT | kind::SUBSCRIBE | kind::UNSUBSCRIBE | kind::PINGREQ) => {
                Err(protocol("packet that only a client sends").with_value(u32::from(kind)))
            }
            (Role::Client, kind::DISCONNECT) if self.version != Some(Version::V5) => {
                Err(protocol("DISCONNECT from a server, which exists from MQTT 5.0 on"))
            }
            (_, kind::CONNECT) if self.version.is_some() => {
                Err(protocol("a second CONNECT on the same connection"))
            }
            (_, kind::CONNECT) => Ok(()),
            _ if self.version.is_none() => Err(NOT_CONNECTED),
            _ => Ok(()),
        }
    }

    /// Packets of a fixed length are refused for another one before their body arrives.
    #[inline]
    fn check_length(self, kind: u8, remaining: u32) -> Result<(), DecodeError> {
        let expected = match kind {
            kind::PUBLISH | kind::CONNECT | kind::SUBSCRIBE | kind::UNSUBSCRIBE | kind::SUBACK => {
                return Ok(());
            }
            kind::PINGREQ | kind::PINGRESP => 0,
            _ if self.version == Some(Version::V5) => return Ok(()),
            kind::DISCONNECT => 0,
            _ => 2,
        };
        if remaining == expected {
            return Ok(());
        }
        Err(malformed("remaining length that this packet cannot have").with_value(remaining))
    }

    /// A topic name of a publication.
    #[inline]
    fn check_topic_name(self, name: &str) -> Result<(), DecodeError> {
        topic::validate_topic_name(name, self.max_topic_levels).map_err(|error| match error {
            topic::TopicError::Null => malformed("topic name with U+0000"),
            topic::TopicError::Empty => {
                DecodeError::new(ReasonCode::TopicNameInvalid, "empty topic name: at least one character")
            }
            topic::TopicError::TooManyLevels { levels, .. } => {
                DecodeError::new(ReasonCode::TopicNameInvalid, "topic name with more levels than accepted")
                    .with_value(levels as u32)
            }
            _ => DecodeError::new(ReasonCode::TopicNameInvalid, "topic name with a wildcard"),
        })
    }

    /// A topic filter of a subscription.
    fn check_topic_filter(self, filter: &str, version: Version) -> Result<(), DecodeError> {
        let checked = match version {
            Version::V5 => topic::validate_subscription(filter, self.max_topic_levels),
            Version::V31 | Version::V311 => topic::validate_topic_filter(filter, self.max_topic_levels),
        };
        let invalid = |what| DecodeError::new(ReasonCode::TopicFilterInvalid, what);
        checked.map_err(|error| match error {
            topic::TopicError::Null => malformed("topic filter with U+0000"),
            topic::TopicError::Empty => invalid("empty topic filter: at least one character"),
            topic::TopicError::TooManyLevels { levels, .. } => {
                invalid("topic filter with more levels than accepted").with_value(levels as u32)
            }
            topic::TopicError::MisplacedMultiLevel => invalid("`#` that is not the whole last level"),
            topic::TopicError::MalformedShare => {
                invalid("shared subscription that is not $share/NAME/FILTER")
            }
            _ => invalid("`+` that is not a whole level"),
        })
    }
}

const NOT_CONNECTED: DecodeError = protocol("the first packet must be CONNECT");
const RESERVED_FLAGS: DecodeError = malformed("reserved flags of the fixed header are not as listed");
const RESERVED_TYPE: DecodeError = malformed("reserved control packet type");
const LONG_REMAINING_LENGTH: DecodeError = malformed("remaining length with more bytes than it needs");

fn qos(bits: u8) -> Option<QoS> {
    match bits {
        0 => Some(QoS::AtMostOnce),
        1 => Some(QoS::AtLeastOnce),
        2 => Some(QoS::ExactlyOnce),
        _ => None,
    }
}

/// A reason code that the packet may carry. A value that the packet does not list is a protocol error:
/// the byte can be read and is not allowed.
fn reason(reader: &mut Reader<'_>, allowed: fn(ReasonCode) -> bool) -> Result<ReasonCode, DecodeError> {
    let value = reader.u8()?;
    match ReasonCode::from_u8(value) {
        Some(reason) if allowed(reason) => Ok(reason),
        _ => Err(protocol("reason code that this packet does not have").with_value(u32::from(value))),
    }
}

/// A property that the section let through and the packet has no place for.
const UNEXPECTED_PROPERTY: DecodeError = malformed("property that this packet may not carry");
