//! Writes packets by hand, legal or not, with as little help as possible.

use causeway_protocol::mqtt::{DecodeError, Decoded, Decoder, Packet, Role, Version};

/// First byte, remaining length in its shortest form, body.
pub(crate) fn frame(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut bytes = vec![first];
    bytes.extend(variable(body.len()));
    bytes.extend(body);
    bytes
}

/// A variable byte integer (MQTT-5.0 1.5.5).
pub(crate) fn variable(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let digit = (value % 128) as u8;
        value /= 128;
        if value == 0 {
            bytes.push(digit);
            return bytes;
        }
        bytes.push(digit | 128);
    }
}

/// A string or binary field with its length.
pub(crate) fn field(content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut bytes = u16::try_from(content.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(content);
    bytes
}

/// Property length and the given properties.
pub(crate) fn properties(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut bytes = variable(body.len());
    bytes.extend(body);
    bytes
}

/// A property of any type: identifier and value bytes.
pub(crate) fn property(identifier: u8, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![identifier];
    bytes.extend(value.as_ref());
    bytes
}

/// A user property.
pub(crate) fn user(name: &str, value: &str) -> Vec<u8> {
    property(0x26, [field(name), field(value)].concat())
}

pub(crate) fn decoder(version: Option<Version>, role: Role) -> Decoder {
    let mut decoder = Decoder::new(role, 1024 * 1024);
    decoder.version = version;
    decoder
}

/// Decodes exactly one packet.
pub(crate) fn decode(version: Option<Version>, role: Role, bytes: &[u8]) -> Result<Packet<'_>, DecodeError> {
    match decoder(version, role).decode(bytes)? {
        Decoded::Packet { packet, consumed } => {
            assert_eq!(consumed, bytes.len(), "one packet, nothing left: {bytes:02x?}");
            Ok(packet)
        }
        Decoded::Incomplete { needed } => {
            panic!("{needed} bytes needed, {} are all: {bytes:02x?}", bytes.len())
        }
    }
}
