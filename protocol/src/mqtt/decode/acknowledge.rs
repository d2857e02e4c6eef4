//! PUBACK, PUBREC, PUBREL and PUBCOMP (MQTT-5.0 3.4 to 3.7).

use super::super::error::DecodeError;
use super::super::property::{Property, PropertySection, PropertySet, id};
use super::super::reader::Reader;
use super::super::reason::{in_puback_or_pubrec, in_pubrel_or_pubcomp};
use super::super::{Ack, ReasonCode, UserProperties, Version};
use super::reason;

const ALLOWED: PropertySet = PropertySet::of(&[id::REASON_STRING]);

pub(super) fn puback_or_pubrec(reader: Reader<'_>, version: Version) -> Result<Ack<'_>, DecodeError> {
    ack(reader, version, in_puback_or_pubrec)
}

pub(super) fn pubrel_or_pubcomp(reader: Reader<'_>, version: Version) -> Result<Ack<'_>, DecodeError> {
    ack(reader, version, in_pubrel_or_pubcomp)
}

fn ack(
    mut reader: Reader<'_>,
    version: Version,
    allowed: fn(ReasonCode) -> bool,
) -> Result<Ack<'_>, DecodeError> {
    let mut ack = Ack {
        packet_identifier: reader.packet_identifier()?,
        reason: ReasonCode::Success,
        reason_string: None,
        user_properties: UserProperties::default(),
    };
    // Reason code and properties may each be left out at the end (MQTT-5.0 3.4.2.1, 3.4.2.2.1).
    if version == Version::V5 && !reader.is_empty() {
        ack.reason = reason(&mut reader, allowed)?;
        if !reader.is_empty() {
            let mut section = PropertySection::take(&mut reader, ALLOWED)?;
            while let Some(property) = section.next()? {
                match property {
                    Property::ReasonString(text) => ack.reason_string = Some(text),
                    _ => return Err(super::UNEXPECTED_PROPERTY),
                }
            }
            ack.user_properties = section.user_properties();
        }
    }
    reader.finish()?;
    Ok(ack)
}
