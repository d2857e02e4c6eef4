//! Illegal packets and the reason with which each is refused.
//!
//! A case names the section it breaks, and a piece of the error text, so that it cannot pass because
//! something else is wrong with it.

use causeway_protocol::mqtt::ReasonCode::{
    self, ClientIdentifierNotValid, MalformedPacket, PacketTooLarge, ProtocolError, TopicAliasInvalid,
    TopicFilterInvalid, TopicNameInvalid, UnsupportedProtocolVersion,
};
use causeway_protocol::mqtt::Role::{self, Client, Server};
use causeway_protocol::mqtt::Version::{self, V5, V31, V311};

use crate::wire::{decoder, field, frame, properties, property, user};

struct Case {
    section: &'static str,
    version: Option<Version>,
    role: Role,
    bytes: Vec<u8>,
    reason: ReasonCode,
    text: &'static str,
}

fn check(cases: &[Case]) {
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let context = format!("case {index}, {}, {:?} {:?}", case.section, case.version, case.role);
        match decoder(case.version, case.role).decode(&case.bytes) {
            Err(error) if error.reason == case.reason && error.what.contains(case.text) => {}
            other => wrong.push(format!(
                "{context}: wanted {:?} `{}`, got {other:?} for {:02x?}",
                case.reason,
                case.text,
                &case.bytes[..case.bytes.len().min(60)]
            )),
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Section, version, role, bytes, reason, piece of the text.
macro_rules! cases {
    ($($section:literal, $version:expr, $role:expr, $bytes:expr, $reason:expr, $text:literal;)*) => {
        [$(Case { section: $section, version: $version, role: $role, bytes: $bytes, reason: $reason, text: $text }),*]
    };
}

const NO_PROPERTIES: &[u8] = &[0];
const ID: &[u8] = &[0, 7];

/// CONNECT of 5.0 from flags on: flags, keep-alive, then `rest`.
fn connect5(flags: u8, rest: &[&[u8]]) -> Vec<u8> {
    let rest = rest.concat();
    frame(0x10, &[&field("MQTT"), &[5, flags, 0, 60], &rest])
}

/// CONNECT of 5.0 with these properties and nothing unusual.
fn connect5_with(list: &[&[u8]]) -> Vec<u8> {
    connect5(2, &[&properties(list), &field("me")])
}

/// CONNECT of 5.0 with a will that has these properties.
fn will5_with(list: &[&[u8]]) -> Vec<u8> {
    connect5(0b0000_0110, &[NO_PROPERTIES, &field("me"), &properties(list), &field("w"), &field("bye")])
}

fn connect4(flags: u8, rest: &[&[u8]]) -> Vec<u8> {
    let rest = rest.concat();
    frame(0x10, &[&field("MQTT"), &[4, flags, 0, 60], &rest])
}

fn connect3(flags: u8, rest: &[&[u8]]) -> Vec<u8> {
    let rest = rest.concat();
    frame(0x10, &[&field("MQIsdp"), &[3, flags, 0, 60], &rest])
}

/// QoS 0 PUBLISH of 5.0 to `t` with these properties.
fn publish5_with(list: &[&[u8]]) -> Vec<u8> {
    frame(0x30, &[&field("t"), &properties(list), b"payload"])
}

/// CONNACK of 5.0 with these properties.
fn connack5_with(list: &[&[u8]]) -> Vec<u8> {
    frame(0x20, &[&[0, 0], &properties(list)])
}

fn subscribe5(filter: &[u8], options: u8) -> Vec<u8> {
    frame(0x82, &[ID, NO_PROPERTIES, &field(filter), &[options]])
}

fn subscribe4(filter: &[u8], options: u8) -> Vec<u8> {
    frame(0x82, &[ID, &field(filter), &[options]])
}

fn auth_with(reason: u8, list: &[&[u8]]) -> Vec<u8> {
    frame(0xF0, &[&[reason], &properties(list)])
}

#[test]
fn fixed_headers_that_no_version_has() {
    let huge = [0xFF_u8, 0xFF, 0xFF, 0x7F];
    let mut cases = Vec::from(cases! {
        "MQTT-5.0 2.1.2", Some(V5), Server, vec![0x00], MalformedPacket, "reserved control packet type";
        "MQTT-5.0 2.1.2", Some(V5), Client, vec![0x00, 0], MalformedPacket, "reserved control packet type";
        "MQTT-3.1.1 2.2.1", Some(V311), Server, vec![0x00], MalformedPacket, "reserved control packet type";
        "MQTT-3.1.1 2.2.1", Some(V311), Server, vec![0xF0], MalformedPacket, "reserved control packet type";
        "MQTT-3.1 2.1", Some(V31), Client, vec![0xF0, 0], MalformedPacket, "reserved control packet type";
        "MQTT-5.0 2.1.4", Some(V5), Server, vec![0x30, 0x80, 0x80, 0x80, 0x80], MalformedPacket, "more than 4 bytes";
        "MQTT-3.1.1 2.2.3", Some(V311), Server, vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1], MalformedPacket, "more than 4 bytes";
        "MQTT-3.1.1 2.2.3", None, Server, vec![0x10, 0xFF, 0xFF, 0xFF, 0x80], MalformedPacket, "more than 4 bytes";
        "MQTT-1.5.5-1", Some(V5), Server, vec![0xC0, 0x80, 0x00], MalformedPacket, "more bytes than it needs";
        "MQTT-1.5.5-1", Some(V5), Server, [&[0x30, 0x84, 0x00][..], &field("t"), NO_PROPERTIES].concat(), MalformedPacket, "more bytes than it needs";
        "MQTT-1.5.5-1", Some(V5), Client, vec![0x40, 0x82, 0x80, 0x00, 0, 7], MalformedPacket, "more bytes than it needs";
        "MQTT-1.5.5-1", None, Server, [&[0x10, 0x8F, 0x00][..], &connect5_with(&[])[2..]].concat(), MalformedPacket, "more bytes than it needs";
        "MQTT-5.0 3.1.2.11.4", Some(V5), Server, [&[0x30][..], &huge].concat(), PacketTooLarge, "larger than this end accepts";
        "MQTT-5.0 3.1.2.11.4", Some(V311), Server, [&[0x32][..], &huge].concat(), PacketTooLarge, "larger than this end accepts";
        "MQTT-5.0 3.1.2.11.4", None, Server, [&[0x10][..], &huge].concat(), PacketTooLarge, "larger than this end accepts";
        "MQTT-5.0 3.1.2.11.4", Some(V5), Client, [&[0x30][..], &huge].concat(), PacketTooLarge, "larger than this end accepts";
        "MQTT-5.0 3.12", Some(V5), Server, vec![0xC0, 1], MalformedPacket, "remaining length that this packet cannot have";
        "MQTT-3.1.1 3.12", Some(V311), Server, vec![0xC0, 2, 0], MalformedPacket, "remaining length that this packet cannot have";
        "MQTT-5.0 3.13", Some(V5), Client, vec![0xD0, 1, 0], MalformedPacket, "remaining length that this packet cannot have";
        "MQTT-3.1.1 3.14", Some(V311), Server, vec![0xE0, 1, 0], MalformedPacket, "remaining length that this packet cannot have";
        "MQTT-3.1.1 3.4.1", Some(V311), Server, vec![0x40, 3], MalformedPacket, "remaining length that this packet cannot have";
        "MQTT-3.1.1 3.4.1", Some(V311), Server, vec![0x40, 1], MalformedPacket, "remaining length that this packet cannot have";
        "MQTT-3.1.1 3.5.1", Some(V311), Client, vec![0x50, 4], MalformedPacket, "remaining length that this packet cannot have";
        "MQTT-3.1.1 3.6.1", Some(V31), Client, vec![0x62, 0], MalformedPacket, "remaining length that this packet cannot have";
        "MQTT-3.1.1 3.7.1", Some(V31), Server, vec![0x70, 3], MalformedPacket, "remaining length that this packet cannot have";
        "MQTT-3.1.1 3.2.1", Some(V311), Client, vec![0x20, 3], MalformedPacket, "remaining length that this packet cannot have";
        "MQTT-3.1.1 3.11.1", Some(V311), Client, vec![0xB0, 3], MalformedPacket, "remaining length that this packet cannot have";
    });
    // MQTT-2.1.3-1: each packet's own flags and no others.
    for first in 0x10..=0xFF_u8 {
        let (kind, flags) = (first >> 4, first & 15);
        let listed = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
        // What CONNECT may have is known with its version only.
        if kind == 1 || kind == 3 || flags == listed {
            continue;
        }
        let version = Some(V5);
        let role = if matches!(kind, 2 | 9 | 11 | 13) { Client } else { Server };
        cases.extend(cases! {
            "MQTT-2.1.3-1", version, role, vec![first], MalformedPacket, "reserved flags";
        });
    }
    for first in [0x36, 0x37, 0x3E, 0x3F] {
        for version in [V31, V311, V5] {
            cases.extend(cases! {
                "MQTT-3.3.1-4", Some(version), Server, vec![first], MalformedPacket, "QoS 3";
            });
        }
    }
    for first in [0x38, 0x39] {
        for version in [V31, V311, V5] {
            cases.extend(cases! {
                "MQTT-3.3.1-2", Some(version), Client, vec![first], MalformedPacket, "DUP and QoS 0";
            });
        }
    }
    for flags in 1..16 {
        let first = 0x10 | flags;
        let behind = |connect: Vec<u8>| [&[first][..], &connect[1..]].concat();
        cases.extend(cases! {
            "MQTT-2.1.3-1", None, Server, behind(connect5(2, &[NO_PROPERTIES, &field("me")])), MalformedPacket, "reserved flags";
            "MQTT-3.1.1 2.2.2", None, Server, behind(connect4(2, &[&field("me")])), MalformedPacket, "reserved flags";
        });
    }
    // MQTT 3.1 needs QoS 1 in these three, and does not use RETAIN.
    for first in [0x60, 0x66, 0x80, 0x84, 0xA0, 0xA6] {
        cases.extend(cases! {
            "MQTT-3.1 2.1", Some(V31), Server, vec![first], MalformedPacket, "reserved flags";
        });
    }
    cases.extend(cases! {
        "MQTT-3.1.1 2.2.2", Some(V311), Server, vec![0x6A], MalformedPacket, "reserved flags";
        "MQTT-3.1.1 2.2.2", Some(V311), Server, vec![0x8A], MalformedPacket, "reserved flags";
    });
    assert!(cases.len() > 200, "{} cases", cases.len());
    check(&cases);
}

#[test]
fn packets_from_the_wrong_end_or_at_the_wrong_time() {
    let mut cases = Vec::new();
    for version in [V31, V311, V5] {
        for first in [0x20, 0x90, 0xB0, 0xD0] {
            cases.extend(cases! {
                "MQTT-5.0 2.1.2", Some(version), Server, vec![first], ProtocolError, "only a server sends";
            });
        }
        for first in [0x10, 0x82, 0xA2, 0xC0] {
            cases.extend(cases! {
                "MQTT-5.0 2.1.2", Some(version), Client, vec![first], ProtocolError, "only a client sends";
            });
        }
        cases.extend(cases! {
            "MQTT-3.1.0-2", Some(version), Server, vec![0x10], ProtocolError, "second CONNECT";
        });
    }
    for first in [0x30, 0x32, 0x40, 0x50, 0x62, 0x70, 0x82, 0xA2, 0xC0, 0xE0, 0xF0] {
        cases.extend(cases! {
            "MQTT-3.1.0-1", None, Server, vec![first], ProtocolError, "first packet must be CONNECT";
        });
    }
    cases.extend(cases! {
        "MQTT-3.1.1 3.14", Some(V311), Client, vec![0xE0, 0], ProtocolError, "from MQTT 5.0 on";
        "MQTT-3.1 3.14", Some(V31), Client, vec![0xE0], ProtocolError, "from MQTT 5.0 on";
    });
    check(&cases);
}

#[test]
fn connects_that_no_server_may_accept() {
    let me = field("me");
    let long_topic = "a/".repeat(128);
    check(&cases! {
        // Name and level.
        "MQTT-3.1.2-1", None, Server, frame(0x10, &[&field("MQTX"), &[5, 2, 0, 60, 0], &me]), UnsupportedProtocolVersion, "protocol name";
        "MQTT-3.1.2-1", None, Server, frame(0x10, &[&field("mqtt"), &[4, 2, 0, 60], &me]), UnsupportedProtocolVersion, "protocol name";
        "MQTT-3.1.2-1", None, Server, frame(0x10, &[&field(""), &[4, 2, 0, 60], &me]), UnsupportedProtocolVersion, "protocol name";
        "MQTT-3.1.2-1", None, Server, frame(0x10, &[&field("MQIsdp"), &[4, 2, 0, 60], &me]), UnsupportedProtocolVersion, "`MQIsdp` that is not 3";
        "MQTT-3.1.2-1", None, Server, frame(0x10, &[&field("MQTT"), &[3, 2, 0, 60], &me]), UnsupportedProtocolVersion, "neither 4 nor 5";
        "MQTT-3.1.2-2", None, Server, frame(0x10, &[&field("MQTT"), &[0, 2, 0, 60], &me]), UnsupportedProtocolVersion, "neither 4 nor 5";
        "MQTT-3.1.2-2", None, Server, frame(0x10, &[&field("MQTT"), &[6, 2, 0, 60, 0], &me]), UnsupportedProtocolVersion, "newer than 5";
        "MQTT-3.1.2-2", None, Server, frame(0x10, &[&field("MQTT"), &[0x84, 2, 0, 60], &me]), UnsupportedProtocolVersion, "neither 4 nor 5";
        "MQTT-3.1.2-2", None, Server, frame(0x10, &[&field("MQTT"), &[0x85, 2, 0, 60, 0], &me]), UnsupportedProtocolVersion, "newer than 5";
        "MQTT-1.5.4-1", None, Server, frame(0x10, &[&field(b"MQ\xFFT"), &[4, 2, 0, 60], &me]), MalformedPacket, "UTF-8";
        "MQTT-5.0 3.1", None, Server, frame(0x10, &[]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.1.2", None, Server, frame(0x10, &[&[0, 4], b"MQ"]), MalformedPacket, "past the end";
        "MQTT-5.0 3.1.2", None, Server, frame(0x10, &[&field("MQTT")]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.1.2", None, Server, frame(0x10, &[&field("MQTT"), &[5]]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.1.2", None, Server, frame(0x10, &[&field("MQTT"), &[5, 2, 0]]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.1.2", None, Server, frame(0x10, &[&field("MQTT"), &[5, 2, 0, 60]]), MalformedPacket, "ends inside a variable";
        // Flags.
        "MQTT-3.1.2-3", None, Server, connect5(3, &[NO_PROPERTIES, &me]), MalformedPacket, "reserved connect flag";
        "MQTT-3.1.2-3", None, Server, connect4(3, &[&me]), MalformedPacket, "reserved connect flag";
        "MQTT-3.1.2-11", None, Server, connect5(0b0000_1010, &[NO_PROPERTIES, &me]), MalformedPacket, "without the will flag";
        "MQTT-3.1.2-11", None, Server, connect4(0b0001_0010, &[&me]), MalformedPacket, "without the will flag";
        "MQTT-3.1.2-13", None, Server, connect5(0b0010_0010, &[NO_PROPERTIES, &me]), MalformedPacket, "without the will flag";
        "MQTT-3.1.2-15", None, Server, connect4(0b0010_0010, &[&me]), MalformedPacket, "without the will flag";
        "MQTT-3.1.2-12", None, Server, connect5(0b0001_1110, &[NO_PROPERTIES, &me, NO_PROPERTIES, &field("w"), &field("")]), MalformedPacket, "will QoS 3";
        "MQTT-3.1.2-14", None, Server, connect4(0b0001_1110, &[&me, &field("w"), &field("")]), MalformedPacket, "will QoS 3";
        "MQTT-3.1 3.1", None, Server, connect3(0b0001_1110, &[&me, &field("w"), &field("")]), MalformedPacket, "will QoS 3";
        "MQTT-3.1.2-22", None, Server, connect4(0b0100_0010, &[&me, &field("secret")]), MalformedPacket, "without a user name";
        "MQTT-3.1 3.1", None, Server, connect3(0b0100_0010, &[&me, &field("secret")]), MalformedPacket, "without a user name";
        // Client identifier.
        "MQTT-3.1.3-8", None, Server, connect4(0, &[&field("")]), ClientIdentifierNotValid, "empty client identifier";
        "MQTT-3.1 3.1", None, Server, connect3(2, &[&field("")]), ClientIdentifierNotValid, "empty client identifier";
        "MQTT-3.1.3-4", None, Server, connect5(2, &[NO_PROPERTIES, &field(b"\xC3\x28")]), MalformedPacket, "UTF-8";
        "MQTT-1.5.4-1", None, Server, connect4(2, &[&field(b"\xED\xA0\x80")]), MalformedPacket, "UTF-8";
        "MQTT-1.5.4-2", None, Server, connect5(2, &[NO_PROPERTIES, &field("a\0b")]), MalformedPacket, "U+0000";
        "MQTT-1.5.3-2", None, Server, connect4(2, &[&field("\0")]), MalformedPacket, "U+0000";
        "MQTT-5.0 3.1.3.1", None, Server, connect4(2, &[]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.1.3.1", None, Server, connect5(2, &[NO_PROPERTIES, &[0, 9], b"short"]), MalformedPacket, "past the end";
        // Payload against flags.
        "MQTT-3.1.3-1", None, Server, connect5(2, &[NO_PROPERTIES, &me, &field("user")]), MalformedPacket, "behind the end";
        "MQTT-3.1.2-18", None, Server, connect4(2, &[&me, &field("user")]), MalformedPacket, "behind the end";
        "MQTT-3.1 3.1", None, Server, connect3(2, &[&me, &field("user")]), MalformedPacket, "behind the end";
        "MQTT-3.1.2-17", None, Server, connect5(0b1000_0010, &[NO_PROPERTIES, &me]), MalformedPacket, "ends inside";
        "MQTT-3.1.2-19", None, Server, connect4(0b1000_0010, &[&me]), MalformedPacket, "ends inside";
        "MQTT-3.1.2-19", None, Server, connect5(0b1100_0010, &[NO_PROPERTIES, &me, &field("user")]), MalformedPacket, "ends inside";
        "MQTT-3.1.2-21", None, Server, connect4(0b1100_0010, &[&me, &field("user")]), MalformedPacket, "ends inside";
        "MQTT-3.1.2-9", None, Server, connect4(0b0000_0110, &[&me]), MalformedPacket, "ends inside";
        "MQTT-3.1.2-9", None, Server, connect5(0b0000_0110, &[NO_PROPERTIES, &me]), MalformedPacket, "ends inside a variable";
        "MQTT-3.1.2-9", None, Server, connect4(0b0000_0110, &[&me, &field("w")]), MalformedPacket, "ends inside";
        "MQTT-3.1.3-11", None, Server, connect4(0b1000_0010, &[&me, &field(b"\xFF")]), MalformedPacket, "UTF-8";
        "MQTT-3.1.3-12", None, Server, connect5(0b1000_0010, &[NO_PROPERTIES, &me, &field("a\0")]), MalformedPacket, "U+0000";
        // Will.
        "MQTT-3.1.3-11", None, Server, connect4(0b0000_0110, &[&me, &field(b"\xFF"), &field("")]), MalformedPacket, "UTF-8";
        "MQTT-1.5.4-2", None, Server, connect5(0b0000_0110, &[NO_PROPERTIES, &me, NO_PROPERTIES, &field("a\0"), &field("")]), MalformedPacket, "U+0000";
        "MQTT-4.7.3-1", None, Server, connect5(0b0000_0110, &[NO_PROPERTIES, &me, NO_PROPERTIES, &field(""), &field("")]), TopicNameInvalid, "empty topic";
        "MQTT-4.7.3-1", None, Server, connect4(0b0000_0110, &[&me, &field(""), &field("")]), TopicNameInvalid, "empty topic";
        "MQTT-4.7.1-1", None, Server, connect5(0b0000_0110, &[NO_PROPERTIES, &me, NO_PROPERTIES, &field("w/#"), &field("")]), TopicNameInvalid, "wildcard";
        "MQTT-4.7.1-1", None, Server, connect3(0b0000_0110, &[&me, &field("w/+"), &field("")]), TopicNameInvalid, "wildcard";
        "MQTT-5.0 4.7.3", None, Server, connect4(0b0000_0110, &[&me, &field(&long_topic), &field("")]), TopicNameInvalid, "levels";
        "MQTT-5.0 3.1.3.2.2", None, Server, will5_with(&[&property(0x18, [0, 0, 0, 1]), &property(0x18, [0, 0, 0, 1])]), ProtocolError, "twice";
        "MQTT-5.0 3.1.3.2.3", None, Server, will5_with(&[&property(0x01, [2])]), ProtocolError, "0 or 1";
        "MQTT-5.0 3.1.3.2.3", None, Server, will5_with(&[&property(0x01, [1]), &property(0x01, [1])]), ProtocolError, "twice";
        "MQTT-5.0 3.1.3.2.4", None, Server, will5_with(&[&property(0x02, [0; 4]), &property(0x02, [0; 4])]), ProtocolError, "twice";
        "MQTT-5.0 3.1.3.2.5", None, Server, will5_with(&[&property(0x03, field("a")), &property(0x03, field("b"))]), ProtocolError, "twice";
        "MQTT-5.0 3.1.3.2.6", None, Server, will5_with(&[&property(0x08, field("a")), &property(0x08, field("b"))]), ProtocolError, "twice";
        "MQTT-3.3.2-14", None, Server, will5_with(&[&property(0x08, field("a/#"))]), ProtocolError, "response topic";
        "MQTT-5.0 3.1.3.2.7", None, Server, will5_with(&[&property(0x09, field("a")), &property(0x09, field("b"))]), ProtocolError, "twice";
        "MQTT-5.0 3.1.3.2", None, Server, will5_with(&[&property(0x23, [0, 1])]), MalformedPacket, "may not carry";
        "MQTT-5.0 3.1.3.2", None, Server, will5_with(&[&property(0x0B, [1])]), MalformedPacket, "may not carry";
        "MQTT-5.0 3.1.3.2", None, Server, will5_with(&[&property(0x11, [0; 4])]), MalformedPacket, "may not carry";
        "MQTT-5.0 3.1.3.2.8", None, Server, will5_with(&[&property(0x26, field("name only"))]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.1.3.2.1", None, Server, connect5(0b0000_0110, &[NO_PROPERTIES, &me, &[120], &field("w"), &field("bye")]), MalformedPacket, "property length";
    });
}

#[test]
fn connect_properties_that_break_a_rule() {
    check(&cases! {
        "MQTT-5.0 3.1.2.11.1", None, Server, connect5(2, &[&[9], &field("me")]), MalformedPacket, "property length";
        "MQTT-5.0 3.1.2.11.1", None, Server, connect5(2, &[&[0x80, 0x00], &field("me")]), MalformedPacket, "more bytes than it needs";
        "MQTT-5.0 3.1.2.11.1", None, Server, connect5(2, &[&[0x80, 0x80, 0x80, 0x80, 1], &field("me")]), MalformedPacket, "more than 4 bytes";
        "MQTT-5.0 3.1.2.11.2", None, Server, connect5_with(&[&property(0x11, [0; 4]), &property(0x11, [0; 4])]), ProtocolError, "twice";
        "MQTT-5.0 3.1.2.11.2", None, Server, connect5_with(&[&property(0x11, [0; 3])]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.1.2.11.3", None, Server, connect5_with(&[&property(0x21, [0, 1]), &property(0x21, [0, 1])]), ProtocolError, "twice";
        "MQTT-5.0 3.1.2.11.3", None, Server, connect5_with(&[&property(0x21, [0, 0])]), ProtocolError, "receive maximum 0";
        "MQTT-5.0 3.1.2.11.4", None, Server, connect5_with(&[&property(0x27, [0, 0, 1, 0]), &property(0x27, [0, 0, 1, 0])]), ProtocolError, "twice";
        "MQTT-5.0 3.1.2.11.4", None, Server, connect5_with(&[&property(0x27, [0; 4])]), ProtocolError, "maximum packet size 0";
        "MQTT-5.0 3.1.2.11.5", None, Server, connect5_with(&[&property(0x22, [0, 0]), &property(0x22, [0, 0])]), ProtocolError, "twice";
        "MQTT-5.0 3.1.2.11.6", None, Server, connect5_with(&[&property(0x19, [1]), &property(0x19, [1])]), ProtocolError, "twice";
        "MQTT-5.0 3.1.2.11.6", None, Server, connect5_with(&[&property(0x19, [2])]), ProtocolError, "0 or 1";
        "MQTT-5.0 3.1.2.11.7", None, Server, connect5_with(&[&property(0x17, [0]), &property(0x17, [0])]), ProtocolError, "twice";
        "MQTT-5.0 3.1.2.11.7", None, Server, connect5_with(&[&property(0x17, [255])]), ProtocolError, "0 or 1";
        "MQTT-5.0 3.1.2.11.8", None, Server, connect5_with(&[&user("k", "a\0")]), MalformedPacket, "U+0000";
        "MQTT-5.0 3.1.2.11.8", None, Server, connect5_with(&[&property(0x26, [field(b"\xFF"), field("v")].concat())]), MalformedPacket, "UTF-8";
        "MQTT-5.0 3.1.2.11.9", None, Server, connect5_with(&[&property(0x15, field("a")), &property(0x15, field("a"))]), ProtocolError, "twice";
        "MQTT-5.0 3.1.2.11.10", None, Server, connect5_with(&[&property(0x16, field("a"))]), ProtocolError, "without an authentication method";
        "MQTT-5.0 3.1.2.11.10", None, Server, connect5_with(&[&property(0x15, field("a")), &property(0x16, field("a")), &property(0x16, field("a"))]), ProtocolError, "twice";
        "MQTT-5.0 2.2.2.2", None, Server, connect5_with(&[&property(0x01, [1])]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", None, Server, connect5_with(&[&property(0x18, [0; 4])]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", None, Server, connect5_with(&[&property(0x1F, field("why"))]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", None, Server, connect5_with(&[&property(0x12, field("id"))]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", None, Server, connect5_with(&[&property(0x24, [1])]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", None, Server, connect5_with(&[&property(0x00, [])]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", None, Server, connect5_with(&[&property(0x2B, [0])]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", None, Server, connect5_with(&[&property(0x7F, [0])]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", None, Server, connect5_with(&[&property(0x91, [0, 0, 0, 0, 0])]), MalformedPacket, "may not carry";
    });
}

#[test]
fn publishes_that_break_a_rule() {
    let deep = "/".repeat(65_535);
    check(&cases! {
        "MQTT-2.2.1-3", Some(V5), Server, frame(0x32, &[&field("t"), &[0, 0], NO_PROPERTIES]), ProtocolError, "packet identifier 0";
        "MQTT-2.3.1-1", Some(V311), Server, frame(0x34, &[&field("t"), &[0, 0], b"x"]), ProtocolError, "packet identifier 0";
        "MQTT-3.1 2.4", Some(V31), Client, frame(0x32, &[&field("t"), &[0, 0], b"x"]), ProtocolError, "packet identifier 0";
        "MQTT-5.0 3.3.2.2", Some(V5), Server, frame(0x32, &[&field("t"), &[1]]), MalformedPacket, "ends inside";
        "MQTT-3.1.1 3.3.2.2", Some(V311), Server, frame(0x32, &[&field("t")]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.3.2.1", Some(V5), Server, frame(0x30, &[&[0, 9], b"t"]), MalformedPacket, "past the end";
        "MQTT-5.0 3.3.2.1", Some(V5), Server, frame(0x30, &[&[0]]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.3.2.1", Some(V311), Server, frame(0x30, &[]), MalformedPacket, "ends inside";
        "MQTT-3.3.2-1", Some(V5), Server, frame(0x30, &[&field(b"\xFE"), NO_PROPERTIES]), MalformedPacket, "UTF-8";
        "MQTT-3.3.2-1", Some(V311), Server, frame(0x30, &[&field(b"a\xED\xBF\xBF")]), MalformedPacket, "UTF-8";
        "MQTT-1.5.4-1", Some(V311), Server, frame(0x30, &[&field(b"\xC0\x80")]), MalformedPacket, "UTF-8";
        "MQTT-4.7.3-2", Some(V5), Server, frame(0x30, &[&field("a\0b"), NO_PROPERTIES]), MalformedPacket, "U+0000";
        "MQTT-4.7.3-2", Some(V31), Server, frame(0x30, &[&field("\0")]), MalformedPacket, "U+0000";
        "MQTT-3.3.2-2", Some(V5), Server, frame(0x30, &[&field("a/+"), NO_PROPERTIES]), TopicNameInvalid, "wildcard";
        "MQTT-3.3.2-2", Some(V5), Client, frame(0x30, &[&field("#"), NO_PROPERTIES]), TopicNameInvalid, "wildcard";
        "MQTT-3.3.2-2", Some(V311), Server, frame(0x32, &[&field("a#"), &[0, 1]]), TopicNameInvalid, "wildcard";
        "MQTT-3.1 Appendix A", Some(V31), Server, frame(0x30, &[&field("+")]), TopicNameInvalid, "wildcard";
        "MQTT-4.7.3-1", Some(V311), Server, frame(0x30, &[&field("")]), TopicNameInvalid, "empty topic";
        "MQTT-4.7.3-1", Some(V31), Server, frame(0x30, &[&field("")]), TopicNameInvalid, "empty topic";
        "MQTT-5.0 3.3.2.1", Some(V5), Server, frame(0x30, &[&field(""), NO_PROPERTIES, b"x"]), ProtocolError, "without a topic alias";
        "MQTT-5.0 3.3.2.1", Some(V5), Client, frame(0x30, &[&field(""), &properties(&[&property(0x01, [1])])]), ProtocolError, "without a topic alias";
        "MQTT-5.0 4.7.3", Some(V5), Server, frame(0x30, &[&field(&deep), NO_PROPERTIES]), TopicNameInvalid, "levels";
        "MQTT-5.0 4.7.3", Some(V311), Server, frame(0x30, &[&field("/".repeat(128))]), TopicNameInvalid, "levels";
        "MQTT-5.0 3.3.2.3.1", Some(V5), Server, frame(0x30, &[&field("t")]), MalformedPacket, "ends inside a variable";
        "MQTT-5.0 3.3.2.3.1", Some(V5), Server, frame(0x30, &[&field("t"), &[5, 1, 1]]), MalformedPacket, "property length";
        "MQTT-1.5.5-1", Some(V5), Server, frame(0x30, &[&field("t"), &[0x82, 0x00, 1, 1]]), MalformedPacket, "more bytes than it needs";
        "MQTT-5.0 3.3.2.3.2", Some(V5), Server, publish5_with(&[&property(0x01, [2])]), ProtocolError, "0 or 1";
        "MQTT-5.0 3.3.2.3.2", Some(V5), Server, publish5_with(&[&property(0x01, [0]), &property(0x01, [0])]), ProtocolError, "twice";
        "MQTT-5.0 3.3.2.3.2", Some(V5), Server, publish5_with(&[&property(0x01, [])]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.3.2.3.3", Some(V5), Server, publish5_with(&[&property(0x02, [0; 4]), &property(0x02, [0; 4])]), ProtocolError, "twice";
        "MQTT-3.3.2-8", Some(V5), Server, publish5_with(&[&property(0x23, [0, 0])]), TopicAliasInvalid, "topic alias 0";
        "MQTT-3.3.2-8", Some(V5), Client, publish5_with(&[&property(0x23, [0, 0])]), TopicAliasInvalid, "topic alias 0";
        "MQTT-5.0 3.3.2.3.4", Some(V5), Server, publish5_with(&[&property(0x23, [0, 1]), &property(0x23, [0, 1])]), ProtocolError, "twice";
        "MQTT-5.0 3.3.2.3.5", Some(V5), Server, publish5_with(&[&property(0x08, field("a")), &property(0x08, field("a"))]), ProtocolError, "twice";
        "MQTT-3.3.2-14", Some(V5), Server, publish5_with(&[&property(0x08, field("a/+"))]), ProtocolError, "response topic";
        "MQTT-3.3.2-14", Some(V5), Client, publish5_with(&[&property(0x08, field("#"))]), ProtocolError, "response topic";
        "MQTT-4.7.3-1", Some(V5), Server, publish5_with(&[&property(0x08, field(""))]), ProtocolError, "response topic";
        "MQTT-3.3.2-13", Some(V5), Server, publish5_with(&[&property(0x08, field(b"\xFF"))]), MalformedPacket, "UTF-8";
        "MQTT-5.0 3.3.2.3.6", Some(V5), Server, publish5_with(&[&property(0x09, field("a")), &property(0x09, field("a"))]), ProtocolError, "twice";
        "MQTT-5.0 3.3.2.3.7", Some(V5), Server, publish5_with(&[&property(0x26, field("name only"))]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.3.2.3.7", Some(V5), Server, publish5_with(&[&user("k", "a\0")]), MalformedPacket, "U+0000";
        "MQTT-3.3.4-6", Some(V5), Server, publish5_with(&[&property(0x0B, [1])]), ProtocolError, "PUBLISH of a client";
        "MQTT-5.0 3.3.2.3.8", Some(V5), Client, publish5_with(&[&property(0x0B, [0])]), ProtocolError, "subscription identifier 0";
        "MQTT-5.0 3.3.2.3.8", Some(V5), Client, publish5_with(&[&property(0x0B, [0x80, 0x80, 0x80, 0x80, 1])]), MalformedPacket, "more than 4 bytes";
        "MQTT-5.0 3.3.2.3.8", Some(V5), Client, publish5_with(&[&property(0x0B, [0x81])]), MalformedPacket, "ends inside a variable";
        "MQTT-5.0 3.3.2.3.8", Some(V5), Client, publish5_with(&[&property(0x0B, [0x81, 0])]), MalformedPacket, "more bytes than it needs";
        "MQTT-5.0 3.3.2.3.9", Some(V5), Server, publish5_with(&[&property(0x03, field("a")), &property(0x03, field("a"))]), ProtocolError, "twice";
        "MQTT-3.3.2-19", Some(V5), Server, publish5_with(&[&property(0x03, field(b"\xF8"))]), MalformedPacket, "UTF-8";
        "MQTT-5.0 2.2.2.2", Some(V5), Server, publish5_with(&[&property(0x1F, field("why"))]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", Some(V5), Server, publish5_with(&[&property(0x18, [0; 4])]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", Some(V5), Client, publish5_with(&[&property(0x11, [0; 4])]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", Some(V5), Server, publish5_with(&[&property(0x63, [])]), MalformedPacket, "may not carry";
    });
}

#[test]
fn acknowledgements_that_break_a_rule() {
    let mut cases = Vec::new();
    for (first, section) in
        [(0x40, "MQTT-5.0 3.4"), (0x50, "MQTT-5.0 3.5"), (0x62, "MQTT-5.0 3.6"), (0x70, "MQTT-5.0 3.7")]
    {
        let twice = properties(&[&property(0x1F, field("a")), &property(0x1F, field("b"))]);
        cases.extend(
            [
                (frame(first, &[&[0, 0]]), ProtocolError, "packet identifier 0"),
                (frame(first, &[]), MalformedPacket, "ends inside"),
                (frame(first, &[&[7]]), MalformedPacket, "ends inside"),
                (frame(first, &[ID, &[1]]), ProtocolError, "reason code"),
                (frame(first, &[ID, &[0x81]]), ProtocolError, "reason code"),
                (frame(first, &[ID, &[0xFF]]), ProtocolError, "reason code"),
                (frame(first, &[ID, &[0, 0, 0]]), MalformedPacket, "behind the end"),
                (frame(first, &[ID, &[0, 9]]), MalformedPacket, "property length"),
                (frame(first, &[ID, &[0], &twice]), ProtocolError, "twice"),
                (
                    frame(first, &[ID, &[0], &properties(&[&property(0x01, [1])])]),
                    MalformedPacket,
                    "may not carry",
                ),
                (
                    frame(first, &[ID, &[0], &properties(&[&property(0x1F, field(b"\xFF"))])]),
                    MalformedPacket,
                    "UTF-8",
                ),
            ]
            .map(|(bytes, reason, text)| Case {
                section,
                version: Some(V5),
                role: Server,
                bytes,
                reason,
                text,
            }),
        );
        cases.extend([V31, V311].map(|version| Case {
            section,
            version: Some(version),
            role: Client,
            bytes: frame(first, &[&[0, 0]]),
            reason: ProtocolError,
            text: "packet identifier 0",
        }));
    }
    // What the one pair may say, the other may not.
    cases.extend(cases! {
        "MQTT-3.4.2-1", Some(V5), Server, frame(0x40, &[ID, &[0x92]]), ProtocolError, "reason code";
        "MQTT-3.5.2-1", Some(V5), Server, frame(0x50, &[ID, &[0x92]]), ProtocolError, "reason code";
        "MQTT-3.6.2-1", Some(V5), Server, frame(0x62, &[ID, &[0x10]]), ProtocolError, "reason code";
        "MQTT-3.7.2-1", Some(V5), Server, frame(0x70, &[ID, &[0x80]]), ProtocolError, "reason code";
    });
    check(&cases);
}

#[test]
fn subscriptions_that_break_a_rule() {
    let deep = "+/".repeat(128) + "#";
    check(&cases! {
        "MQTT-2.2.1-3", Some(V5), Server, frame(0x82, &[&[0, 0], NO_PROPERTIES, &field("t"), &[0]]), ProtocolError, "packet identifier 0";
        "MQTT-2.3.1-1", Some(V311), Server, frame(0x82, &[&[0, 0], &field("t"), &[0]]), ProtocolError, "packet identifier 0";
        "MQTT-3.8.3-2", Some(V5), Server, frame(0x82, &[ID, NO_PROPERTIES]), ProtocolError, "without a topic filter";
        "MQTT-3.8.3-3", Some(V311), Server, frame(0x82, &[ID]), ProtocolError, "without a topic filter";
        "MQTT-3.1 3.8", Some(V31), Server, frame(0x82, &[ID]), ProtocolError, "without a topic filter";
        "MQTT-5.0 3.8.2", Some(V5), Server, frame(0x82, &[ID]), MalformedPacket, "ends inside a variable";
        "MQTT-5.0 3.8.3", Some(V5), Server, frame(0x82, &[ID, NO_PROPERTIES, &field("t")]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.8.3", Some(V311), Server, frame(0x82, &[ID, &field("t"), &[0], &field("u")]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.8.3", Some(V311), Server, frame(0x82, &[ID, &[0, 5], b"t"]), MalformedPacket, "past the end";
        "MQTT-3.8.3-5", Some(V5), Server, subscribe5(b"t", 0x40), MalformedPacket, "reserved bits";
        "MQTT-3.8.3-5", Some(V5), Server, subscribe5(b"t", 0x80), MalformedPacket, "reserved bits";
        "MQTT-3-8.3-4", Some(V311), Server, subscribe4(b"t", 0x04), MalformedPacket, "reserved bits";
        "MQTT-3-8.3-4", Some(V311), Server, subscribe4(b"t", 0x80), MalformedPacket, "reserved bits";
        "MQTT-3-8.3-4", Some(V311), Server, subscribe4(b"t", 0x03), MalformedPacket, "QoS 3";
        "MQTT-3.1 3.8", Some(V31), Server, subscribe4(b"t", 0x08), MalformedPacket, "reserved bits";
        "MQTT-3.1 3.8", Some(V31), Server, subscribe4(b"t", 0x03), MalformedPacket, "QoS 3";
        "MQTT-5.0 3.8.3.1", Some(V5), Server, subscribe5(b"t", 0x03), ProtocolError, "QoS 3";
        "MQTT-5.0 3.8.3.1", Some(V5), Server, subscribe5(b"t", 0x30), ProtocolError, "retain handling 3";
        "MQTT-3.8.3-4", Some(V5), Server, subscribe5(b"$share/g/t", 0x04), ProtocolError, "no local";
        "MQTT-3.8.3-1", Some(V5), Server, subscribe5(b"\xFF", 0), MalformedPacket, "UTF-8";
        "MQTT-3.8.3-1", Some(V311), Server, subscribe4(b"\xFF", 0), MalformedPacket, "UTF-8";
        "MQTT-4.7.3-2", Some(V5), Server, subscribe5(b"a\0", 0), MalformedPacket, "U+0000";
        "MQTT-4.7.3-2", Some(V5), Server, subscribe5(b"+/\0", 0), MalformedPacket, "U+0000";
        "MQTT-4.7.3-2", Some(V5), Server, subscribe5(b"$share/\0/t", 0), MalformedPacket, "U+0000";
        "MQTT-4.7.3-1", Some(V5), Server, subscribe5(b"", 0), TopicFilterInvalid, "empty topic filter";
        "MQTT-4.7.3-1", Some(V311), Server, subscribe4(b"", 0), TopicFilterInvalid, "empty topic filter";
        "MQTT-4.7.1-1", Some(V5), Server, subscribe5(b"#/a", 0), TopicFilterInvalid, "`#`";
        "MQTT-4.7.1-1", Some(V5), Server, subscribe5(b"a/#/", 0), TopicFilterInvalid, "`#`";
        "MQTT-4.7.1-2", Some(V311), Server, subscribe4(b"a#", 0), TopicFilterInvalid, "`#`";
        "MQTT-4.7.1-2", Some(V311), Server, subscribe4(b"##", 0), TopicFilterInvalid, "`#`";
        "MQTT-4.7.1-1", Some(V31), Server, subscribe4(b"a/#b", 0), TopicFilterInvalid, "`#`";
        "MQTT-4.7.1-1", Some(V5), Server, subscribe5(b"+#", 0), TopicFilterInvalid, "`#`";
        "MQTT-4.7.1-2", Some(V5), Server, subscribe5(b"a+", 0), TopicFilterInvalid, "`+`";
        "MQTT-4.7.1-2", Some(V5), Server, subscribe5(b"++", 0), TopicFilterInvalid, "`+`";
        "MQTT-4.7.1-3", Some(V311), Server, subscribe4(b"a/+b/c", 0), TopicFilterInvalid, "`+`";
        "MQTT-4.8.2-1", Some(V5), Server, subscribe5(b"$share//t", 0), TopicFilterInvalid, "$share/NAME/FILTER";
        "MQTT-4.8.2-1", Some(V5), Server, subscribe5(b"$share/g", 0), TopicFilterInvalid, "$share/NAME/FILTER";
        "MQTT-4.8.2-1", Some(V5), Server, subscribe5(b"$share/g/", 0), TopicFilterInvalid, "$share/NAME/FILTER";
        "MQTT-4.8.2-2", Some(V5), Server, subscribe5(b"$share/", 0), TopicFilterInvalid, "$share/NAME/FILTER";
        "MQTT-4.8.2-2", Some(V5), Server, subscribe5(b"$share/+/t", 0), TopicFilterInvalid, "$share/NAME/FILTER";
        "MQTT-4.8.2-2", Some(V5), Server, subscribe5(b"$share/g#/t", 0), TopicFilterInvalid, "$share/NAME/FILTER";
        "MQTT-4.8.2-2", Some(V5), Server, subscribe5(b"$share/g/a#", 0), TopicFilterInvalid, "`#`";
        "MQTT-5.0 4.7.3", Some(V5), Server, subscribe5(deep.as_bytes(), 0), TopicFilterInvalid, "levels";
        "MQTT-5.0 4.7.3", Some(V311), Server, subscribe4("/".repeat(65_535).as_bytes(), 0), TopicFilterInvalid, "levels";
        "MQTT-5.0 4.7.3", Some(V5), Server, subscribe5(format!("$share/g/{deep}").as_bytes(), 0), TopicFilterInvalid, "levels";
        "MQTT-5.0 3.8.2.1.2", Some(V5), Server, frame(0x82, &[ID, &properties(&[&property(0x0B, [0])]), &field("t"), &[0]]), ProtocolError, "subscription identifier 0";
        "MQTT-5.0 3.8.2.1.2", Some(V5), Server, frame(0x82, &[ID, &properties(&[&property(0x0B, [1]), &property(0x0B, [2])]), &field("t"), &[0]]), ProtocolError, "twice";
        "MQTT-5.0 2.2.2.2", Some(V5), Server, frame(0x82, &[ID, &properties(&[&property(0x1F, field("a"))]), &field("t"), &[0]]), MalformedPacket, "may not carry";
        "MQTT-2.2.1-3", Some(V5), Server, frame(0xA2, &[&[0, 0], NO_PROPERTIES, &field("t")]), ProtocolError, "packet identifier 0";
        "MQTT-3.10.3-2", Some(V5), Server, frame(0xA2, &[ID, NO_PROPERTIES]), ProtocolError, "without a topic filter";
        "MQTT-3.10.3-2", Some(V311), Server, frame(0xA2, &[ID]), ProtocolError, "without a topic filter";
        "MQTT-3.10.3-1", Some(V311), Server, frame(0xA2, &[ID, &field(b"\xFF")]), MalformedPacket, "UTF-8";
        "MQTT-4.7.3-1", Some(V311), Server, frame(0xA2, &[ID, &field("")]), TopicFilterInvalid, "empty topic filter";
        "MQTT-4.7.1-1", Some(V5), Server, frame(0xA2, &[ID, NO_PROPERTIES, &field("#/a")]), TopicFilterInvalid, "`#`";
        "MQTT-4.8.2-1", Some(V5), Server, frame(0xA2, &[ID, NO_PROPERTIES, &field("$share/g")]), TopicFilterInvalid, "$share/NAME/FILTER";
        "MQTT-5.0 3.10.3", Some(V5), Server, frame(0xA2, &[ID, NO_PROPERTIES, &[0, 4], b"t"]), MalformedPacket, "past the end";
        "MQTT-5.0 2.2.2.2", Some(V5), Server, frame(0xA2, &[ID, &properties(&[&property(0x0B, [1])]), &field("t")]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", Some(V5), Server, frame(0xA2, &[ID, &properties(&[&property(0x1F, field("a"))]), &field("t")]), MalformedPacket, "may not carry";
    });
}

#[test]
fn answers_of_a_server_that_break_a_rule() {
    check(&cases! {
        "MQTT-3.2.2-1", Some(V5), Client, frame(0x20, &[&[2, 0, 0]]), MalformedPacket, "reserved acknowledge flags";
        "MQTT-3.1.1 3.2.2.1", Some(V311), Client, frame(0x20, &[&[0x80, 0]]), MalformedPacket, "reserved acknowledge flags";
        "MQTT-3.2.2-6", Some(V5), Client, frame(0x20, &[&[1, 0x80, 0]]), ProtocolError, "session present and an error";
        "MQTT-3.2.2-4", Some(V311), Client, frame(0x20, &[&[1, 5]]), ProtocolError, "session present and an error";
        "MQTT-3.1.1 3.2.2.3", Some(V311), Client, frame(0x20, &[&[0, 6]]), ProtocolError, "return code";
        "MQTT-3.1.1 3.2.2.3", Some(V31), Client, frame(0x20, &[&[0, 255]]), ProtocolError, "return code";
        "MQTT-3.2.2-8", Some(V5), Client, frame(0x20, &[&[0, 1, 0]]), ProtocolError, "reason code";
        "MQTT-3.2.2-8", Some(V5), Client, frame(0x20, &[&[0, 0x8B, 0]]), ProtocolError, "reason code";
        "MQTT-3.2.2-8", Some(V5), Client, frame(0x20, &[&[0, 0x3F, 0]]), ProtocolError, "reason code";
        "MQTT-5.0 3.2.2.3", Some(V5), Client, frame(0x20, &[&[0, 0]]), MalformedPacket, "ends inside a variable";
        "MQTT-5.0 3.2.2", Some(V5), Client, frame(0x20, &[&[0]]), MalformedPacket, "ends inside";
        "MQTT-5.0 3.2.3", Some(V5), Client, frame(0x20, &[&[0, 0, 0, 0]]), MalformedPacket, "behind the end";
        "MQTT-5.0 3.2.2.3.2", Some(V5), Client, connack5_with(&[&property(0x11, [0; 4]), &property(0x11, [0; 4])]), ProtocolError, "twice";
        "MQTT-5.0 3.2.2.3.3", Some(V5), Client, connack5_with(&[&property(0x21, [0, 0])]), ProtocolError, "receive maximum 0";
        "MQTT-5.0 3.2.2.3.4", Some(V5), Client, connack5_with(&[&property(0x24, [2])]), ProtocolError, "0 or 1";
        "MQTT-5.0 3.2.2.3.4", Some(V5), Client, connack5_with(&[&property(0x24, [1]), &property(0x24, [1])]), ProtocolError, "twice";
        "MQTT-5.0 3.2.2.3.5", Some(V5), Client, connack5_with(&[&property(0x25, [2])]), ProtocolError, "0 or 1";
        "MQTT-5.0 3.2.2.3.6", Some(V5), Client, connack5_with(&[&property(0x27, [0; 4])]), ProtocolError, "maximum packet size 0";
        "MQTT-5.0 3.2.2.3.7", Some(V5), Client, connack5_with(&[&property(0x12, field("a")), &property(0x12, field("a"))]), ProtocolError, "twice";
        "MQTT-5.0 3.2.2.3.8", Some(V5), Client, connack5_with(&[&property(0x22, [0, 1]), &property(0x22, [0, 1])]), ProtocolError, "twice";
        "MQTT-5.0 3.2.2.3.9", Some(V5), Client, connack5_with(&[&property(0x1F, field("a")), &property(0x1F, field("a"))]), ProtocolError, "twice";
        "MQTT-5.0 3.2.2.3.11", Some(V5), Client, connack5_with(&[&property(0x28, [2])]), ProtocolError, "0 or 1";
        "MQTT-5.0 3.2.2.3.12", Some(V5), Client, connack5_with(&[&property(0x29, [9])]), ProtocolError, "0 or 1";
        "MQTT-5.0 3.2.2.3.13", Some(V5), Client, connack5_with(&[&property(0x2A, [2])]), ProtocolError, "0 or 1";
        "MQTT-5.0 3.2.2.3.14", Some(V5), Client, connack5_with(&[&property(0x13, [0, 1]), &property(0x13, [0, 1])]), ProtocolError, "twice";
        "MQTT-5.0 3.2.2.3.15", Some(V5), Client, connack5_with(&[&property(0x1A, field("a")), &property(0x1A, field("a"))]), ProtocolError, "twice";
        "MQTT-5.0 3.2.2.3.16", Some(V5), Client, connack5_with(&[&property(0x1C, field("a")), &property(0x1C, field("a"))]), ProtocolError, "twice";
        "MQTT-5.0 3.2.2.3.18", Some(V5), Client, connack5_with(&[&property(0x16, field("a"))]), ProtocolError, "without an authentication method";
        "MQTT-5.0 2.2.2.2", Some(V5), Client, connack5_with(&[&property(0x17, [1])]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", Some(V5), Client, connack5_with(&[&property(0x19, [1])]), MalformedPacket, "may not carry";
        "MQTT-5.0 2.2.2.2", Some(V5), Client, connack5_with(&[&property(0x23, [0, 1])]), MalformedPacket, "may not carry";
        "MQTT-2.2.1-6", Some(V5), Client, frame(0x90, &[&[0, 0], NO_PROPERTIES, &[0]]), ProtocolError, "packet identifier 0";
        "MQTT-5.0 3.9.3", Some(V5), Client, frame(0x90, &[ID, NO_PROPERTIES]), ProtocolError, "without a reason code";
        "MQTT-3.1.1 3.9.3", Some(V311), Client, frame(0x90, &[ID]), ProtocolError, "without a reason code";
        "MQTT-3.9.3-2", Some(V5), Client, frame(0x90, &[ID, NO_PROPERTIES, &[3]]), ProtocolError, "reason code";
        "MQTT-3.9.3-2", Some(V5), Client, frame(0x90, &[ID, NO_PROPERTIES, &[0, 0x81]]), ProtocolError, "reason code";
        "MQTT-3.9.3-2", Some(V311), Client, frame(0x90, &[ID, &[0, 3]]), ProtocolError, "reason code";
        "MQTT-3.9.3-2", Some(V311), Client, frame(0x90, &[ID, &[0x87]]), ProtocolError, "reason code";
        "MQTT-3.9.3-2", Some(V31), Client, frame(0x90, &[ID, &[0xFF]]), ProtocolError, "reason code";
        "MQTT-5.0 3.9.2.1.2", Some(V5), Client, frame(0x90, &[ID, &properties(&[&property(0x1F, field("a")), &property(0x1F, field("a"))]), &[0]]), ProtocolError, "twice";
        "MQTT-5.0 2.2.2.2", Some(V5), Client, frame(0x90, &[ID, &properties(&[&property(0x0B, [1])]), &[0]]), MalformedPacket, "may not carry";
        "MQTT-5.0 3.11.3", Some(V5), Client, frame(0xB0, &[ID, NO_PROPERTIES]), ProtocolError, "without a reason code";
        "MQTT-3.11.3-2", Some(V5), Client, frame(0xB0, &[ID, NO_PROPERTIES, &[1]]), ProtocolError, "reason code";
        "MQTT-3.11.3-2", Some(V5), Client, frame(0xB0, &[ID, NO_PROPERTIES, &[0x97]]), ProtocolError, "reason code";
        "MQTT-5.0 3.11.2", Some(V5), Client, frame(0xB0, &[ID]), MalformedPacket, "ends inside a variable";
        "MQTT-2.3.1-7", Some(V311), Client, frame(0xB0, &[&[0, 0]]), ProtocolError, "packet identifier 0";
    });
}

#[test]
fn disconnects_and_auths_that_break_a_rule() {
    let method = property(0x15, field("SCRAM"));
    check(&cases! {
        "MQTT-3.14.2-1", Some(V5), Server, frame(0xE0, &[&[1]]), ProtocolError, "reason code";
        "MQTT-3.14.2-1", Some(V5), Server, frame(0xE0, &[&[0x8B]]), ProtocolError, "reason code";
        "MQTT-3.14.2-1", Some(V5), Server, frame(0xE0, &[&[0x87]]), ProtocolError, "reason code";
        "MQTT-3.14.2-1", Some(V5), Server, frame(0xE0, &[&[0xA2]]), ProtocolError, "reason code";
        "MQTT-3.14.2-1", Some(V5), Client, frame(0xE0, &[&[0x04]]), ProtocolError, "reason code";
        "MQTT-3.14.2-1", Some(V5), Client, frame(0xE0, &[&[0x91]]), ProtocolError, "reason code";
        "MQTT-3.14.2-1", Some(V5), Client, frame(0xE0, &[&[0xA3]]), ProtocolError, "reason code";
        "MQTT-3.14.2-2", Some(V5), Client, frame(0xE0, &[&[0], &properties(&[&property(0x11, [0; 4])])]), ProtocolError, "session expiry interval";
        "MQTT-5.0 3.14.2.2.2", Some(V5), Server, frame(0xE0, &[&[0], &properties(&[&property(0x11, [0; 4]), &property(0x11, [0; 4])])]), ProtocolError, "twice";
        "MQTT-5.0 3.14.2.2.3", Some(V5), Server, frame(0xE0, &[&[0], &properties(&[&property(0x1F, field("a")), &property(0x1F, field("a"))])]), ProtocolError, "twice";
        "MQTT-5.0 3.14.2.2.5", Some(V5), Client, frame(0xE0, &[&[0], &properties(&[&property(0x1C, field("a")), &property(0x1C, field("a"))])]), ProtocolError, "twice";
        "MQTT-5.0 2.2.2.2", Some(V5), Server, frame(0xE0, &[&[0], &properties(&[&property(0x15, field("a"))])]), MalformedPacket, "may not carry";
        "MQTT-5.0 3.14.2.2.1", Some(V5), Server, frame(0xE0, &[&[0, 5, 0x11]]), MalformedPacket, "property length";
        "MQTT-5.0 3.14.3", Some(V5), Server, frame(0xE0, &[&[0, 0, 0]]), MalformedPacket, "behind the end";
        "MQTT-3.15.2-1", Some(V5), Server, frame(0xF0, &[]), ProtocolError, "reason success";
        "MQTT-3.15.2-1", Some(V5), Server, auth_with(0, &[&method]), ProtocolError, "reason code";
        "MQTT-3.15.2-1", Some(V5), Client, auth_with(0x19, &[&method]), ProtocolError, "reason code";
        "MQTT-3.15.2-1", Some(V5), Server, auth_with(0x80, &[&method]), ProtocolError, "reason code";
        "MQTT-5.0 3.15.2.2.2", Some(V5), Server, auth_with(0x18, &[]), ProtocolError, "without an authentication method";
        "MQTT-5.0 3.15.2.2.2", Some(V5), Client, auth_with(0x00, &[]), ProtocolError, "without an authentication method";
        "MQTT-5.0 3.15.2.2.2", Some(V5), Server, auth_with(0x18, &[&method, &method]), ProtocolError, "twice";
        "MQTT-5.0 3.15.2.2.3", Some(V5), Server, auth_with(0x18, &[&property(0x16, field("a"))]), ProtocolError, "without an authentication method";
        "MQTT-5.0 3.15.2.2.3", Some(V5), Server, auth_with(0x18, &[&method, &property(0x16, field("a")), &property(0x16, field("a"))]), ProtocolError, "twice";
        "MQTT-5.0 3.15.2.2.4", Some(V5), Client, auth_with(0x18, &[&method, &property(0x1F, field("a")), &property(0x1F, field("a"))]), ProtocolError, "twice";
        "MQTT-5.0 2.2.2.2", Some(V5), Server, auth_with(0x18, &[&method, &property(0x11, [0; 4])]), MalformedPacket, "may not carry";
        "MQTT-5.0 3.15.2.2.1", Some(V5), Server, frame(0xF0, &[&[0x18]]), MalformedPacket, "ends inside a variable";
        "MQTT-5.0 3.15.3", Some(V5), Server, [&[0xF0, 11][..], &[0x18], &properties(&[&method]), &[0]].concat(), MalformedPacket, "behind the end";
    });
}

#[test]
fn an_error_names_the_version_in_which_it_can_be_answered() {
    let answered = |bytes: &[u8], version| {
        decoder(version, Server).decode(bytes).expect_err("an illegal packet").version
    };
    let bad_property = connect5_with(&[&property(0x01, [1])]);
    assert_eq!(answered(&bad_property, None), Some(V5));
    assert_eq!(answered(&connect4(3, &[&field("me")]), None), Some(V311));
    assert_eq!(answered(&connect3(0b0001_1110, &[&field("me")]), None), Some(V31));
    assert_eq!(answered(&frame(0x10, &[&field("MQTT"), &[6, 2, 0, 60, 0, 0, 0]]), None), Some(V5));
    assert_eq!(answered(&frame(0x10, &[&field("MQTT"), &[0x84, 2, 0, 60, 0, 0]]), None), Some(V311));
    assert_eq!(answered(&frame(0x10, &[&field("MQIsdp"), &[9, 2, 0, 60, 0, 0]]), None), Some(V31));
    assert_eq!(answered(&[0x30], None), None, "no version was named yet");
    assert_eq!(answered(&[0x36], Some(V5)), Some(V5));
}

#[test]
fn an_error_says_what_was_found() {
    let error = decoder(Some(V5), Server).decode(&[0xE0, 1, 0x8B]).expect_err("a server's reason");
    assert_eq!(error.to_string(), "reason code that this packet does not have, found 139 (reason 0x82)");
    let error = decoder(None, Server).decode(&[0x30]).expect_err("no CONNECT");
    assert_eq!(error.to_string(), "the first packet must be CONNECT (reason 0x82)");
}
