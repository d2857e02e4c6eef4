//! Packets from their parts; [`super::reading`] is the way back.
//!
//! What is built is legal unless the caller wants otherwise: every builder lets flags and fields be whatever
//! a case needs.

use super::property::{self, id};
pub use super::reading::{Answer, ConnAck, Packet, Published, Reader, SubAck, hex};

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
