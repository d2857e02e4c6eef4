//! Packets that a server sends, taken apart to the letter: a wrong flag or a property in the wrong place
//! fails the case that saw it.

use anyhow::{Context, Result, bail, ensure};

use super::{
    property::{self, Property, id},
    wire::{Version, first, packet},
};

/// Reads fields one by one.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Over these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// So many bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .with_context(|| format!("{length} bytes wanted, {} left", self.0.len()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, width: usize) -> Result<u32> {
        Ok(self.take(width)?.iter().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        self.number(1).map(|number| number as u8)
    }

    /// A two byte integer.
    pub fn u16(&mut self) -> Result<u16> {
        self.number(2).map(|number| number as u16)
    }

    /// A four byte integer.
    pub fn u32(&mut self) -> Result<u32> {
        self.number(4)
    }

    /// A variable byte integer, which must have its shortest form.
    pub fn variable_byte_integer(&mut self) -> Result<u32> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                ensure!(shift == 0 || byte != 0, "a variable byte integer with more bytes than it needs");
                return Ok(value);
            }
        }
        bail!("a variable byte integer of more than 4 bytes")
    }

    /// Binary data.
    pub fn binary(&mut self) -> Result<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// A string without U+0000.
    pub fn text(&mut self) -> Result<&'a str> {
        let text = std::str::from_utf8(self.binary()?).context("a string that is not UTF-8")?;
        ensure!(!text.contains('\0'), "a string with U+0000");
        Ok(text)
    }

    /// Nothing may be left.
    pub fn finish(&self) -> Result<()> {
        ensure!(self.0.is_empty(), "{} bytes are left behind the packet", self.0.len());
        Ok(())
    }
}

/// A packet as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Type and flags.
    pub first: u8,
    /// Behind the fixed header.
    pub body: Vec<u8>,
}

/// CONNACK.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields of the standard")]
pub struct ConnAck {
    pub session_present: bool,
    pub reason: u8,
    pub properties: Vec<Property>,
}

/// A PUBLISH that came.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields of the standard")]
pub struct Published {
    pub dup: bool,
    pub qos: u8,
    pub retain: bool,
    pub topic: String,
    pub packet_identifier: u16,
    pub properties: Vec<Property>,
    pub payload: Vec<u8>,
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP, and DISCONNECT and AUTH with identifier 0.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields of the standard")]
pub struct Answer {
    pub first: u8,
    pub packet_identifier: u16,
    pub reason: u8,
    pub properties: Vec<Property>,
}

/// SUBACK and UNSUBACK.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields of the standard")]
pub struct SubAck {
    pub packet_identifier: u16,
    pub reasons: Vec<u8>,
    pub properties: Vec<Property>,
}

impl Packet {
    /// Takes a whole packet from the front of `input`, where there is one.
    pub fn take(input: &mut Vec<u8>) -> Result<Option<Self>> {
        let (mut length, mut header) = (0_usize, 1);
        loop {
            let Some(&byte) = input.get(header) else { return Ok(None) };
            length |= usize::from(byte & 0x7F) << (7 * (header - 1));
            header += 1;
            if byte < 0x80 {
                ensure!(header == 2 || byte != 0, "a remaining length with more bytes than it needs");
                break;
            }
            ensure!(header < 5, "a remaining length of more than 4 bytes");
        }
        if input.len() < header + length {
            return Ok(None);
        }
        let rest = input.split_off(header + length);
        let packet = Self { first: input[0], body: input[header..].to_vec() };
        *input = rest;
        Ok(Some(packet))
    }

    /// As it came.
    pub fn bytes(&self) -> Vec<u8> {
        packet(self.first, &[&self.body])
    }

    fn must_be(&self, first: u8, name: &str) -> Result<()> {
        ensure!(self.first == first, "{name} expected, got {self}");
        Ok(())
    }

