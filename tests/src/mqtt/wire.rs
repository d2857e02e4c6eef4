//! Packets from their parts, and back.
//!
//! What is built is legal unless the caller wants otherwise: every builder lets flags and fields be whatever a case
//! needs. What is read is held to the letter: a server that sends a wrong flag or a property in the wrong place fails
//! the case that saw it.

use anyhow::{Context, Result, bail, ensure};

use super::property::{self, Property, id};

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 3.1, "MQIsdp".
    V31,
    /// 3.1.1.
    V311,
    /// 5.0.
    V5,
}

impl Version {
    /// As it is written in the standards.
    pub fn name(self) -> &'static str {
        match self {
            Self::V31 => "3.1",
            Self::V311 => "3.1.1",
            Self::V5 => "5.0",
        }
    }

    /// The protocol level in CONNECT.
    pub fn level(self) -> u8 {
        match self {
            Self::V31 => 3,
            Self::V311 => 4,
            Self::V5 => 5,
        }
    }
}

/// First bytes of packets with the flags they must have.
#[expect(missing_docs, reason = "each is the packet of its name")]
pub mod first {
    pub const CONNECT: u8 = 0x10;
    pub const CONNACK: u8 = 0x20;
    pub const PUBLISH: u8 = 0x30;
    pub const PUBACK: u8 = 0x40;
    pub const PUBREC: u8 = 0x50;
    pub const PUBREL: u8 = 0x62;
    pub const PUBCOMP: u8 = 0x70;
    pub const SUBSCRIBE: u8 = 0x82;
    pub const SUBACK: u8 = 0x90;
    pub const UNSUBSCRIBE: u8 = 0xA2;
    pub const UNSUBACK: u8 = 0xB0;
    pub const PINGREQ: u8 = 0xC0;
    pub const PINGRESP: u8 = 0xD0;
    pub const DISCONNECT: u8 = 0xE0;
    pub const AUTH: u8 = 0xF0;
}

/// PINGREQ.
pub const PINGREQ: [u8; 2] = [0xC0, 0];
/// DISCONNECT without anything: a normal end in every version.
pub const DISCONNECT: [u8; 2] = [0xE0, 0];

/// A variable byte integer in its shortest form (MQTT-5.0 1.5.5).
pub fn variable_byte_integer(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// Binary data behind its two byte length.
pub fn binary(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u16).to_be_bytes(), data].concat()
}

/// A string behind its two byte length.
pub fn text(text: &str) -> Vec<u8> {
    binary(text.as_bytes())
}

/// A packet: first byte, remaining length, body.
pub fn packet(first: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    [&[first][..], &variable_byte_integer(body.len() as u32), &body].concat()
}

/// What a packet identifier is on the wire.
pub fn identifier(identifier: u16) -> [u8; 2] {
    identifier.to_be_bytes()
}

/// An acknowledgement (PUBACK, PUBREC, PUBREL, PUBCOMP) in its short form, which every version has.
pub fn ack(first: u8, packet_identifier: u16) -> Vec<u8> {
    packet(first, &[&identifier(packet_identifier)])
}

/// An acknowledgement of 5.0 with a reason code.
pub fn ack_with(first: u8, packet_identifier: u16, reason: u8) -> Vec<u8> {
    packet(first, &[&identifier(packet_identifier), &[reason]])
}

/// SUBSCRIBE; each filter with its options.
pub fn subscribe(version: Version, packet_identifier: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    subscribe_with(version, packet_identifier, &[], filters)
}

/// SUBSCRIBE with properties, where the version has them.
pub fn subscribe_with(
    version: Version,
    packet_identifier: u16,
    properties: &[Vec<u8>],
    filters: &[(&str, u8)],
) -> Vec<u8> {
    let filters: Vec<u8> =
        filters.iter().flat_map(|(filter, options)| [text(filter), vec![*options]].concat()).collect();
    let section = if version == Version::V5 { property::section(properties) } else { Vec::new() };
    packet(first::SUBSCRIBE, &[&identifier(packet_identifier), &section, &filters])
}

/// UNSUBSCRIBE.
pub fn unsubscribe(version: Version, packet_identifier: u16, filters: &[&str]) -> Vec<u8> {
    let filters: Vec<u8> = filters.iter().flat_map(|filter| text(filter)).collect();
    let section = if version == Version::V5 { vec![0] } else { Vec::new() };
    packet(first::UNSUBSCRIBE, &[&identifier(packet_identifier), &section, &filters])
}

/// A will (MQTT-5.0 3.1.2.5).
#[derive(Debug, Clone, Default)]
pub struct Will {
    /// Topic name.
    pub topic: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
    /// 0 to 3.
    pub qos: u8,
    /// Retain flag.
    pub retain: bool,
    /// Properties, for 5.0.
    pub properties: Vec<Vec<u8>>,
}

impl Will {
    /// A will with QoS 0.
    pub fn new(topic: &str, payload: &str) -> Self {
        Self { topic: topic.into(), payload: payload.into(), ..Self::default() }
    }
}

