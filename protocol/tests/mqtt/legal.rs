//! What looks odd and is legal: refusing it would lock devices out.

use causeway_protocol::mqtt::Role::{Client, Server};
use causeway_protocol::mqtt::Version::{V5, V31, V311};
use causeway_protocol::mqtt::{Decoded, Decoder, Packet, QoS, ReasonCode, Role};

use crate::wire::{decode, field, frame, properties, property, user};

#[test]
fn an_old_client_may_leave_out_the_user_name_it_announced() {
    // MQTT-3.1 3.1: the remaining length takes precedence over the user name flag.
    let bytes = frame(0x10, &[&field("MQIsdp"), &[3, 0b1100_0010, 0, 60], &field("me")]);
    let Packet::Connect(connect) = decode(None, Server, &bytes).unwrap() else { panic!("not a CONNECT") };
    assert_eq!((connect.username, connect.password), (None, None));
    let bytes = frame(0x10, &[&field("MQIsdp"), &[3, 0b1100_0010, 0, 60], &field("me"), &field("user")]);
    let Packet::Connect(connect) = decode(None, Server, &bytes).unwrap() else { panic!("not a CONNECT") };
    assert_eq!((connect.username, connect.password), (Some("user"), None));
}

#[test]
fn an_old_client_may_set_will_bits_without_a_will() {
    // MQTT-3.1 3.1: disregarded without the will flag.
    let bytes = frame(0x10, &[&field("MQIsdp"), &[3, 0b0011_1010, 0, 60], &field("me")]);
    let Packet::Connect(connect) = decode(None, Server, &bytes).unwrap() else { panic!("not a CONNECT") };
    assert_eq!(connect.will, None);
}

#[test]
fn an_old_client_may_have_a_long_identifier() {
    let bytes = frame(0x10, &[&field("MQIsdp"), &[3, 2, 0, 60], &field("x".repeat(24))]);
    assert!(matches!(decode(None, Server, &bytes), Ok(Packet::Connect(_))));
}

#[test]
fn an_old_client_may_mark_a_repeated_subscription() {
    // MQTT-3.1 2.1: DUP goes with PUBREL, SUBSCRIBE and UNSUBSCRIBE too.
    for bytes in [
        frame(0x6A, &[&[0, 1]]),
        frame(0x8A, &[&[0, 1], &field("t"), &[1]]),
        frame(0xAA, &[&[0, 1], &field("t")]),
    ] {
        decode(Some(V31), Server, &bytes).unwrap();
    }
}

/// MQTT-3.1 2.1, 3.1: neither these flags nor bit 0 of the connect flags are used.
#[test]
fn an_old_client_may_set_what_its_version_leaves_unused() {
    for flags in 0..16 {
        let connect = frame(0x10 | flags, &[&field("MQIsdp"), &[3, 3, 0, 60], &field("me")]);
        assert!(matches!(decode(None, Server, &connect), Ok(Packet::Connect(_))), "{flags:04b}");
        for (kind, body) in [(0xC0, &[][..]), (0xE0, &[]), (0x40, &[0, 1]), (0x50, &[0, 1]), (0x70, &[0, 1])]
        {
            decode(Some(V31), Server, &frame(kind | flags, &[body])).unwrap();
        }
    }
    for flags in [0b0010, 0b0011, 0b1010, 0b1011] {
        decode(Some(V31), Server, &frame(0x80 | flags, &[&[0, 1], &field("t"), &[1]])).unwrap();
    }
}

#[test]
fn before_5_0_the_remaining_length_may_be_padded() {
    for version in [V31, V311] {
        assert_eq!(decode(Some(version), Server, &[0xC0, 0x80, 0x80, 0x80, 0]), Ok(Packet::PingReq));
    }
    let connect = frame(0x10, &[&field("MQTT"), &[4, 2, 0, 60], &field("me")]);
    let padded = [&[0x10, 0x80 | connect[1], 0][..], &connect[2..]].concat();
    assert!(matches!(decode(None, Server, &padded), Ok(Packet::Connect(_))));
}

#[test]
fn a_client_of_5_0_may_have_a_password_alone_and_no_identifier() {
    let bytes = frame(0x10, &[&field("MQTT"), &[5, 0b0100_0000, 0, 60, 0], &field(""), &field("token")]);
    let Packet::Connect(connect) = decode(None, Server, &bytes).unwrap() else { panic!("not a CONNECT") };
    assert_eq!((connect.client_id, connect.username, connect.password), ("", None, Some(&b"token"[..])));
}

#[test]
fn absent_connect_properties_have_the_values_of_the_standard() {
    let bytes = frame(0x10, &[&field("MQTT"), &[5, 2, 0, 60, 0], &field("me")]);
    let Packet::Connect(connect) = decode(None, Server, &bytes).unwrap() else { panic!("not a CONNECT") };
    assert_eq!(connect.session_expiry_interval, 0);
    assert_eq!(connect.receive_maximum, 65_535);
    assert_eq!(connect.maximum_packet_size, None);
    assert_eq!(connect.topic_alias_maximum, 0);
    assert!(connect.request_problem_information && !connect.request_response_information);
}

