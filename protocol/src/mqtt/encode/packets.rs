//! The body of each packet, written to any sink.

use super::super::error::EncodeError;
use super::super::property::{id, is_subscription_identifier};
use super::super::reader::MAX_VARIABLE_BYTE_INTEGER;
use super::super::reason::{
    in_connack, in_disconnect_of_client, in_disconnect_of_server, in_puback_or_pubrec, in_pubrel_or_pubcomp,
    in_suback, in_unsuback,
};
use super::super::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, Publish, PublishProperties, QoS, ReasonCode, SubAck,
    Subscribe, Unsubscribe, Version, Will,
};
use super::sink::{Counter, Sink};

pub(super) fn first_byte(packet: &Packet<'_>) -> u8 {
    match packet {
        Packet::Connect(_) => 0x10,
        Packet::ConnAck(_) => 0x20,
        Packet::Publish(publish) => publish_first_byte(publish),
        Packet::PubAck(_) => 0x40,
        Packet::PubRec(_) => 0x50,
        Packet::PubRel(_) => 0x62,
        Packet::PubComp(_) => 0x70,
        Packet::Subscribe(_) => 0x82,
        Packet::SubAck(_) => 0x90,
        Packet::Unsubscribe(_) => 0xA2,
        Packet::UnsubAck(_) => 0xB0,
        Packet::PingReq => 0xC0,
        Packet::PingResp => 0xD0,
        Packet::Disconnect(_) => 0xE0,
        Packet::Auth(_) => 0xF0,
    }
}

pub(super) fn publish_first_byte(publish: &Publish<'_>) -> u8 {
    // DUP says something about deliveries with an identifier only (MQTT-3.3.1-2).
    let dup = publish.dup && publish.qos != QoS::AtMostOnce;
    0x30 | u8::from(dup) << 3 | (publish.qos as u8) << 1 | u8::from(publish.retain)
}

pub(super) fn write_body(
    packet: &Packet<'_>,
    version: Version,
    out: &mut impl Sink,
) -> Result<(), EncodeError> {
    match packet {
        // Its own version is what it announces.
        Packet::Connect(connect) if connect.version != version => {
            Err(EncodeError::NotInVersion { what: "a CONNECT of another version", version })
        }
        Packet::Connect(connect) => write_connect(connect, out),
        Packet::ConnAck(connack) => write_connack(connack, version, out),
        Packet::Publish(publish) => write_publish(publish, version, out),
        Packet::PubAck(ack) => write_ack("PUBACK", ack, in_puback_or_pubrec, version, out),
        Packet::PubRec(ack) => write_ack("PUBREC", ack, in_puback_or_pubrec, version, out),
        Packet::PubRel(ack) => write_ack("PUBREL", ack, in_pubrel_or_pubcomp, version, out),
        Packet::PubComp(ack) => write_ack("PUBCOMP", ack, in_pubrel_or_pubcomp, version, out),
        Packet::Subscribe(subscribe) => write_subscribe(subscribe, version, out),
        Packet::SubAck(suback) => write_suback(suback, version, out),
        Packet::Unsubscribe(unsubscribe) => write_unsubscribe(unsubscribe, version, out),
        Packet::UnsubAck(unsuback) => write_unsuback(unsuback, version, out),
        Packet::PingReq | Packet::PingResp => Ok(()),
        Packet::Disconnect(disconnect) => write_disconnect(disconnect, version, out),
        Packet::Auth(auth) => write_auth(auth, version, out),
    }
}

/// Property length and properties, described once by `write`.
fn write_properties<S: Sink>(out: &mut S, write: &impl PropertyWriter) -> Result<(), EncodeError> {
    let mut counter = Counter::default();
    write.write(&mut counter)?;
    let length = counter.length();
    if length > MAX_VARIABLE_BYTE_INTEGER as usize {
        return Err(EncodeError::PacketTooLarge { length, maximum: MAX_VARIABLE_BYTE_INTEGER as usize });
    }
    out.put_variable_byte_integer(length as u32);
    write.write(out)
}

/// Something that writes the same properties to any sink.
trait PropertyWriter {
    fn write(&self, out: &mut impl Sink) -> Result<(), EncodeError>;
}

fn check_reason(
    packet: &'static str,
    reason: ReasonCode,
    allowed: fn(ReasonCode) -> bool,
) -> Result<(), EncodeError> {
    if allowed(reason) { Ok(()) } else { Err(EncodeError::Reason { packet, reason }) }
}

