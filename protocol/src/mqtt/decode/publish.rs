//! PUBLISH (MQTT-5.0 3.3), the packet that has to be fast.

use super::super::error::{DecodeError, protocol};
use super::super::property::{Property, PropertySection, PropertySet, id};
use super::super::reader::Reader;
use super::super::{Publish, PublishProperties, QoS, Version};
use super::{Decoder, Role};

const ALLOWED: PropertySet = PropertySet::of(&[
    id::PAYLOAD_FORMAT_INDICATOR,
    id::MESSAGE_EXPIRY_INTERVAL,
    id::TOPIC_ALIAS,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::SUBSCRIPTION_IDENTIFIER,
    id::CONTENT_TYPE,
]);
const REPEATABLE: PropertySet = PropertySet::of(&[id::SUBSCRIPTION_IDENTIFIER]);

impl Decoder {
    #[inline]
    pub(super) fn publish(
        self,
        first: u8,
        body: &[u8],
        version: Version,
    ) -> Result<Publish<'_>, DecodeError> {
        let mut reader = Reader::new(body);
        let qos = match first & 0b0110 {
            0b0000 => QoS::AtMostOnce,
            0b0010 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        };
        let topic = reader.string_with_nulls()?;
        if !topic.is_empty() || version != Version::V5 {
            self.check_topic_name(topic)?;
        }
        let packet_identifier = if qos == QoS::AtMostOnce { 0 } else { reader.packet_identifier()? };
        let properties = if version != Version::V5 {
            PublishProperties::default()
        } else if let Some((0, behind)) = reader.rest().split_first() {
            reader = Reader::new(behind);
            PublishProperties::default()
        } else {
            publish_properties(&mut reader, self.role)?
        };
        if topic.is_empty() && properties.topic_alias.is_none() {
            return Err(protocol("empty topic name without a topic alias"));
        }
        Ok(Publish {
            dup: first & 0b1000 != 0,
            qos,
            retain: first & 0b0001 != 0,
            topic,
            packet_identifier,
            properties,
            payload: reader.rest(),
        })
    }
}

/// MQTT-5.0 3.3.2.3.
#[inline(never)]
fn publish_properties<'a>(reader: &mut Reader<'a>, role: Role) -> Result<PublishProperties<'a>, DecodeError> {
    let mut section = PropertySection::take_with_repeats(reader, ALLOWED, REPEATABLE)?;
    let mut properties = PublishProperties::default();
    while let Some(property) = section.next()? {
        match property {
            Property::PayloadFormatIndicator(value) => properties.payload_format_indicator = Some(value),
            Property::MessageExpiryInterval(value) => properties.message_expiry_interval = Some(value),
            Property::TopicAlias(value) => properties.topic_alias = Some(value),
            Property::ResponseTopic(value) => properties.response_topic = Some(value),
            Property::CorrelationData(value) => properties.correlation_data = Some(value),
            Property::ContentType(value) => properties.content_type = Some(value),
            Property::SubscriptionIdentifier(value) => {
                if role == Role::Server {
                    return Err(
                        protocol("subscription identifier in a PUBLISH of a client").with_value(value)
                    );
                }
                properties.subscription_identifiers.push(value);
            }
            _ => return Err(super::UNEXPECTED_PROPERTY),
        }
    }
    properties.user_properties = section.user_properties();
    Ok(properties)
}
