//! What the encoder refuses, leaves out and promises.

use bytes::BytesMut;
use causeway_protocol::mqtt::Version::{V5, V31, V311};
use causeway_protocol::mqtt::{
    Ack, AckKind, Auth, ConnAck, Connect, Disconnect, EncodeError, Packet, Publish, QoS, ReasonCode, Role,
    SubAck, Subscribe, SubscribeFilter, SubscriptionOptions, Unsubscribe, UserPropertiesBuf, Version,
    encode_ack, encode_publish,
};
use smallvec::smallvec;

use crate::wire;

fn encode(packet: &Packet<'_>, version: Version) -> Result<Vec<u8>, EncodeError> {
    let mut buffer = BytesMut::from(&b"kept"[..]);
    let result = packet.encode(version, &mut buffer);
    assert_eq!(buffer[..4], b"kept"[..]);
    assert_eq!(result.is_err(), buffer.len() == 4, "an error writes nothing: {packet:?}");
    assert_eq!(packet.encoded_len(version), result.map(|()| buffer.len() - 4));
    result.map(|()| buffer[4..].to_vec())
}

#[test]
fn what_cannot_be_expressed_is_refused_and_nothing_is_written() {
    let long = "x".repeat(65_536);
    let publish = |publish| Packet::Publish(publish);
    let unnumbered = Publish { qos: QoS::AtLeastOnce, topic: "t", ..Publish::default() };
    assert_eq!(encode(&publish(unnumbered), V5), Err(EncodeError::PacketIdentifierZero));
    assert_eq!(encode(&publish(Publish::default()), V5), Err(EncodeError::EmptyTopic));
    let mut aliased = Publish::default();
    aliased.properties.topic_alias = Some(1);
    assert_eq!(encode(&publish(aliased), V311), Err(EncodeError::EmptyTopic), "3.1.1 has no alias");
    let too_long = Publish { topic: &long, ..Publish::default() };
    let error = EncodeError::FieldTooLong { field: "topic name", length: 65_536 };
    assert_eq!(encode(&publish(too_long.clone()), V311), Err(error));
    let mut buffer = BytesMut::new();
    assert_eq!(encode_publish(&mut buffer, V311, &too_long), Err(error));
    assert!(buffer.is_empty());
    let mut alias_zero = Publish { topic: "t", ..Publish::default() };
    alias_zero.properties.topic_alias = Some(0);
    assert!(matches!(encode_publish(&mut buffer, V5, &alias_zero), Err(EncodeError::Value { value: 0, .. })));
    assert!(buffer.is_empty());
    assert!(matches!(encode(&publish(alias_zero), V5), Err(EncodeError::Value { value: 0, .. })));
    let mut identifier = Publish { topic: "t", ..Publish::default() };
    identifier.properties.subscription_identifiers.push(268_435_456);
    assert!(matches!(encode(&publish(identifier), V5), Err(EncodeError::Value { value: 268_435_456, .. })));

    let subscribe = Subscribe { packet_identifier: 1, ..Subscribe::default() };
    assert_eq!(encode(&Packet::Subscribe(subscribe), V5), Err(EncodeError::Empty { packet: "SUBSCRIBE" }));
    let unsubscribe = Unsubscribe { packet_identifier: 1, ..Unsubscribe::default() };
    assert_eq!(
        encode(&Packet::Unsubscribe(unsubscribe), V31),
        Err(EncodeError::Empty { packet: "UNSUBSCRIBE" })
    );
    let suback = SubAck { packet_identifier: 1, ..SubAck::default() };
    assert_eq!(encode(&Packet::SubAck(suback.clone()), V311), Err(EncodeError::Empty { packet: "SUBACK" }));
    assert_eq!(encode(&Packet::UnsubAck(suback), V5), Err(EncodeError::Empty { packet: "UNSUBACK" }));
    assert_eq!(encode(&Packet::PubAck(Ack::default()), V311), Err(EncodeError::PacketIdentifierZero));
    let ack = Ack { packet_identifier: 1, reason: ReasonCode::PacketIdentifierNotFound, ..Ack::default() };
    let error = EncodeError::Reason { packet: "PUBACK", reason: ReasonCode::PacketIdentifierNotFound };
    assert_eq!(encode(&Packet::PubAck(ack), V5), Err(error));

    let error = EncodeError::NotInVersion { what: "AUTH", version: V311 };
    assert_eq!(encode(&Packet::Auth(Auth::default()), V311), Err(error));
    let auth = Auth { reason: ReasonCode::ContinueAuthentication, ..Auth::default() };
    assert_eq!(encode(&Packet::Auth(auth), V5), Err(EncodeError::AuthenticationMethodMissing));
    let connack = ConnAck { authentication_data: Some(b"x"), ..ConnAck::default() };
    let error = EncodeError::AuthenticationDataWithoutMethod;
    assert_eq!(encode(&Packet::ConnAck(Box::new(connack)), V5), Err(error));
    let connack = ConnAck { receive_maximum: Some(0), ..ConnAck::default() };
    assert!(matches!(
        encode(&Packet::ConnAck(Box::new(connack)), V5),
        Err(EncodeError::Value { value: 0, .. })
    ));
}