fn not_zero(field: &'static str, value: Option<u32>, allowed: &'static str) -> Result<(), EncodeError> {
    match value {
        Some(0) => Err(EncodeError::Value { field, value: 0, allowed }),
        _ => Ok(()),
    }
}

fn write_connect(connect: &Connect<'_>, out: &mut impl Sink) -> Result<(), EncodeError> {
    let (name, level): (&[u8], u8) = match connect.version {
        Version::V31 => (b"MQIsdp", 3),
        Version::V311 => (b"MQTT", 4),
        Version::V5 => (b"MQTT", 5),
    };
    if connect.version != Version::V5 && connect.password.is_some() && connect.username.is_none() {
        return Err(EncodeError::NotInVersion {
            what: "a password without a user name",
            version: connect.version,
        });
    }
    out.put_field("protocol name", name)?;
    out.put_u8(level);
    let mut flags = u8::from(connect.clean_start) << 1;
    if let Some(will) = &connect.will {
        flags |= 0b0000_0100 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
    }
    flags |= u8::from(connect.password.is_some()) << 6;
    flags |= u8::from(connect.username.is_some()) << 7;
    out.put_u8(flags);
    out.put_u16(connect.keep_alive);
    if connect.version == Version::V5 {
        not_zero("receive maximum", Some(connect.receive_maximum.into()), "1 to 65535")?;
        not_zero("maximum packet size", connect.maximum_packet_size, "at least 1")?;
        if connect.authentication_data.is_some() && connect.authentication_method.is_none() {
            return Err(EncodeError::AuthenticationDataWithoutMethod);
        }
        write_properties(out, connect)?;
    }
    out.put_field("client identifier", connect.client_id.as_bytes())?;
    if let Some(will) = &connect.will {
        if will.topic.is_empty() {
            return Err(EncodeError::EmptyTopic);
        }
        if connect.version == Version::V5 {
            write_properties(out, will)?;
        }
        out.put_field("will topic", will.topic.as_bytes())?;
        out.put_field("will payload", will.payload)?;
    }
    if let Some(username) = connect.username {
        out.put_field("user name", username.as_bytes())?;
    }
    if let Some(password) = connect.password {
        out.put_field("password", password)?;
    }
    Ok(())
}

impl PropertyWriter for Connect<'_> {
    fn write(&self, out: &mut impl Sink) -> Result<(), EncodeError> {
        let set = |value: u32| (value != 0).then_some(value);
        out.put_u32_property(id::SESSION_EXPIRY_INTERVAL, set(self.session_expiry_interval));
        let receive_maximum = (self.receive_maximum != u16::MAX).then_some(self.receive_maximum);
        out.put_u16_property(id::RECEIVE_MAXIMUM, receive_maximum);
        out.put_u32_property(id::MAXIMUM_PACKET_SIZE, self.maximum_packet_size);
        let alias_maximum = (self.topic_alias_maximum != 0).then_some(self.topic_alias_maximum);
        out.put_u16_property(id::TOPIC_ALIAS_MAXIMUM, alias_maximum);
        let asks_response = self.request_response_information.then_some(true);
        out.put_bool_property(id::REQUEST_RESPONSE_INFORMATION, asks_response);
        let wants_no_problem = (!self.request_problem_information).then_some(false);
        out.put_bool_property(id::REQUEST_PROBLEM_INFORMATION, wants_no_problem);
        let method = self.authentication_method;
        out.put_string_property(id::AUTHENTICATION_METHOD, "authentication method", method)?;
        out.put_binary_property(id::AUTHENTICATION_DATA, "authentication data", self.authentication_data)?;
        out.put_user_properties(&self.user_properties)
    }
}

impl PropertyWriter for Will<'_> {
    fn write(&self, out: &mut impl Sink) -> Result<(), EncodeError> {
        let delay = (self.delay_interval != 0).then_some(self.delay_interval);
        out.put_u32_property(id::WILL_DELAY_INTERVAL, delay);
        // A will has neither topic alias nor subscription identifiers (MQTT-5.0 3.1.3.2).
        write_message_properties(&self.properties, out)
    }
}

