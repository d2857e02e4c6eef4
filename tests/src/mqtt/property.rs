//! The properties of MQTT 5.0 (2.2.2): as bytes for what we send, as values in what comes back.

use anyhow::{Context, Result, bail, ensure};

use super::wire::{Reader, binary, text, variable_byte_integer};

/// Property identifiers (MQTT-5.0 2.2.2.2).
#[expect(missing_docs, reason = "each is the property of its name")]
pub mod id {
    pub const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub const AUTHENTICATION_METHOD: u8 = 0x15;
    pub const AUTHENTICATION_DATA: u8 = 0x16;
    pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub const RESPONSE_INFORMATION: u8 = 0x1A;
    pub const SERVER_REFERENCE: u8 = 0x1C;
    pub const REASON_STRING: u8 = 0x1F;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const MAXIMUM_QOS: u8 = 0x24;
    pub const RETAIN_AVAILABLE: u8 = 0x25;
    pub const USER_PROPERTY: u8 = 0x26;
    pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub const SUBSCRIPTION_IDENTIFIERS_AVAILABLE: u8 = 0x29;
    pub const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;
}

/// Every identifier of the standard with a legal value, as it is written.
pub fn every() -> Vec<(u8, Vec<u8>)> {
    let all = [
        byte(id::PAYLOAD_FORMAT_INDICATOR, 1),
        four(id::MESSAGE_EXPIRY_INTERVAL, 60),
        string(id::CONTENT_TYPE, "text/plain"),
        string(id::RESPONSE_TOPIC, "answers/here"),
        data(id::CORRELATION_DATA, b"\x00\xFFdata"),
        subscription_identifier(7),
        four(id::SESSION_EXPIRY_INTERVAL, 0),
        string(id::ASSIGNED_CLIENT_IDENTIFIER, "somebody"),
        two(id::SERVER_KEEP_ALIVE, 30),
        string(id::AUTHENTICATION_METHOD, "NO-SUCH-METHOD"),
        data(id::AUTHENTICATION_DATA, b"secret"),
        byte(id::REQUEST_PROBLEM_INFORMATION, 1),
        four(id::WILL_DELAY_INTERVAL, 0),
        byte(id::REQUEST_RESPONSE_INFORMATION, 0),
        string(id::RESPONSE_INFORMATION, "information"),
        string(id::SERVER_REFERENCE, "elsewhere"),
        string(id::REASON_STRING, "because"),
        two(id::RECEIVE_MAXIMUM, 10),
        two(id::TOPIC_ALIAS_MAXIMUM, 0),
        two(id::TOPIC_ALIAS, 1),
        byte(id::MAXIMUM_QOS, 1),
        byte(id::RETAIN_AVAILABLE, 1),
        user("name", "value"),
        four(id::MAXIMUM_PACKET_SIZE, 100_000),
        byte(id::WILDCARD_SUBSCRIPTION_AVAILABLE, 1),
        byte(id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE, 1),
        byte(id::SHARED_SUBSCRIPTION_AVAILABLE, 1),
    ];
    all.into_iter().map(|bytes| (bytes.first().copied().unwrap_or_default(), bytes)).collect()
}

/// A property with a value of one byte.
pub fn byte(identifier: u8, value: u8) -> Vec<u8> {
    vec![identifier, value]
}

/// A property with a two byte integer.
pub fn two(identifier: u8, value: u16) -> Vec<u8> {
    [&[identifier][..], &value.to_be_bytes()].concat()
}

/// A property with a four byte integer.
pub fn four(identifier: u8, value: u32) -> Vec<u8> {
    [&[identifier][..], &value.to_be_bytes()].concat()
}

/// A property with a string.
pub fn string(identifier: u8, value: &str) -> Vec<u8> {
    [&[identifier][..], &text(value)].concat()
}

/// A property with binary data, or with a string that is not one.
pub fn data(identifier: u8, value: &[u8]) -> Vec<u8> {
    [&[identifier][..], &binary(value)].concat()
}

