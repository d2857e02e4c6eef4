//! CONNECT and CONNACK (MQTT-5.0 3.1, 3.2).

use super::super::error::{DecodeError, malformed, protocol};
use super::super::property::{Property, PropertySection, PropertySet, id};
use super::super::reader::Reader;
use super::super::reason::in_connack;
use super::super::{ConnAck, Connect, PublishProperties, QoS, ReasonCode, UserProperties, Version, Will};
use super::{Decoder, qos, reason};

const CONNECT_ALLOWED: PropertySet = PropertySet::of(&[
    id::SESSION_EXPIRY_INTERVAL,
    id::RECEIVE_MAXIMUM,
    id::MAXIMUM_PACKET_SIZE,
    id::TOPIC_ALIAS_MAXIMUM,
    id::REQUEST_RESPONSE_INFORMATION,
    id::REQUEST_PROBLEM_INFORMATION,
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
]);
const WILL_ALLOWED: PropertySet = PropertySet::of(&[
    id::WILL_DELAY_INTERVAL,
    id::PAYLOAD_FORMAT_INDICATOR,
    id::MESSAGE_EXPIRY_INTERVAL,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
]);
const CONNACK_ALLOWED: PropertySet = PropertySet::of(&[
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
]);

/// The connect flags (MQTT-5.0 3.1.2.3).
mod flag {
    pub(super) const RESERVED: u8 = 0b0000_0001;
    pub(super) const CLEAN_START: u8 = 0b0000_0010;
    pub(super) const WILL: u8 = 0b0000_0100;
    pub(super) const WILL_QOS: u8 = 0b0001_1000;
    pub(super) const WILL_RETAIN: u8 = 0b0010_0000;
    pub(super) const PASSWORD: u8 = 0b0100_0000;
    pub(super) const USERNAME: u8 = 0b1000_0000;
}

impl Decoder {
    pub(super) fn connect(self, body: &[u8]) -> Result<Connect<'_>, DecodeError> {
        let mut reader = Reader::new(body);
        let version = protocol_version(&mut reader)?;
        self.connect_behind_version(reader, version).map_err(|error| error.in_version(Some(version)))
    }

    fn connect_behind_version(
        self,
        mut reader: Reader<'_>,
        version: Version,
    ) -> Result<Connect<'_>, DecodeError> {
        let flags = reader.u8()?;
        check_flags(flags, version)?;
        let mut connect = Connect {
            version,
            clean_start: flags & flag::CLEAN_START != 0,
            keep_alive: reader.u16()?,
            client_id: "",
            will: None,
            username: None,
            password: None,
            session_expiry_interval: 0,
            receive_maximum: u16::MAX,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            authentication_method: None,
            authentication_data: None,
            user_properties: UserProperties::default(),
        };
        if version == Version::V5 {
            connect_properties(&mut reader, &mut connect)?;
        }
        connect.client_id = reader.string()?;
        if connect.client_id.is_empty() && !may_be_anonymous(&connect) {
            return Err(DecodeError::new(
                ReasonCode::ClientIdentifierNotValid,
                "empty client identifier: needs MQTT 3.1.1 with a clean session, or MQTT 5.0",
            ));
        }
        if flags & flag::WILL != 0 {
            connect.will = Some(self.will(&mut reader, flags, version)?);
        }
        // MQTT 3.1 3.1: the remaining length goes before these two flags, the fields may be missing.
        let present = |reader: &Reader<'_>| version != Version::V31 || !reader.is_empty();
        if flags & flag::USERNAME != 0 && present(&reader) {
            connect.username = Some(reader.string()?);
        }
        if flags & flag::PASSWORD != 0 && present(&reader) {
            connect.password = Some(reader.binary()?);
        }
        reader.finish()?;
        Ok(connect)
    }

    fn will<'a>(self, reader: &mut Reader<'a>, flags: u8, version: Version) -> Result<Will<'a>, DecodeError> {
        let mut delay_interval = 0;
        let mut properties = PublishProperties::default();
        if version == Version::V5 {
            let mut section = PropertySection::take(reader, WILL_ALLOWED)?;
            while let Some(property) = section.next()? {
                match property {
                    Property::WillDelayInterval(value) => delay_interval = value,
                    Property::PayloadFormatIndicator(value) => {
                        properties.payload_format_indicator = Some(value);
                    }
                    Property::MessageExpiryInterval(value) => {
                        properties.message_expiry_interval = Some(value);
                    }
                    Property::ContentType(value) => properties.content_type = Some(value),
                    Property::ResponseTopic(value) => properties.response_topic = Some(value),
                    Property::CorrelationData(value) => properties.correlation_data = Some(value),
                    _ => return Err(super::UNEXPECTED_PROPERTY),
                }
            }
            properties.user_properties = section.user_properties();
        }
        let topic = reader.string_with_nulls()?;
        self.check_topic_name(topic)?;
        Ok(Will {
            topic,
            payload: reader.binary()?,
            qos: will_qos(flags)?,
            retain: flags & flag::WILL_RETAIN != 0,
            delay_interval,
            properties,
        })
    }
}