/// The properties that a message has wherever it goes.
fn write_message_properties(
    properties: &PublishProperties<'_>,
    out: &mut impl Sink,
) -> Result<(), EncodeError> {
    if let Some(value @ 2..) = properties.payload_format_indicator {
        let field = "payload format indicator";
        return Err(EncodeError::Value { field, value: value.into(), allowed: "0 or 1" });
    }
    out.put_u8_property(id::PAYLOAD_FORMAT_INDICATOR, properties.payload_format_indicator);
    out.put_u32_property(id::MESSAGE_EXPIRY_INTERVAL, properties.message_expiry_interval);
    out.put_string_property(id::CONTENT_TYPE, "content type", properties.content_type)?;
    out.put_string_property(id::RESPONSE_TOPIC, "response topic", properties.response_topic)?;
    out.put_binary_property(id::CORRELATION_DATA, "correlation data", properties.correlation_data)?;
    out.put_user_properties(&properties.user_properties)
}

fn write_connack(connack: &ConnAck<'_>, version: Version, out: &mut impl Sink) -> Result<(), EncodeError> {
    // No session goes with an error (MQTT-3.2.2-6), and 3.1 has no such flag.
    let session_present =
        connack.session_present && connack.reason == ReasonCode::Success && version != Version::V31;
    out.put_u8(u8::from(session_present));
    if version != Version::V5 {
        let code = connack
            .reason
            .connack_return_code()
            .ok_or(EncodeError::NoReturnCode { reason: connack.reason })?;
        out.put_u8(code);
        return Ok(());
    }
    check_reason("CONNACK", connack.reason, in_connack)?;
    not_zero("receive maximum", connack.receive_maximum.map(u32::from), "1 to 65535")?;
    not_zero("maximum packet size", connack.maximum_packet_size, "at least 1")?;
    if connack.authentication_data.is_some() && connack.authentication_method.is_none() {
        return Err(EncodeError::AuthenticationDataWithoutMethod);
    }
    out.put_u8(connack.reason as u8);
    write_properties(out, connack)
}

impl PropertyWriter for ConnAck<'_> {
    fn write(&self, out: &mut impl Sink) -> Result<(), EncodeError> {
        out.put_u32_property(id::SESSION_EXPIRY_INTERVAL, self.session_expiry_interval);
        out.put_u16_property(id::RECEIVE_MAXIMUM, self.receive_maximum);
        // 2 is said by saying nothing (MQTT-5.0 3.2.2.3.4).
        let maximum_qos = self.maximum_qos.filter(|&qos| qos != QoS::ExactlyOnce).map(|qos| qos as u8);
        out.put_u8_property(id::MAXIMUM_QOS, maximum_qos);
        out.put_bool_property(id::RETAIN_AVAILABLE, self.retain_available);
        out.put_u32_property(id::MAXIMUM_PACKET_SIZE, self.maximum_packet_size);
        let assigned = self.assigned_client_identifier;
        out.put_string_property(id::ASSIGNED_CLIENT_IDENTIFIER, "assigned client identifier", assigned)?;
        out.put_u16_property(id::TOPIC_ALIAS_MAXIMUM, self.topic_alias_maximum);
        out.put_string_property(id::REASON_STRING, "reason string", self.reason_string)?;
        out.put_bool_property(id::WILDCARD_SUBSCRIPTION_AVAILABLE, self.wildcard_subscription_available);
        out.put_bool_property(
            id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE,
            self.subscription_identifiers_available,
        );
        out.put_bool_property(id::SHARED_SUBSCRIPTION_AVAILABLE, self.shared_subscription_available);
        out.put_u16_property(id::SERVER_KEEP_ALIVE, self.server_keep_alive);
        out.put_string_property(id::RESPONSE_INFORMATION, "response information", self.response_information)?;
        out.put_string_property(id::SERVER_REFERENCE, "server reference", self.server_reference)?;
        let method = self.authentication_method;
        out.put_string_property(id::AUTHENTICATION_METHOD, "authentication method", method)?;
        out.put_binary_property(id::AUTHENTICATION_DATA, "authentication data", self.authentication_data)?;
        out.put_user_properties(&self.user_properties)
    }
}

fn write_publish(publish: &Publish<'_>, version: Version, out: &mut impl Sink) -> Result<(), EncodeError> {
    if publish.qos != QoS::AtMostOnce && publish.packet_identifier == 0 {
        return Err(EncodeError::PacketIdentifierZero);
    }
    write_publish_head(publish, version, out)?;
    out.put(publish.payload);
    Ok(())
}