/// A subscription identifier.
pub fn subscription_identifier(value: u32) -> Vec<u8> {
    [&[id::SUBSCRIPTION_IDENTIFIER][..], &variable_byte_integer(value)].concat()
}

/// A user property.
pub fn user(name: &str, value: &str) -> Vec<u8> {
    [&[id::USER_PROPERTY][..], &text(name), &text(value)].concat()
}

/// Properties behind their length.
pub fn section(properties: &[Vec<u8>]) -> Vec<u8> {
    let all = properties.concat();
    [variable_byte_integer(all.len() as u32), all].concat()
}

/// The value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Integers of all widths.
    Number(u32),
    /// Strings and binary data.
    Bytes(Vec<u8>),
    /// Name and value of a user property.
    Pair(Vec<u8>, Vec<u8>),
}

/// A property that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Identifier.
    pub id: u8,
    /// Value.
    pub value: Value,
}

/// Reads length and properties, each of which must be in `allowed` and be there once: only user properties
/// repeat, and subscription identifiers in a PUBLISH.
pub fn read(reader: &mut Reader<'_>, allowed: &[u8], repeats: bool) -> Result<Vec<Property>> {
    let length = reader.variable_byte_integer().context("the property length")?;
    let mut section = Reader::new(reader.take(length as usize).context("the properties")?);
    let mut found: Vec<Property> = Vec::new();
    while !section.is_empty() {
        let id = section.u8()?;
        ensure!(allowed.contains(&id) || id == id::USER_PROPERTY, "property 0x{id:02x} may not be there");
        let again = found.iter().any(|known| known.id == id);
        let may_repeat = id == id::USER_PROPERTY || (repeats && id == id::SUBSCRIPTION_IDENTIFIER);
        ensure!(!again || may_repeat, "property 0x{id:02x} is there twice");
        let value = match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2A => {
                let value = section.u8()?;
                ensure!(value < 2, "property 0x{id:02x} is {value}, neither 0 nor 1");
                Value::Number(value.into())
            }
            0x13 | 0x21..=0x23 => Value::Number(section.u16()?.into()),
            0x02 | 0x11 | 0x18 | 0x27 => Value::Number(section.u32()?),
            0x0B => Value::Number(section.variable_byte_integer()?),
            0x03 | 0x08 | 0x12 | 0x15 | 0x1A | 0x1C | 0x1F => Value::Bytes(section.text()?.into()),
            0x09 | 0x16 => Value::Bytes(section.binary()?.to_vec()),
            0x26 => Value::Pair(section.text()?.into(), section.text()?.into()),
            _ => bail!("property 0x{id:02x} does not exist"),
        };
        found.push(Property { id, value });
    }
    Ok(found)
}

/// Questions about a list of properties.
pub trait Properties {
    /// The number of the first with this identifier.
    fn number(&self, id: u8) -> Option<u32>;
    /// All numbers with this identifier, in order.
    fn numbers(&self, id: u8) -> Vec<u32>;
    /// The bytes of the first with this identifier.
    fn bytes(&self, id: u8) -> Option<&[u8]>;
    /// The user properties, in order.
    fn user(&self) -> Vec<(String, String)>;
}

impl Properties for [Property] {
    fn number(&self, id: u8) -> Option<u32> {
        self.numbers(id).first().copied()
    }

    fn numbers(&self, id: u8) -> Vec<u32> {
        let number = |property: &Property| match property.value {
            Value::Number(number) if property.id == id => Some(number),
            _ => None,
        };
        self.iter().filter_map(number).collect()
    }

    fn bytes(&self, id: u8) -> Option<&[u8]> {
        self.iter().find_map(|property| match &property.value {
            Value::Bytes(bytes) if property.id == id => Some(&bytes[..]),
            _ => None,
        })
    }

    fn user(&self) -> Vec<(String, String)> {
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let pair = |property: &Property| match &property.value {
            Value::Pair(name, value) => Some((words(name), words(value))),
            _ => None,
        };
        self.iter().filter_map(pair).collect()
    }
}