#[test]
fn user_properties_keep_order_and_duplicates_among_other_properties() {
    let list = properties(&[
        &user("b", "1"),
        &property(0x01, [1]),
        &user("a", "2"),
        &property(0x03, field("text")),
        &user("b", "1"),
        &property(0x23, [0, 9]),
    ]);
    let bytes = frame(0x30, &[&field("t"), &list, b"x"]);
    let Packet::Publish(publish) = decode(Some(V5), Server, &bytes).unwrap() else { panic!("not a PUBLISH") };
    let pairs: Vec<_> = publish.properties.user_properties.iter().collect();
    assert_eq!(pairs, [("b", "1"), ("a", "2"), ("b", "1")]);
    assert_eq!(publish.properties.user_properties.len(), 3);
    assert_eq!(publish.properties.user_properties.get("a"), Some("2"));
    assert_eq!(publish.properties.user_properties.get("c"), None);
    assert_eq!(publish.properties.topic_alias, Some(9));
}

#[test]
fn a_server_may_name_several_subscriptions_in_one_publish() {
    let list =
        properties(&[&property(0x0B, [1]), &property(0x0B, [1]), &property(0x0B, [0xFF, 0xFF, 0xFF, 0x7F])]);
    let bytes = frame(0x30, &[&field("t"), &list]);
    let Packet::Publish(publish) = decode(Some(V5), Client, &bytes).unwrap() else { panic!("not a PUBLISH") };
    assert_eq!(publish.properties.subscription_identifiers[..], [1, 1, 268_435_455]);
}

#[test]
fn an_acknowledgement_of_5_0_may_be_short() {
    for (bytes, reason) in [
        (frame(0x40, &[&[0, 1]]), ReasonCode::Success),
        (frame(0x40, &[&[0, 1, 0x10]]), ReasonCode::NoMatchingSubscribers),
        (frame(0x40, &[&[0, 1, 0x97, 0]]), ReasonCode::QuotaExceeded),
    ] {
        let Packet::PubAck(ack) = decode(Some(V5), Server, &bytes).unwrap() else { panic!("not a PUBACK") };
        assert_eq!(ack.reason, reason);
    }
}

#[test]
fn a_disconnect_of_5_0_may_be_short() {
    for (bytes, reason) in [
        (frame(0xE0, &[]), ReasonCode::Success),
        (frame(0xE0, &[&[4]]), ReasonCode::DisconnectWithWill),
        (frame(0xE0, &[&[0, 0]]), ReasonCode::Success),
    ] {
        let Packet::Disconnect(disconnect) = decode(Some(V5), Server, &bytes).unwrap() else {
            panic!("not a DISCONNECT")
        };
        assert_eq!(disconnect.reason, reason);
    }
}

#[test]
fn before_5_0_a_share_prefix_is_an_ordinary_topic() {
    for filter in ["$share/g", "$share//t", "$share/+/t"] {
        let bytes = frame(0x82, &[&[0, 1], &field(filter), &[1]]);
        let Packet::Subscribe(subscribe) = decode(Some(V311), Server, &bytes).unwrap() else {
            panic!("not a SUBSCRIBE")
        };
        assert_eq!(subscribe.filters[0].filter, filter);
        assert_eq!(subscribe.filters[0].options.qos, QoS::AtLeastOnce);
    }
}

#[test]
fn control_characters_and_byte_order_marks_are_ordinary_text() {
    // MQTT-1.5.4-3: U+FEFF must not be stripped; U+0001 may be refused, we do not.
    let bytes = frame(0x30, &[&field("\u{FEFF}a\u{1}\u{7F}\u{FFFF}")]);
    let Packet::Publish(publish) = decode(Some(V311), Server, &bytes).unwrap() else {
        panic!("not a PUBLISH")
    };
    assert_eq!(publish.topic, "\u{FEFF}a\u{1}\u{7F}\u{FFFF}");
}

#[test]
fn a_packet_of_exactly_the_maximum_is_taken_and_one_byte_more_is_not() {
    let bytes = frame(0x30, &[&field("t"), &[0; 200]]);
    for (maximum, taken) in [(bytes.len(), true), (bytes.len() - 1, false)] {
        let mut decoder = Decoder::new(Role::Server, maximum as u32);
        decoder.version = Some(V311);
        assert_eq!(decoder.decode(&bytes).is_ok(), taken);
        // Said as soon as the length is known, not when the packet is there.
        let early = decoder.decode(&bytes[..3]);
        assert_eq!(early == Ok(Decoded::Incomplete { needed: bytes.len() }), taken);
        assert_eq!(early.err().map(|error| error.reason), (!taken).then_some(ReasonCode::PacketTooLarge));
    }
}

#[test]
fn a_topic_of_exactly_the_most_levels_is_taken() {
    let topic = "/".repeat(127);
    let bytes = frame(0x30, &[&field(&topic)]);
    assert!(matches!(decode(Some(V311), Server, &bytes), Ok(Packet::Publish(_))));
    let bytes = frame(0x82, &[&[0, 1, 0], &field(format!("$share/g/{topic}")), &[0]]);
    assert!(matches!(decode(Some(V5), Server, &bytes), Ok(Packet::Subscribe(_))));
}