/// Everything between fixed header and payload. An identifier of 0 is written as it is.
pub(super) fn write_publish_head(
    publish: &Publish<'_>,
    version: Version,
    out: &mut impl Sink,
) -> Result<(), EncodeError> {
    let has_alias = version == Version::V5 && publish.properties.topic_alias.is_some();
    if publish.topic.is_empty() && !has_alias {
        return Err(EncodeError::EmptyTopic);
    }
    out.put_field("topic name", publish.topic.as_bytes())?;
    if publish.qos != QoS::AtMostOnce {
        out.put_u16(publish.packet_identifier);
    }
    if version == Version::V5 {
        if publish.properties.is_empty() {
            out.put_u8(0);
        } else {
            write_properties(out, &publish.properties)?;
        }
    }
    Ok(())
}

impl PropertyWriter for PublishProperties<'_> {
    fn write(&self, out: &mut impl Sink) -> Result<(), EncodeError> {
        not_zero("topic alias", self.topic_alias.map(u32::from), "1 to 65535")?;
        out.put_u16_property(id::TOPIC_ALIAS, self.topic_alias);
        for &identifier in &self.subscription_identifiers {
            write_subscription_identifier(identifier, out)?;
        }
        write_message_properties(self, out)
    }
}

fn write_subscription_identifier(value: u32, out: &mut impl Sink) -> Result<(), EncodeError> {
    if !is_subscription_identifier(value) {
        return Err(EncodeError::Value {
            field: "subscription identifier",
            value,
            allowed: "1 to 268435455",
        });
    }
    out.put_u8(id::SUBSCRIPTION_IDENTIFIER);
    out.put_variable_byte_integer(value);
    Ok(())
}

fn write_ack(
    packet: &'static str,
    ack: &Ack<'_>,
    allowed: fn(ReasonCode) -> bool,
    version: Version,
    out: &mut impl Sink,
) -> Result<(), EncodeError> {
    out.put_packet_identifier(ack.packet_identifier)?;
    if version != Version::V5 {
        return Ok(());
    }
    check_reason(packet, ack.reason, allowed)?;
    let has_properties = ack.reason_string.is_some() || !ack.user_properties.is_empty();
    if has_properties || ack.reason != ReasonCode::Success {
        out.put_u8(ack.reason as u8);
    }
    if has_properties {
        write_properties(out, &Problem(ack.reason_string, &ack.user_properties))?;
    }
    Ok(())
}

/// Reason string and user properties: all that most answers have.
struct Problem<'a>(Option<&'a str>, &'a super::UserProperties<'a>);

impl PropertyWriter for Problem<'_> {
    fn write(&self, out: &mut impl Sink) -> Result<(), EncodeError> {
        out.put_string_property(id::REASON_STRING, "reason string", self.0)?;
        out.put_user_properties(self.1)
    }
}

fn write_subscribe(
    subscribe: &Subscribe<'_>,
    version: Version,
    out: &mut impl Sink,
) -> Result<(), EncodeError> {
    out.put_packet_identifier(subscribe.packet_identifier)?;
    if version == Version::V5 {
        write_properties(out, subscribe)?;
    }
    if subscribe.filters.is_empty() {
        return Err(EncodeError::Empty { packet: "SUBSCRIBE" });
    }
    for entry in &subscribe.filters {
        out.put_field("topic filter", entry.filter.as_bytes())?;
        let mut options = entry.options.qos as u8;
        if version == Version::V5 {
            options |= u8::from(entry.options.no_local) << 2
                | u8::from(entry.options.retain_as_published) << 3
                | (entry.options.retain_handling as u8) << 4;
        }
        out.put_u8(options);
    }
    Ok(())
}

impl PropertyWriter for Subscribe<'_> {
    fn write(&self, out: &mut impl Sink) -> Result<(), EncodeError> {
        if let Some(identifier) = self.subscription_identifier {
            write_subscription_identifier(identifier, out)?;
        }
        out.put_user_properties(&self.user_properties)
    }
}