fn connect(version: Version) -> Connect<'static> {
    let bytes: &[u8] = match version {
        V31 => b"\x10\x10\0\x06MQIsdp\x03\x02\0\x1E\0\x02me",
        V311 => b"\x10\x0E\0\x04MQTT\x04\x02\0\x1E\0\x02me",
        V5 => b"\x10\x0F\0\x04MQTT\x05\x02\0\x1E\0\0\x02me",
    };
    match wire::decode(None, Role::Server, bytes) {
        Ok(Packet::Connect(connect)) => *connect,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connect_is_written_in_its_own_version_only() {
    for version in [V31, V311, V5] {
        let packet = Packet::Connect(Box::new(connect(version)));
        for other in [V31, V311, V5] {
            assert_eq!(encode(&packet, other).is_ok(), version == other);
        }
    }
    let password_alone = Connect { password: Some(b"x"), ..connect(V311) };
    assert!(encode(&Packet::Connect(Box::new(password_alone)), V311).is_err());
    let password_alone = Connect { password: Some(b"x"), ..connect(V5) };
    assert!(encode(&Packet::Connect(Box::new(password_alone)), V5).is_ok());
}

#[test]
fn a_refusal_becomes_a_return_code_before_5_0_where_there_is_one() {
    let codes = [
        (ReasonCode::Success, 0),
        (ReasonCode::UnsupportedProtocolVersion, 1),
        (ReasonCode::ClientIdentifierNotValid, 2),
        (ReasonCode::ServerUnavailable, 3),
        (ReasonCode::ServerBusy, 3),
        (ReasonCode::QuotaExceeded, 3),
        (ReasonCode::BadUserNameOrPassword, 4),
        (ReasonCode::NotAuthorized, 5),
        (ReasonCode::Banned, 5),
    ];
    for (reason, code) in codes {
        let packet = Packet::ConnAck(Box::new(ConnAck { reason, ..ConnAck::default() }));
        assert_eq!(encode(&packet, V311), Ok(vec![0x20, 2, 0, code]), "{reason:?}");
    }
    let packet =
        Packet::ConnAck(Box::new(ConnAck { reason: ReasonCode::MalformedPacket, ..ConnAck::default() }));
    assert_eq!(encode(&packet, V31), Err(EncodeError::NoReturnCode { reason: ReasonCode::MalformedPacket }));
    let packet = Packet::ConnAck(Box::new(ConnAck { session_present: true, ..ConnAck::default() }));
    assert_eq!(encode(&packet, V311), Ok(vec![0x20, 2, 1, 0]));
    assert_eq!(encode(&packet, V31), Ok(vec![0x20, 2, 0, 0]), "3.1 has no such flag");
}

#[test]
fn what_3_x_cannot_say_is_left_out() {
    let mut properties = UserPropertiesBuf::new();
    properties.push("k", "v").unwrap();
    let ack = Ack {
        packet_identifier: 0x0102,
        reason: ReasonCode::QuotaExceeded,
        reason_string: Some("full"),
        user_properties: properties.borrow(),
    };
    assert_eq!(encode(&Packet::PubAck(ack.clone()), V311), Ok(vec![0x40, 2, 1, 2]));
    assert_eq!(encode(&Packet::PubRec(ack), V31), Ok(vec![0x50, 2, 1, 2]));
    let suback = SubAck {
        packet_identifier: 1,
        reasons: smallvec![ReasonCode::Success, ReasonCode::GrantedQoS2, ReasonCode::NotAuthorized],
        ..SubAck::default()
    };
    assert_eq!(encode(&Packet::SubAck(suback.clone()), V311), Ok(vec![0x90, 5, 0, 1, 0, 2, 0x80]));
    assert_eq!(encode(&Packet::UnsubAck(suback), V311), Ok(vec![0xB0, 2, 0, 1]));
    let disconnect = Disconnect { reason: ReasonCode::ServerShuttingDown, ..Disconnect::default() };
    assert_eq!(encode(&Packet::Disconnect(disconnect), V311), Ok(vec![0xE0, 0]));
    let options =
        SubscriptionOptions { qos: QoS::AtLeastOnce, no_local: true, ..SubscriptionOptions::default() };
    let subscribe = Subscribe {
        packet_identifier: 1,
        filters: vec![SubscribeFilter { filter: "t", options }],
        ..Subscribe::default()
    };
    assert_eq!(encode(&Packet::Subscribe(subscribe), V311), Ok(vec![0x82, 6, 0, 1, 0, 1, b't', 1]));
}

#[test]
fn a_successful_acknowledgement_is_four_bytes_in_every_version() {
    let kinds = [AckKind::PubAck, AckKind::PubRec, AckKind::PubRel, AckKind::PubComp];
    for version in [V31, V311, V5] {
        for kind in kinds {
            for reason in
                [ReasonCode::Success, ReasonCode::QuotaExceeded, ReasonCode::PacketIdentifierNotFound]
            {
                let ack = Ack { packet_identifier: 0xABCD, reason, ..Ack::default() };
                let packet = match kind {
                    AckKind::PubAck => Packet::PubAck(ack),
                    AckKind::PubRec => Packet::PubRec(ack),
                    AckKind::PubRel => Packet::PubRel(ack),
                    AckKind::PubComp => Packet::PubComp(ack),
                };
                let Ok(expected) = encode(&packet, version) else {
                    continue;
                };
                let mut buffer = BytesMut::new();
                encode_ack(&mut buffer, version, kind, 0xABCD, reason);
                assert_eq!(buffer[..], expected[..], "{version:?} {kind:?} {reason:?}");
                let short = version != V5 || reason == ReasonCode::Success;
                assert_eq!(buffer.len(), if short { 4 } else { 5 });
            }
        }
    }
}

#[test]
fn explanations_go_before_a_packet_does() {
    let mut properties = UserPropertiesBuf::new();
    properties.push("name", "value").unwrap();
    let ack = Ack {
        packet_identifier: 1,
        reason: ReasonCode::QuotaExceeded,
        reason_string: Some("the buffer is full"),
        user_properties: properties.borrow(),
    };
    let packet = Packet::PubAck(ack.clone());
    let full = packet.encoded_len(V5).unwrap();
    let without_text = Ack { reason_string: None, ..ack.clone() };
    let bare = Ack { packet_identifier: 1, reason: ReasonCode::QuotaExceeded, ..Ack::default() };
    let middle = Packet::PubAck(without_text.clone()).encoded_len(V5).unwrap();
    for (maximum, expected) in
        [(full, &ack), (full - 1, &without_text), (middle, &without_text), (middle - 1, &bare), (5, &bare)]
    {
        let mut buffer = BytesMut::new();
        packet.encode_within(V5, maximum as u32, &mut buffer).unwrap();
        assert_eq!(
            wire::decode(Some(V5), Role::Client, &buffer),
            Ok(Packet::PubAck(expected.clone())),
            "at most {maximum} bytes"
        );
    }
    let mut buffer = BytesMut::new();
    let error = EncodeError::PacketTooLarge { length: 5, maximum: 4 };
    assert_eq!(packet.encode_within(V5, 4, &mut buffer), Err(error));
    assert!(buffer.is_empty());
}

#[test]
fn a_message_is_never_made_smaller() {
    let mut properties = UserPropertiesBuf::new();
    properties.push("name", "value").unwrap();
    let mut publish = Publish { topic: "t", ..Publish::default() };
    publish.properties.user_properties = properties.borrow();
    let packet = Packet::Publish(publish);
    let length = packet.encoded_len(V5).unwrap();
    let mut buffer = BytesMut::new();
    assert_eq!(
        packet.encode_within(V5, length as u32 - 1, &mut buffer),
        Err(EncodeError::PacketTooLarge { length, maximum: length - 1 })
    );
    assert!(buffer.is_empty());
}

#[test]
fn a_client_that_wants_no_problem_information_gets_it_where_it_is_always_allowed() {
    let mut properties = UserPropertiesBuf::new();
    properties.push("k", "v").unwrap();
    let ack = Ack {
        packet_identifier: 1,
        reason_string: Some("why"),
        user_properties: properties.borrow(),
        ..Ack::default()
    };
    let mut packet = Packet::PubAck(ack);
    packet.drop_problem_information();
    assert_eq!(packet, Packet::PubAck(Ack { packet_identifier: 1, ..Ack::default() }));
    let disconnect = Disconnect { reason_string: Some("why"), ..Disconnect::default() };
    let mut packet = Packet::Disconnect(disconnect.clone());
    packet.drop_problem_information();
    assert_eq!(packet, Packet::Disconnect(disconnect));
}

#[test]
fn user_properties_that_no_packet_can_hold_are_refused_when_built() {
    let mut properties = UserPropertiesBuf::new();
    let long = "x".repeat(65_536);
    let too_long = |field| Err(EncodeError::FieldTooLong { field, length: 65_536 });
    assert_eq!(properties.push(&long, ""), too_long("user property name"));
    assert_eq!(properties.push("", &long), too_long("user property value"));
    assert_eq!(properties.push("a\0", ""), Err(EncodeError::NullCharacter { field: "user property name" }));
    assert!(properties.is_empty());
    properties.push(&long[1..], &long[1..]).unwrap();
    assert_eq!(properties.borrow().iter().next(), Some((&long[1..], &long[1..])));
}

#[test]
fn a_packet_identifier_is_patched_only_where_it_is() {
    let publish = Publish { qos: QoS::AtLeastOnce, topic: "t", ..Publish::default() };
    let mut buffer = BytesMut::new();
    let layout = encode_publish(&mut buffer, V311, &publish).unwrap();
    assert_eq!(
        wire::decode(Some(V311), Role::Client, &buffer).map_err(|error| error.reason),
        Err(ReasonCode::ProtocolError),
        "a frame whose identifier was forgotten is accepted by nobody"
    );
    assert_eq!(layout.set_packet_identifier(&mut buffer, 0), Err(EncodeError::PacketIdentifierZero));
    let mut short = buffer[..5].to_vec();
    assert_eq!(layout.set_packet_identifier(&mut short, 1), Err(EncodeError::FrameTooShort { length: 5 }));
    layout.set_packet_identifier(&mut buffer, 0x0102).unwrap();
    assert_eq!(buffer[..], [0x32, 5, 0, 1, b't', 1, 2]);
    layout.set_dup(&mut buffer);
    assert_eq!(buffer[0], 0x3A);
    let at_most_once = Publish { topic: "t", ..Publish::default() };
    let mut buffer = BytesMut::new();
    let layout = encode_publish(&mut buffer, V311, &at_most_once).unwrap();
    layout.set_packet_identifier(&mut buffer, 9).unwrap();
    layout.set_dup(&mut buffer);
    assert_eq!(buffer[..], [0x30, 3, 0, 1, b't']);
}
