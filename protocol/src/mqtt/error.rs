//! Refusals of decoding and encoding.

use super::{ReasonCode, Version};

/// A packet that must not be accepted. The connection it came from has to be closed, after a CONNACK or
/// DISCONNECT with [`reason`](Self::reason) where the version has one (MQTT-5.0 4.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}{} (reason 0x{:02x})", FoundValue(*value), *reason as u8)]
pub struct DecodeError {
    /// The reason code that the standard names for it.
    pub reason: ReasonCode,
    /// Fault and remedy.
    pub what: &'static str,
    /// The offending value, where it is a number.
    pub value: Option<u32>,
    /// The version the packet is written in, as far as it was known: the form in which an answer is
    /// understood. For an unsupported protocol level the nearest version.
    pub version: Option<Version>,
}

struct FoundValue(Option<u32>);

impl std::fmt::Display for FoundValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(value) => write!(f, ", found {value}"),
            None => Ok(()),
        }
    }
}

impl DecodeError {
    #[cold]
    pub(super) const fn new(reason: ReasonCode, what: &'static str) -> Self {
        Self { reason, what, value: None, version: None }
    }

    pub(super) const fn with_value(self, value: u32) -> Self {
        Self { value: Some(value), ..self }
    }

    /// Notes the version unless one is noted already.
    pub(super) const fn in_version(self, version: Option<Version>) -> Self {
        match self.version {
            Some(_) => self,
            None => Self { version, ..self },
        }
    }
}

/// The packet cannot be parsed (MQTT-5.0 1.2, 0x81).
#[cold]
pub(super) const fn malformed(what: &'static str) -> DecodeError {
    DecodeError::new(ReasonCode::MalformedPacket, what)
}

/// The packet can be parsed and holds what the protocol does not allow (MQTT-5.0 1.2, 0x82).
#[cold]
pub(super) const fn protocol(what: &'static str) -> DecodeError {
    DecodeError::new(ReasonCode::ProtocolError, what)
}

/// A packet that cannot be written. Nothing was written then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A string or binary field is longer than its two-byte length can say (MQTT-5.0 1.5.4, 1.5.6).
    #[error("{field} of {length} bytes is too long: at most 65535")]
    FieldTooLong {
        /// The field.
        field: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A string with U+0000 (MQTT-1.5.4-2).
    #[error("{field} contains U+0000, which no string may")]
    NullCharacter {
        /// The field.
        field: &'static str,
    },
    /// The packet is larger than the receiver's maximum, or than MQTT can express (MQTT-5.0 2.1.4).
    #[error("packet of {length} bytes is too large: at most {maximum}")]
    PacketTooLarge {
        /// Its length in bytes, fixed header included.
        length: usize,
        /// The limit.
        maximum: usize,
    },
    /// A packet identifier of 0 where one is needed (MQTT-5.0 2.2.1).
    #[error("packet identifier 0: must be 1 to 65535")]
    PacketIdentifierZero,
    /// SUBSCRIBE, SUBACK, UNSUBSCRIBE or UNSUBACK without an entry (MQTT-5.0 3.8.3).
    #[error("{packet} without an entry: at least one is needed")]
    Empty {
        /// The packet.
        packet: &'static str,
    },
    /// An empty topic without a topic alias (MQTT-5.0 3.3.2.1).
    #[error("empty topic name: at least one character, or in 5.0 a topic alias, is needed")]
    EmptyTopic,
    /// A number that the field cannot have.
    #[error("{field} {value} is not possible: must be {allowed}")]
    Value {
        /// The field.
        field: &'static str,
        /// The value.
        value: u32,
        /// Allowed values.
        allowed: &'static str,
    },
    /// The packet, or what it says, does not exist in this version.
    #[error("{what} does not exist in MQTT {version:?}")]
    NotInVersion {
        /// The packet or part.
        what: &'static str,
        /// The version asked for.
        version: Version,
    },
    /// A CONNACK reason that 3.x has no return code for: close the connection without a CONNACK
    /// (MQTT-3.1.1 3.2.2.3).
    #[error("reason {reason:?} has no CONNACK return code before MQTT 5.0: close without a CONNACK")]
    NoReturnCode {
        /// The reason.
        reason: ReasonCode,
    },
    /// A reason code that the packet cannot carry (MQTT-5.0 2.4).
    #[error("{packet} cannot carry reason {reason:?}")]
    Reason {
        /// The packet.
        packet: &'static str,
        /// The reason.
        reason: ReasonCode,
    },
    /// Authentication data without an authentication method (MQTT-5.0 3.1.2.11.10).
    #[error("authentication data without an authentication method")]
    AuthenticationDataWithoutMethod,
    /// An AUTH with content and without an authentication method (MQTT-5.0 3.15.2.2.2).
    #[error("AUTH without an authentication method")]
    AuthenticationMethodMissing,
    /// A copy of a frame that is too short to be patched.
    #[error("frame ends before its packet identifier at offset {length}")]
    FrameTooShort {
        /// Where the identifier should be.
        length: usize,
    },
}
