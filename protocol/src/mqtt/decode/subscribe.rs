//! SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (MQTT-5.0 3.8 to 3.11).

use smallvec::SmallVec;

use super::super::error::{DecodeError, malformed, protocol};
use super::super::property::{Property, PropertySection, PropertySet, id};
use super::super::reader::Reader;
use super::super::reason::{in_suback, in_unsuback};
use super::super::{
    ReasonCode, RetainHandling, SubAck, Subscribe, SubscribeFilter, SubscriptionOptions, Unsubscribe,
    UserProperties, Version, topic,
};
use super::{Decoder, qos, reason};

const SUBSCRIBE_ALLOWED: PropertySet = PropertySet::of(&[id::SUBSCRIPTION_IDENTIFIER]);
const UNSUBSCRIBE_ALLOWED: PropertySet = PropertySet::of(&[]);
const ACK_ALLOWED: PropertySet = PropertySet::of(&[id::REASON_STRING]);

impl Decoder {
    pub(super) fn subscribe(
        self,
        mut reader: Reader<'_>,
        version: Version,
    ) -> Result<Subscribe<'_>, DecodeError> {
        let mut subscribe = Subscribe {
            packet_identifier: reader.packet_identifier()?,
            subscription_identifier: None,
            user_properties: UserProperties::default(),
            filters: Vec::new(),
        };
        if version == Version::V5 {
            let mut section = PropertySection::take(&mut reader, SUBSCRIBE_ALLOWED)?;
            while let Some(property) = section.next()? {
                match property {
                    Property::SubscriptionIdentifier(value) => {
                        subscribe.subscription_identifier = Some(value);
                    }
                    _ => return Err(super::UNEXPECTED_PROPERTY),
                }
            }
            subscribe.user_properties = section.user_properties();
        }
        if reader.is_empty() {
            return Err(protocol("SUBSCRIBE without a topic filter"));
        }
        while !reader.is_empty() {
            let filter = reader.string_with_nulls()?;
            self.check_topic_filter(filter, version)?;
            let options = subscription_options(reader.u8()?, version)?;
            if options.no_local && topic::is_shared(filter) {
                return Err(protocol("no local on a shared subscription"));
            }
            subscribe.filters.push(SubscribeFilter { filter, options });
        }
        Ok(subscribe)
    }

    pub(super) fn unsubscribe(
        self,
        mut reader: Reader<'_>,
        version: Version,
    ) -> Result<Unsubscribe<'_>, DecodeError> {
        let mut unsubscribe = Unsubscribe {
            packet_identifier: reader.packet_identifier()?,
            user_properties: UserProperties::default(),
            filters: Vec::new(),
        };
        if version == Version::V5 {
            let mut section = PropertySection::take(&mut reader, UNSUBSCRIBE_ALLOWED)?;
            if section.next()?.is_some() {
                return Err(super::UNEXPECTED_PROPERTY);
            }
            unsubscribe.user_properties = section.user_properties();
        }
        if reader.is_empty() {
            return Err(protocol("UNSUBSCRIBE without a topic filter"));
        }
        while !reader.is_empty() {
            let filter = reader.string_with_nulls()?;
            self.check_topic_filter(filter, version)?;
            unsubscribe.filters.push(filter);
        }
        Ok(unsubscribe)
    }
}

/// MQTT-5.0 3.8.3.1; before 5.0 there is nothing but the QoS (MQTT-3.1.1 3.8.3).
fn subscription_options(options: u8, version: Version) -> Result<SubscriptionOptions, DecodeError> {
    let reserved = if version == Version::V5 { 0b1100_0000 } else { 0b1111_1100 };
    if options & reserved != 0 {
        return Err(malformed("subscription options with reserved bits").with_value(u32::from(options)));
    }
    let Some(qos) = qos(options & 0b11) else {
        // MQTT-3.1.1 calls this one malformed (MQTT-3-8.3-4), 5.0 a protocol error.
        let what = "subscription with QoS 3: must be 0, 1 or 2";
        return Err(if version == Version::V5 { protocol(what) } else { malformed(what) });
    };
    let retain_handling = match options >> 4 {
        0 => RetainHandling::Send,
        1 => RetainHandling::SendIfNew,
        2 => RetainHandling::DoNotSend,
        _ => return Err(protocol("subscription with retain handling 3: must be 0, 1 or 2")),
    };
    Ok(SubscriptionOptions {
        qos,
        no_local: options & 0b0100 != 0,
        retain_as_published: options & 0b1000 != 0,
        retain_handling,
    })
}

/// MQTT-5.0 3.9, MQTT-3.1.1 3.9.
pub(super) fn suback(mut reader: Reader<'_>, version: Version) -> Result<SubAck<'_>, DecodeError> {
    let mut suback = suback_header(&mut reader, version)?;
    if reader.is_empty() {
        return Err(protocol("SUBACK without a reason code"));
    }
    let allowed =
        if version == Version::V5 { in_suback } else { |reason| matches!(reason as u8, 0..=2 | 0x80) };
    while !reader.is_empty() {
        suback.reasons.push(reason(&mut reader, allowed)?);
    }
    Ok(suback)
}

/// MQTT-5.0 3.11, MQTT-3.1.1 3.11.
pub(super) fn unsuback(mut reader: Reader<'_>, version: Version) -> Result<SubAck<'_>, DecodeError> {
    let mut unsuback = suback_header(&mut reader, version)?;
    if version == Version::V5 {
        if reader.is_empty() {
            return Err(protocol("UNSUBACK without a reason code"));
        }
        while !reader.is_empty() {
            unsuback.reasons.push(reason(&mut reader, in_unsuback)?);
        }
    }
    reader.finish()?;
    Ok(unsuback)
}

fn suback_header<'a>(reader: &mut Reader<'a>, version: Version) -> Result<SubAck<'a>, DecodeError> {
    let mut suback = SubAck {
        packet_identifier: reader.packet_identifier()?,
        reason_string: None,
        user_properties: UserProperties::default(),
        reasons: SmallVec::<[ReasonCode; 4]>::new(),
    };
    if version == Version::V5 {
        let mut section = PropertySection::take(reader, ACK_ALLOWED)?;
        while let Some(property) = section.next()? {
            match property {
                Property::ReasonString(text) => suback.reason_string = Some(text),
                _ => return Err(super::UNEXPECTED_PROPERTY),
            }
        }
        suback.user_properties = section.user_properties();
    }
    Ok(suback)
}