    /// Reads it as CONNACK.
    pub fn connack(&self, version: Version) -> Result<ConnAck> {
        self.must_be(first::CONNACK, "CONNACK")?;
        let mut reader = Reader::new(&self.body);
        let flags = reader.u8()?;
        ensure!(flags < 2, "reserved flags in CONNACK: {flags:#04x}");
        let reason = reader.u8()?;
        let mut properties = Vec::new();
        if version == Version::V5 {
            let allowed = [
                id::SESSION_EXPIRY_INTERVAL,
                id::RECEIVE_MAXIMUM,
                id::MAXIMUM_QOS,
                id::RETAIN_AVAILABLE,
                id::MAXIMUM_PACKET_SIZE,
                id::ASSIGNED_CLIENT_IDENTIFIER,
                id::TOPIC_ALIAS_MAXIMUM,
                id::REASON_STRING,
                id::WILDCARD_SUBSCRIPTION_AVAILABLE,
                id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE,
                id::SHARED_SUBSCRIPTION_AVAILABLE,
                id::SERVER_KEEP_ALIVE,
                id::RESPONSE_INFORMATION,
                id::SERVER_REFERENCE,
                id::AUTHENTICATION_METHOD,
                id::AUTHENTICATION_DATA,
            ];
            properties = property::read(&mut reader, &allowed, false)?;
            let known = matches!(reason, 0 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F);
            ensure!(known, "CONNACK has no reason code {reason:#04x}");
        } else {
            ensure!(reason < 6, "CONNACK has no return code {reason}");
        }
        ensure!(reason == 0 || flags == 0, "a CONNACK with a failure and session present");
        reader.finish()?;
        Ok(ConnAck { session_present: flags == 1, reason, properties })
    }

    /// Reads it as PUBLISH.
    pub fn publish(&self, version: Version) -> Result<Published> {
        ensure!(self.first >> 4 == 3, "PUBLISH expected, got {self}");
        let mut reader = Reader::new(&self.body);
        let qos = self.first >> 1 & 3;
        let dup = self.first & 8 != 0;
        ensure!(qos < 3, "a PUBLISH with QoS 3");
        ensure!(!dup || qos > 0, "a PUBLISH with DUP and QoS 0");
        let topic = reader.text()?.to_owned();
        ensure!(!topic.contains(['+', '#']), "a PUBLISH with a wildcard in its topic name");
        let packet_identifier = if qos > 0 { reader.u16()? } else { 0 };
        ensure!(qos == 0 || packet_identifier > 0, "a PUBLISH with packet identifier 0");
        let mut properties = Vec::new();
        if version == Version::V5 {
            let allowed = [
                id::PAYLOAD_FORMAT_INDICATOR,
                id::MESSAGE_EXPIRY_INTERVAL,
                id::TOPIC_ALIAS,
                id::RESPONSE_TOPIC,
                id::CORRELATION_DATA,
                id::SUBSCRIPTION_IDENTIFIER,
                id::CONTENT_TYPE,
            ];
            properties = property::read(&mut reader, &allowed, true)?;
        }
        let aliased = properties.iter().any(|property| property.id == id::TOPIC_ALIAS);
        ensure!(!topic.is_empty() || aliased, "a PUBLISH without a topic name");
        let payload = reader.rest().to_vec();
        Ok(Published { dup, qos, retain: self.first & 1 != 0, topic, packet_identifier, properties, payload })
    }

