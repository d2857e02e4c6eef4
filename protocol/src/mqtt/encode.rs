//! Encodes packets of every version, in both directions.
//!
//! A packet is written by one description that runs twice: over a counter, which checks every field and
//! learns the lengths that MQTT wants in front, and over the buffer. So what [`Packet::encoded_len`] says
//! is what [`Packet::encode`] writes, and a packet that cannot be written leaves the buffer untouched.
//!
//! The encoder checks form (lengths, identifiers, reason codes); that strings hold no U+0000 and topics no
//! wildcard is the business of the code that let them in. [`encode_publish`] and [`encode_ack`] are the short
//! ways for what is sent per message.

mod fast;
mod packets;
mod sink;

pub use fast::{AckKind, PublishLayout, encode_ack, encode_publish, encode_publish_head};

use bytes::BytesMut;

use super::error::EncodeError;
use super::reader::MAX_VARIABLE_BYTE_INTEGER;
use super::{Packet, UserProperties, Version};
use sink::{Counter, Sink, variable_byte_integer_len};

impl Packet<'_> {
    /// Appends the packet to `out` as `version` writes it.
    ///
    /// MQTT 3.x has no way to say some things: a failure in PUBACK, PUBREC, PUBREL and PUBCOMP, the reason
    /// of a DISCONNECT and all properties are left out there, and every failure in a SUBACK is 0x80. A
    /// server that speaks 3.x has no DISCONNECT: it closes.
    ///
    /// # Errors
    /// The packet cannot be expressed; `out` is then as it was.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        let remaining = self.remaining_length(version)?;
        out.reserve(frame_len(remaining));
        out.put_u8(packets::first_byte(self));
        out.put_variable_byte_integer(remaining as u32);
        packets::write_body(self, version, out)
    }

    /// The number of bytes that [`encode`](Self::encode) would append, fixed header included.
    ///
    /// # Errors
    /// As `encode`.
    pub fn encoded_len(&self, version: Version) -> Result<usize, EncodeError> {
        self.remaining_length(version).map(frame_len)
    }

    /// As [`encode`](Self::encode), for a receiver that takes packets of at most `maximum_packet_size`
    /// bytes. Where the packet is larger, the reason string goes first and then the user properties, which
    /// the standard wants left out before the packet is (MQTT-3.2.2-19, MQTT-3.2.2-20 and their like).
    ///
    /// # Errors
    /// As `encode`, and [`EncodeError::PacketTooLarge`] where that is not enough: the packet must then not
    /// be sent at all (MQTT-3.1.2-24).
    pub fn encode_within(
        &self,
        version: Version,
        maximum_packet_size: u32,
        out: &mut BytesMut,
    ) -> Result<(), EncodeError> {
        let maximum = maximum_packet_size as usize;
        let length = self.encoded_len(version)?;
        if length <= maximum {
            return self.encode(version, out);
        }
        let mut smaller = self.clone();
        smaller.drop_reason_string();
        if smaller.encoded_len(version)? > maximum {
            smaller.drop_response_user_properties();
        }
        match smaller.encoded_len(version)? {
            fits if fits <= maximum => smaller.encode(version, out),
            length => Err(EncodeError::PacketTooLarge { length, maximum }),
        }
    }

    /// Removes what a client does not want that asked for no problem information: reason string and user
    /// properties of every packet but PUBLISH, CONNACK and DISCONNECT (MQTT-5.0 3.1.2.11.7).
    pub fn drop_problem_information(&mut self) {
        if !matches!(self, Packet::Publish(_) | Packet::ConnAck(_) | Packet::Disconnect(_)) {
            self.drop_reason_string();
            self.drop_response_user_properties();
        }
    }

    fn drop_reason_string(&mut self) {
        match self {
            Packet::ConnAck(packet) => packet.reason_string = None,
            Packet::PubAck(packet)
            | Packet::PubRec(packet)
            | Packet::PubRel(packet)
            | Packet::PubComp(packet) => packet.reason_string = None,
            Packet::SubAck(packet) | Packet::UnsubAck(packet) => packet.reason_string = None,
            Packet::Disconnect(packet) => packet.reason_string = None,
            Packet::Auth(packet) => packet.reason_string = None,
            Packet::Connect(_)
            | Packet::Publish(_)
            | Packet::Subscribe(_)
            | Packet::Unsubscribe(_)
            | Packet::PingReq
            | Packet::PingResp => {}
        }
    }

    /// User properties of the packets that answer; those of a request or a message belong to their sender.
    fn drop_response_user_properties(&mut self) {
        let none = UserProperties::default();
        match self {
            Packet::ConnAck(packet) => packet.user_properties = none,
            Packet::PubAck(packet)
            | Packet::PubRec(packet)
            | Packet::PubRel(packet)
            | Packet::PubComp(packet) => packet.user_properties = none,
            Packet::SubAck(packet) | Packet::UnsubAck(packet) => packet.user_properties = none,
            Packet::Disconnect(packet) => packet.user_properties = none,
            Packet::Auth(packet) => packet.user_properties = none,
            Packet::Connect(_)
            | Packet::Publish(_)
            | Packet::Subscribe(_)
            | Packet::Unsubscribe(_)
            | Packet::PingReq
            | Packet::PingResp => {}
        }
    }

    fn remaining_length(&self, version: Version) -> Result<usize, EncodeError> {
        let mut counter = Counter::default();
        packets::write_body(self, version, &mut counter)?;
        check_remaining_length(counter.length())
    }
}

fn check_remaining_length(remaining: usize) -> Result<usize, EncodeError> {
    if remaining > MAX_VARIABLE_BYTE_INTEGER as usize {
        let maximum = frame_len(MAX_VARIABLE_BYTE_INTEGER as usize);
        return Err(EncodeError::PacketTooLarge { length: frame_len(remaining), maximum });
    }
    Ok(remaining)
}

/// Length of a packet with this remaining length, fixed header included.
fn frame_len(remaining: usize) -> usize {
    1 + variable_byte_integer_len(remaining as u32) + remaining
}