/// Protocol name and level (MQTT-5.0 3.1.2.1, 3.1.2.2). A name or level we do not know is answered with
/// 0x84 (return code 1) in the form of the nearest version.
fn protocol_version(reader: &mut Reader<'_>) -> Result<Version, DecodeError> {
    let name = reader.string()?;
    let level = reader.u8()?;
    match (name, level) {
        ("MQIsdp", 3) => return Ok(Version::V31),
        ("MQTT", 4) => return Ok(Version::V311),
        ("MQTT", 5) => return Ok(Version::V5),
        _ => {}
    }
    let unsupported = |what, nearest| {
        Err(DecodeError::new(ReasonCode::UnsupportedProtocolVersion, what)
            .with_value(u32::from(level))
            .in_version(Some(nearest)))
    };
    match name {
        // The high bit marks bridges of a known broker, which come back without it when refused.
        "MQTT" if level & 0x7F >= 5 => unsupported("protocol level newer than 5", Version::V5),
        "MQTT" => unsupported("protocol level of `MQTT` that is neither 4 nor 5", Version::V311),
        "MQIsdp" => unsupported("protocol level of `MQIsdp` that is not 3", Version::V31),
        _ => unsupported("protocol name that is neither `MQTT` nor `MQIsdp`, with level", Version::V311),
    }
}

fn check_flags(flags: u8, version: Version) -> Result<(), DecodeError> {
    // MQTT 3.1 leaves the bit unused.
    if flags & flag::RESERVED != 0 && version != Version::V31 {
        return Err(malformed("CONNECT with the reserved connect flag"));
    }
    if flags & flag::WILL != 0 {
        will_qos(flags)?;
    } else if flags & (flag::WILL_QOS | flag::WILL_RETAIN) != 0 && version != Version::V31 {
        // MQTT 3.1 disregards both without a will.
        return Err(malformed("CONNECT with will QoS or will retain, but without the will flag"));
    }
    if flags & flag::PASSWORD != 0 && flags & flag::USERNAME == 0 && version != Version::V5 {
        return Err(malformed("CONNECT with a password, but without a user name"));
    }
    Ok(())
}

fn will_qos(flags: u8) -> Result<QoS, DecodeError> {
    qos((flags & flag::WILL_QOS) >> 3).ok_or(malformed("CONNECT with will QoS 3: must be 0, 1 or 2"))
}

/// MQTT-3.1.1 3.1.3.1 (MQTT-3.1.3-8), MQTT-5.0 3.1.3.1.
fn may_be_anonymous(connect: &Connect<'_>) -> bool {
    match connect.version {
        Version::V31 => false,
        Version::V311 => connect.clean_start,
        Version::V5 => true,
    }
}