    /// Reads it as an acknowledgement of this type.
    pub fn ack(&self, version: Version, first: u8) -> Result<Answer> {
        self.must_be(first, "an acknowledgement")?;
        let mut reader = Reader::new(&self.body);
        let packet_identifier = reader.u16()?;
        ensure!(packet_identifier > 0, "an acknowledgement with packet identifier 0");
        let (mut reason, mut properties) = (0, Vec::new());
        if version == Version::V5 && !reader.is_empty() {
            reason = reader.u8()?;
            let known = match first {
                first::PUBACK | first::PUBREC => {
                    matches!(reason, 0 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
                }
                _ => matches!(reason, 0 | 0x92),
            };
            ensure!(known, "this acknowledgement has no reason code {reason:#04x}");
            if !reader.is_empty() {
                properties = property::read(&mut reader, &[id::REASON_STRING], false)?;
            }
        }
        reader.finish()?;
        Ok(Answer { first, packet_identifier, reason, properties })
    }

    fn sub_or_unsub_ack(&self, version: Version) -> Result<SubAck> {
        let mut reader = Reader::new(&self.body);
        let packet_identifier = reader.u16()?;
        let mut properties = Vec::new();
        if version == Version::V5 {
            properties = property::read(&mut reader, &[id::REASON_STRING], false)?;
        }
        Ok(SubAck { packet_identifier, reasons: reader.rest().to_vec(), properties })
    }

    /// Reads it as SUBACK.
    pub fn suback(&self, version: Version) -> Result<SubAck> {
        self.must_be(first::SUBACK, "SUBACK")?;
        let suback = self.sub_or_unsub_ack(version)?;
        for &reason in &suback.reasons {
            let known = match version {
                Version::V31 => reason < 3,
                Version::V311 => matches!(reason, 0..=2 | 0x80),
                Version::V5 => {
                    matches!(reason, 0..=2 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2)
                }
            };
            ensure!(known, "SUBACK has no reason code {reason:#04x}");
        }
        Ok(suback)
    }

    /// Reads it as UNSUBACK.
    pub fn unsuback(&self, version: Version) -> Result<SubAck> {
        self.must_be(first::UNSUBACK, "UNSUBACK")?;
        let unsuback = self.sub_or_unsub_ack(version)?;
        let known = |reason: &u8| matches!(reason, 0 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91);
        ensure!(unsuback.reasons.iter().all(known), "UNSUBACK with a reason code it has not: {self}");
        ensure!(version == Version::V5 || unsuback.reasons.is_empty(), "bytes behind an UNSUBACK");
        Ok(unsuback)
    }

    fn reason_and_properties(&self, allowed: &[u8]) -> Result<Answer> {
        let mut reader = Reader::new(&self.body);
        let (mut reason, mut properties) = (0, Vec::new());
        if !reader.is_empty() {
            reason = reader.u8()?;
            if !reader.is_empty() {
                properties = property::read(&mut reader, allowed, false)?;
            }
        }
        reader.finish()?;
        Ok(Answer { first: self.first, packet_identifier: 0, reason, properties })
    }

    /// Reads it as a DISCONNECT of a server, which only 5.0 has.
    pub fn disconnect(&self) -> Result<Answer> {
        self.must_be(first::DISCONNECT, "DISCONNECT")?;
        let answer = self.reason_and_properties(&[id::REASON_STRING, id::SERVER_REFERENCE])?;
        let known = matches!(answer.reason, 0 | 0x80..=0x83 | 0x87 | 0x89 | 0x8B | 0x8D..=0x90 | 0x93..=0xA2);
        ensure!(known, "a server's DISCONNECT has no reason code {:#04x}", answer.reason);
        Ok(answer)
    }

    /// Reads it as AUTH.
    pub fn auth(&self) -> Result<Answer> {
        self.must_be(first::AUTH, "AUTH")?;
        self.reason_and_properties(&[id::AUTHENTICATION_METHOD, id::AUTHENTICATION_DATA, id::REASON_STRING])
    }
}

/// Bytes for people; what is long is cut.
pub fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 80;
    let mut words: Vec<String> = bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() > SHOWN {
        words.push(format!("... ({} bytes)", bytes.len()));
    }
    words.join(" ")
}

impl std::fmt::Display for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [
            "?",
            "CONNECT",
            "CONNACK",
            "PUBLISH",
            "PUBACK",
            "PUBREC",
            "PUBREL",
            "PUBCOMP",
            "SUBSCRIBE",
            "SUBACK",
            "UNSUBSCRIBE",
            "UNSUBACK",
            "PINGREQ",
            "PINGRESP",
            "DISCONNECT",
            "AUTH",
        ];
        let name = names.get(usize::from(self.first >> 4)).copied().unwrap_or_default();
        write!(f, "{name} [{}]", hex(&self.bytes()))
    }
}