/// CONNECT.
#[derive(Debug, Clone)]
pub struct Connect {
    /// The version whose fields it has.
    pub version: Version,
    /// Protocol name.
    pub name: Vec<u8>,
    /// Protocol level.
    pub level: u8,
    /// Clean session, or clean start.
    pub clean: bool,
    /// Bits that are set or cleared beside what follows from the fields.
    pub flip: u8,
    /// Seconds.
    pub keep_alive: u16,
    /// Properties, for 5.0.
    pub properties: Vec<Vec<u8>>,
    /// Client identifier.
    pub client_id: Vec<u8>,
    /// Will.
    pub will: Option<Will>,
    /// User name.
    pub username: Option<Vec<u8>>,
    /// Password.
    pub password: Option<Vec<u8>>,
}

impl Connect {
    /// A clean one with a keep-alive of a minute.
    pub fn new(version: Version, client_id: &str) -> Self {
        Self {
            version,
            name: if version == Version::V31 { b"MQIsdp".to_vec() } else { b"MQTT".to_vec() },
            level: version.level(),
            clean: true,
            flip: 0,
            keep_alive: 60,
            properties: Vec::new(),
            client_id: client_id.into(),
            will: None,
            username: None,
            password: None,
        }
    }

    /// Sets the clean flag.
    #[must_use]
    pub fn clean(mut self, clean: bool) -> Self {
        self.clean = clean;
        self
    }

    /// Sets the keep-alive.
    #[must_use]
    pub fn keep_alive(mut self, seconds: u16) -> Self {
        self.keep_alive = seconds;
        self
    }

    /// Adds a property.
    #[must_use]
    pub fn with(mut self, property: Vec<u8>) -> Self {
        self.properties.push(property);
        self
    }

    /// Sets the will.
    #[must_use]
    pub fn will(mut self, will: Will) -> Self {
        self.will = Some(will);
        self
    }

    /// Inverts bits of the connect flags.
    #[must_use]
    pub fn flip(mut self, bits: u8) -> Self {
        self.flip = bits;
        self
    }

    /// Sets user name and password.
    #[must_use]
    pub fn login(mut self, username: Option<&str>, password: Option<&[u8]>) -> Self {
        self.username = username.map(Into::into);
        self.password = password.map(Into::into);
        self
    }

    /// A session that outlives its connection: clean off, and in 5.0 this expiry.
    #[must_use]
    pub fn lasting(mut self, seconds: u32) -> Self {
        self.clean = false;
        if self.version == Version::V5 {
            self = self.with(property::four(id::SESSION_EXPIRY_INTERVAL, seconds));
        }
        self
    }

    /// Everything behind the fixed header.
    pub fn body(&self) -> Vec<u8> {
        let v5 = self.version == Version::V5;
        let mut flags = u8::from(self.clean) << 1;
        if let Some(will) = &self.will {
            flags |= 0b100 | will.qos << 3 | u8::from(will.retain) << 5;
        }
        flags |= u8::from(self.password.is_some()) << 6 | u8::from(self.username.is_some()) << 7;
        let mut body = binary(&self.name);
        body.extend([self.level, flags ^ self.flip]);
        body.extend(self.keep_alive.to_be_bytes());
        if v5 {
            body.extend(property::section(&self.properties));
        }
        body.extend(binary(&self.client_id));
        if let Some(will) = &self.will {
            if v5 {
                body.extend(property::section(&will.properties));
            }
            body.extend(binary(&will.topic));
            body.extend(binary(&will.payload));
        }
        for field in [&self.username, &self.password].into_iter().flatten() {
            body.extend(binary(field));
        }
        body
    }

    /// The packet.
    pub fn bytes(&self) -> Vec<u8> {
        packet(first::CONNECT, &[&self.body()])
    }
}

/// PUBLISH.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The version whose fields it has.
    pub version: Version,
    /// DUP flag.
    pub dup: bool,
    /// 0 to 3.
    pub qos: u8,
    /// Retain flag.
    pub retain: bool,
    /// Topic name.
    pub topic: Vec<u8>,
    /// There if the QoS is not 0.
    pub packet_identifier: u16,
    /// Properties, for 5.0.
    pub properties: Vec<Vec<u8>>,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Publish {
    /// With QoS 0.
    pub fn new(version: Version, topic: &str, payload: impl AsRef<[u8]>) -> Self {
        Self {
            version,
            dup: false,
            qos: 0,
            retain: false,
            topic: topic.into(),
            packet_identifier: 0,
            properties: Vec::new(),
            payload: payload.as_ref().to_vec(),
        }
    }

    /// Sets QoS and packet identifier.
    #[must_use]
    pub fn qos(mut self, qos: u8, packet_identifier: u16) -> Self {
        (self.qos, self.packet_identifier) = (qos, packet_identifier);
        self
    }

    /// Sets the retain flag.
    #[must_use]
    pub fn retain(mut self) -> Self {
        self.retain = true;
        self
    }

    /// Sets the DUP flag.
    #[must_use]
    pub fn dup(mut self) -> Self {
        self.dup = true;
        self
    }

    /// Adds a property.
    #[must_use]
    pub fn with(mut self, property: Vec<u8>) -> Self {
        self.properties.push(property);
        self
    }

    /// The packet.
    pub fn bytes(&self) -> Vec<u8> {
        let first = first::PUBLISH | u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain);
        let id = if self.qos > 0 { identifier(self.packet_identifier).to_vec() } else { Vec::new() };
        let section =
            if self.version == Version::V5 { property::section(&self.properties) } else { Vec::new() };
        packet(first, &[&binary(&self.topic), &id, &section, &self.payload])
    }
}

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