/// MQTT-5.0 3.1.2.11.
fn connect_properties<'a>(reader: &mut Reader<'a>, connect: &mut Connect<'a>) -> Result<(), DecodeError> {
    let mut section = PropertySection::take(reader, CONNECT_ALLOWED)?;
    while let Some(property) = section.next()? {
        match property {
            Property::SessionExpiryInterval(value) => connect.session_expiry_interval = value,
            Property::ReceiveMaximum(value) => connect.receive_maximum = value,
            Property::MaximumPacketSize(value) => connect.maximum_packet_size = Some(value),
            Property::TopicAliasMaximum(value) => connect.topic_alias_maximum = value,
            Property::RequestResponseInformation(value) => connect.request_response_information = value,
            Property::RequestProblemInformation(value) => connect.request_problem_information = value,
            Property::AuthenticationMethod(value) => connect.authentication_method = Some(value),
            Property::AuthenticationData(value) => connect.authentication_data = Some(value),
            _ => return Err(super::UNEXPECTED_PROPERTY),
        }
    }
    connect.user_properties = section.user_properties();
    if connect.authentication_data.is_some() && connect.authentication_method.is_none() {
        return Err(protocol("authentication data without an authentication method"));
    }
    Ok(())
}

pub(super) fn connack(mut reader: Reader<'_>, version: Version) -> Result<ConnAck<'_>, DecodeError> {
    let flags = reader.u8()?;
    // MQTT 3.1 does not use this byte.
    if flags & !1 != 0 && version != Version::V31 {
        return Err(malformed("CONNACK with reserved acknowledge flags").with_value(u32::from(flags)));
    }
    let mut connack =
        ConnAck { session_present: flags & 1 != 0 && version != Version::V31, ..ConnAck::default() };
    if version == Version::V5 {
        connack.reason = reason(&mut reader, in_connack)?;
        connack_properties(&mut reader, &mut connack)?;
    } else {
        let code = reader.u8()?;
        connack.reason = ReasonCode::from_connack_return_code(code).ok_or(
            protocol("CONNACK return code that is reserved: must be 0 to 5").with_value(u32::from(code)),
        )?;
    }
    if connack.session_present && connack.reason != ReasonCode::Success {
        return Err(protocol("CONNACK with session present and an error"));
    }
    reader.finish()?;
    Ok(connack)
}

/// MQTT-5.0 3.2.2.3.
fn connack_properties<'a>(reader: &mut Reader<'a>, connack: &mut ConnAck<'a>) -> Result<(), DecodeError> {
    let mut section = PropertySection::take(reader, CONNACK_ALLOWED)?;
    while let Some(property) = section.next()? {
        match property {
            Property::SessionExpiryInterval(value) => connack.session_expiry_interval = Some(value),
            Property::ReceiveMaximum(value) => connack.receive_maximum = Some(value),
            Property::MaximumQos(value) => connack.maximum_qos = qos(value),
            Property::RetainAvailable(value) => connack.retain_available = Some(value),
            Property::MaximumPacketSize(value) => connack.maximum_packet_size = Some(value),
            Property::AssignedClientIdentifier(value) => connack.assigned_client_identifier = Some(value),
            Property::TopicAliasMaximum(value) => connack.topic_alias_maximum = Some(value),
            Property::ReasonString(value) => connack.reason_string = Some(value),
            Property::WildcardSubscriptionAvailable(value) => {
                connack.wildcard_subscription_available = Some(value);
            }
            Property::SubscriptionIdentifiersAvailable(value) => {
                connack.subscription_identifiers_available = Some(value);
            }
            Property::SharedSubscriptionAvailable(value) => {
                connack.shared_subscription_available = Some(value);
            }
            Property::ServerKeepAlive(value) => connack.server_keep_alive = Some(value),
            Property::ResponseInformation(value) => connack.response_information = Some(value),
            Property::ServerReference(value) => connack.server_reference = Some(value),
            Property::AuthenticationMethod(value) => connack.authentication_method = Some(value),
            Property::AuthenticationData(value) => connack.authentication_data = Some(value),
            _ => return Err(super::UNEXPECTED_PROPERTY),
        }
    }
    connack.user_properties = section.user_properties();
    if connack.authentication_data.is_some() && connack.authentication_method.is_none() {
        return Err(protocol("authentication data without an authentication method"));
    }
    Ok(())
}