fn write_suback(suback: &SubAck<'_>, version: Version, out: &mut impl Sink) -> Result<(), EncodeError> {
    out.put_packet_identifier(suback.packet_identifier)?;
    if suback.reasons.is_empty() {
        return Err(EncodeError::Empty { packet: "SUBACK" });
    }
    if version == Version::V5 {
        write_properties(out, &Problem(suback.reason_string, &suback.user_properties))?;
    }
    for &reason in &suback.reasons {
        check_reason("SUBACK", reason, in_suback)?;
        let failed_before_5 = version != Version::V5 && reason.is_error();
        out.put_u8(if failed_before_5 { ReasonCode::UnspecifiedError as u8 } else { reason as u8 });
    }
    Ok(())
}

fn write_unsubscribe(
    unsubscribe: &Unsubscribe<'_>,
    version: Version,
    out: &mut impl Sink,
) -> Result<(), EncodeError> {
    out.put_packet_identifier(unsubscribe.packet_identifier)?;
    if version == Version::V5 {
        write_properties(out, &Problem(None, &unsubscribe.user_properties))?;
    }
    if unsubscribe.filters.is_empty() {
        return Err(EncodeError::Empty { packet: "UNSUBSCRIBE" });
    }
    for filter in &unsubscribe.filters {
        out.put_field("topic filter", filter.as_bytes())?;
    }
    Ok(())
}

fn write_unsuback(unsuback: &SubAck<'_>, version: Version, out: &mut impl Sink) -> Result<(), EncodeError> {
    out.put_packet_identifier(unsuback.packet_identifier)?;
    if version != Version::V5 {
        return Ok(());
    }
    if unsuback.reasons.is_empty() {
        return Err(EncodeError::Empty { packet: "UNSUBACK" });
    }
    write_properties(out, &Problem(unsuback.reason_string, &unsuback.user_properties))?;
    for &reason in &unsuback.reasons {
        check_reason("UNSUBACK", reason, in_unsuback)?;
        out.put_u8(reason as u8);
    }
    Ok(())
}

fn write_disconnect(
    disconnect: &Disconnect<'_>,
    version: Version,
    out: &mut impl Sink,
) -> Result<(), EncodeError> {
    if version != Version::V5 {
        return Ok(());
    }
    check_reason("DISCONNECT", disconnect.reason, |reason| {
        in_disconnect_of_client(reason) || in_disconnect_of_server(reason)
    })?;
    let has_properties = disconnect.session_expiry_interval.is_some()
        || disconnect.reason_string.is_some()
        || disconnect.server_reference.is_some()
        || !disconnect.user_properties.is_empty();
    if has_properties || disconnect.reason != ReasonCode::Success {
        out.put_u8(disconnect.reason as u8);
    }
    if has_properties {
        write_properties(out, disconnect)?;
    }
    Ok(())
}

impl PropertyWriter for Disconnect<'_> {
    fn write(&self, out: &mut impl Sink) -> Result<(), EncodeError> {
        out.put_u32_property(id::SESSION_EXPIRY_INTERVAL, self.session_expiry_interval);
        out.put_string_property(id::REASON_STRING, "reason string", self.reason_string)?;
        out.put_string_property(id::SERVER_REFERENCE, "server reference", self.server_reference)?;
        out.put_user_properties(&self.user_properties)
    }
}

fn write_auth(auth: &Auth<'_>, version: Version, out: &mut impl Sink) -> Result<(), EncodeError> {
    if version != Version::V5 {
        return Err(EncodeError::NotInVersion { what: "AUTH", version });
    }
    check_reason("AUTH", auth.reason, |reason| {
        matches!(
            reason,
            ReasonCode::Success | ReasonCode::ContinueAuthentication | ReasonCode::ReAuthenticate
        )
    })?;
    // Success without properties is an empty packet (MQTT-5.0 3.15.2.1).
    if auth.reason == ReasonCode::Success && *auth == Auth::default() {
        return Ok(());
    }
    if auth.authentication_method.is_none() {
        return Err(EncodeError::AuthenticationMethodMissing);
    }
    out.put_u8(auth.reason as u8);
    write_properties(out, auth)
}

impl PropertyWriter for Auth<'_> {
    fn write(&self, out: &mut impl Sink) -> Result<(), EncodeError> {
        let method = self.authentication_method;
        out.put_string_property(id::AUTHENTICATION_METHOD, "authentication method", method)?;
        out.put_binary_property(id::AUTHENTICATION_DATA, "authentication data", self.authentication_data)?;
        out.put_string_property(id::REASON_STRING, "reason string", self.reason_string)?;
        out.put_user_properties(&self.user_properties)
    }
}
