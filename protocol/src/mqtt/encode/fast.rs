//! The short ways for what is sent per message: PUBLISH and its acknowledgements.

use bytes::{BufMut, BytesMut};

use super::super::error::EncodeError;
use super::super::{Publish, QoS, ReasonCode, Version};
use super::packets::{publish_first_byte, write_publish_head};
use super::sink::{Counter, Sink, variable_byte_integer_len};
use super::{check_remaining_length, frame_len};

/// Where a PUBLISH was written, so that it can be copied and patched for each subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishLayout {
    /// Where the frame begins in the buffer.
    pub start: usize,
    /// Where it ends in the buffer.
    pub end: usize,
    /// Where the two bytes of the packet identifier are, counted from the begin of the frame; `None` with
    /// QoS 0.
    pub packet_identifier: Option<usize>,
}

impl PublishLayout {
    /// Length of the frame in bytes.
    pub fn frame_len(&self) -> usize {
        self.end - self.start
    }

    /// Gives a copy of the frame its packet identifier. `frame` begins where the copy does; with QoS 0
    /// there is nothing to give.
    ///
    /// # Errors
    /// The identifier is 0, or the frame ends before its place.
    pub fn set_packet_identifier(&self, frame: &mut [u8], identifier: u16) -> Result<(), EncodeError> {
        let Some(at) = self.packet_identifier else {
            return Ok(());
        };
        if identifier == 0 {
            return Err(EncodeError::PacketIdentifierZero);
        }
        let Some(place) = frame.get_mut(at..at + 2) else {
            return Err(EncodeError::FrameTooShort { length: at });
        };
        place.copy_from_slice(&identifier.to_be_bytes());
        Ok(())
    }

    /// Marks a copy of a QoS 1 or 2 frame as re-delivered (MQTT-5.0 3.3.1.1).
    pub fn set_dup(&self, frame: &mut [u8]) {
        if self.packet_identifier.is_some()
            && let Some(first) = frame.first_mut()
        {
            *first |= 0b1000;
        }
    }
}

/// Appends a PUBLISH and says where it is.
///
/// A packet identifier of 0 is taken as the place for one, to be set in each copy by
/// [`PublishLayout::set_packet_identifier`]: the frame is not accepted without.
///
/// # Errors
/// The packet cannot be expressed; `out` is then as it was.
#[inline]
pub fn encode_publish(
    out: &mut BytesMut,
    version: Version,
    publish: &Publish<'_>,
) -> Result<PublishLayout, EncodeError> {
    let mut layout = encode_publish_head(out, version, publish)?;
    out.extend_from_slice(publish.payload);
    layout.end = out.len();
    Ok(layout)
}

/// Appends a PUBLISH without its payload, for those who send the payload from where it is. The length in
/// the fixed header counts it; the layout's end is that of the head. `out` has room for the payload too.
///
/// # Errors
/// As [`encode_publish`].
pub fn encode_publish_head(
    out: &mut BytesMut,
    version: Version,
    publish: &Publish<'_>,
) -> Result<PublishLayout, EncodeError> {
    let head = if version == Version::V5 && !publish.properties.is_empty() || publish.topic.is_empty() {
        let mut counter = Counter::default();
        write_publish_head(publish, version, &mut counter)?;
        counter.length()
    } else {
        2 + publish.topic.len()
            + if publish.qos == QoS::AtMostOnce { 0 } else { 2 }
            + usize::from(version == Version::V5)
    };
    if publish.topic.len() > usize::from(u16::MAX) {
        return Err(EncodeError::FieldTooLong { field: "topic name", length: publish.topic.len() });
    }
    let remaining = check_remaining_length(head + publish.payload.len())?;
    let start = out.len();
    out.reserve(frame_len(remaining));
    Sink::put_u8(out, publish_first_byte(publish));
    out.put_variable_byte_integer(remaining as u32);
    write_publish_head(publish, version, out)?;
    let packet_identifier = (publish.qos != QoS::AtMostOnce)
        .then(|| 1 + variable_byte_integer_len(remaining as u32) + 2 + publish.topic.len());
    Ok(PublishLayout { start, end: out.len(), packet_identifier })
}

/// Which acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AckKind {
    /// Answers a QoS 1 PUBLISH.
    PubAck = 0x40,
    /// Answers a QoS 2 PUBLISH.
    PubRec = 0x50,
    /// Answers a PUBREC.
    PubRel = 0x62,
    /// Answers a PUBREL.
    PubComp = 0x70,
}

/// Appends an acknowledgement without reason string and user properties: 4 bytes, or 5 for MQTT 5 with a
/// reason other than success. Before 5.0 there is no way to say the reason, it is left out
/// (MQTT-3.1.1 3.4).
#[inline]
pub fn encode_ack(
    out: &mut BytesMut,
    version: Version,
    kind: AckKind,
    packet_identifier: u16,
    reason: ReasonCode,
) {
    let [high, low] = packet_identifier.to_be_bytes();
    if version == Version::V5 && reason != ReasonCode::Success {
        out.put_slice(&[kind as u8, 3, high, low, reason as u8]);
    } else {
        out.put_slice(&[kind as u8, 2, high, low]);
    }
}
