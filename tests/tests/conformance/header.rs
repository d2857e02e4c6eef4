//! Fixed header, packet types, flags and packet identifiers: MQTT-3.1.1 2.2 and 2.3, MQTT-5.0 2.1 and 2.2.1.

use anyhow::{Context, Result};
use causeway_tests::mqtt::wire::{
    self, DISCONNECT, PINGREQ, Publish, Version, ack, first, packet, subscribe, unsubscribe,
};

use crate::suite::{Bench, Suite};

/// A packet that would be legal from a connected client, to be spoilt. The topic is the case's own.
fn legal(t: &Bench, kind: u8) -> Vec<u8> {
    let version = t.version;
    match kind {
        first::SUBSCRIBE => subscribe(version, 9, &[(&t.topic("x"), 0)]),
        first::UNSUBSCRIBE => unsubscribe(version, 9, &[&t.topic("x")]),
        first::PINGREQ => PINGREQ.to_vec(),
        first::DISCONNECT => DISCONNECT.to_vec(),
        first::AUTH => packet(first::AUTH, &[&[0x18, 4, 0x15, 0, 1, b'x']]),
        kind => ack(kind, 9),
    }
}

const KINDS: &[(u8, &str)] = &[
    (first::PUBACK, "PUBACK"),
    (first::PUBREC, "PUBREC"),
    (first::PUBREL, "PUBREL"),
    (first::PUBCOMP, "PUBCOMP"),
    (first::SUBSCRIBE, "SUBSCRIBE"),
    (first::UNSUBSCRIBE, "UNSUBSCRIBE"),
    (first::PINGREQ, "PINGREQ"),
    (first::DISCONNECT, "DISCONNECT"),
];

fn refuses(t: &Bench, bytes: &[u8], reason: u8) -> Result<()> {
    let mut client = t.client("c")?;
    client.send(bytes)?;
    client.refused(reason)
}

pub(crate) fn cases(s: &mut Suite) {
    flags(s);
    types(s);
    identifiers(s);
    lengths(s);
}

fn flags(s: &mut Suite) {
    for &(kind, name) in KINDS {
        s.both(
            "2.2.2 MQTT-2.2.2-2",
            "2.1.3 MQTT-2.1.3-1",
            format!("{name} with other flags is malformed"),
            move |t| {
                for flags in (0..16).filter(|flags| *flags != kind & 0x0F) {
                    let mut bytes = legal(t, kind);
                    bytes[0] = kind & 0xF0 | flags;
                    refuses(t, &bytes, 0x81).with_context(|| format!("flags {flags:#06b}"))?;
                }
                Ok(())
            },
        );
    }
    s.v5("2.1.3 MQTT-2.1.3-1", "AUTH with flags is malformed", |t| {
        for flags in 1..16 {
            let mut bytes = legal(t, first::AUTH);
            bytes[0] |= flags;
            refuses(t, &bytes, 0x81).with_context(|| format!("flags {flags:#06b}"))?;
        }
        Ok(())
    });
    s.both("2.2.2 MQTT-2.2.2-2", "2.1.3 MQTT-2.1.3-1", "CONNECT with flags is refused", |t| {
        for flags in 1..16 {
            let mut client = t.open("c")?;
            let mut bytes = t.connector("c").bytes();
            bytes[0] |= flags;
            client.send(&bytes)?;
            client.not_connected(None, 0x81).with_context(|| format!("flags {flags:#06b}"))?;
        }
        Ok(())
    });
    s.both("3.3.1.2 MQTT-3.3.1-4", "3.3.1.2 MQTT-3.3.1-4", "PUBLISH with QoS 3 is malformed", |t| {
        for flags in [0b0110, 0b0111, 0b1110, 0b1111] {
            let bytes = Publish::new(t.version, &t.topic("x"), "x").qos(3, 7).bytes();
            let bytes = [&[first::PUBLISH | flags], &bytes[1..]].concat();
            refuses(t, &bytes, 0x81).with_context(|| format!("flags {flags:#06b}"))?;
        }
        Ok(())
    });
    s.both("3.3.1.1 MQTT-3.3.1-2", "3.3.1.1 MQTT-3.3.1-2", "PUBLISH with DUP and QoS 0 is malformed", |t| {
        refuses(t, &Publish::new(t.version, &t.topic("x"), "x").dup().bytes(), 0x81)?;
        refuses(t, &Publish::new(t.version, &t.topic("x"), "x").dup().retain().bytes(), 0x81)
    });
}

fn types(s: &mut Suite) {
    s.both("2.2.1", "2.1.2", "packet type 0 is malformed", |t| {
        refuses(t, &[0x00, 0], 0x81)?;
        refuses(t, &[0x0F, 2, 0, 1], 0x81)
    });
    s.v4("2.2.1", "packet type 15 does not exist", |t| {
        refuses(t, &[0xF0, 0], 0x81)?;
        refuses(t, &[0xF0, 2, 0x18, 0], 0x81)
    });
    for (bytes, name) in [
        (&[0x20, 2, 0, 0][..], "CONNACK"),
        (&[0x90, 3, 0, 1, 0], "SUBACK"),
        (&[0xB0, 2, 0, 1], "UNSUBACK"),
        (&[0xD0, 0], "PINGRESP"),
    ] {
        s.both("2.2.1", "2.1.2", format!("{name} from a client is a protocol error"), move |t| {
            refuses(t, bytes, 0x82)
        });
    }
    for kind in 2..=14_u8 {
        let names = [
            "CONNACK",
            "PUBLISH",
            "PUBACK",
            "PUBREC",
            "PUBREL",
            "PUBCOMP",
            "SUBSCRIBE",
            "SUBACK",
            "UNSUBSCRIBE",
            "UNSUBACK",
            "PINGREQ",
            "PINGRESP",
            "DISCONNECT",
        ];
        let name = names[usize::from(kind) - 2];
        s.both(
            "3.1.0 MQTT-3.1.0-1",
            "3.1.0 MQTT-3.1.0-1",
            format!("{name} before CONNECT: closed without an answer"),
            move |t| {
                let mut client = t.open("c")?;
                let flags = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
                let bytes = match kind {
                    3 => Publish::new(t.version, &t.topic("x"), "x").bytes(),
                    8 => subscribe(t.version, 1, &[(&t.topic("x"), 0)]),
                    10 => unsubscribe(t.version, 1, &[&t.topic("x")]),
                    2 => vec![0x20, 2, 0, 0],
                    12..=14 => vec![kind << 4, 0],
                    _ => ack(kind << 4 | flags, 1),
                };
                client.send(&bytes)?;
                client.closed()
            },
        );
    }
    s.v5("3.1.0 MQTT-3.1.0-1", "AUTH before CONNECT: closed without an answer", |t| {
        let mut client = t.open("c")?;
        client.send(&legal(t, first::AUTH))?;
        client.closed()
    });
    s.both(
        "3.1.0 MQTT-3.1.0-1",
        "3.1.0 MQTT-3.1.0-1",
        "text that is not MQTT: closed without an answer",
        |t| {
            for text in
                ["GET / HTTP/1.1\r\n\r\n", "SSH-2.0-x\r\n", "\0\0\0\0", "\u{16}\u{3}\u{1}\u{2}\0\u{1}"]
            {
                let mut client = t.open("c")?;
                client.send(text.as_bytes())?;
                client.finish()?;
                client.closed()?;
            }
            Ok(())
        },
    );
    s.both("3.1.0 MQTT-3.1.0-2", "3.1.0 MQTT-3.1.0-2", "a second CONNECT is a protocol error", |t| {
        refuses(t, &t.connector("c").bytes(), 0x82)
    });
    s.both("3.1.0 MQTT-3.1.0-2", "3.1.0 MQTT-3.1.0-2", "a second CONNECT right behind the first, too", |t| {
        let mut client = t.open("c")?;
        client.send(&[t.connector("c").bytes(), t.connector("other").bytes()].concat())?;
        client.connack()?;
        client.refused(0x82)
    });
}

fn identifiers(s: &mut Suite) {
    for qos in [1, 2] {
        s.both(
            "2.3.1 MQTT-2.3.1-1",
            "2.2.1 MQTT-2.2.1-3",
            format!("PUBLISH with QoS {qos} and packet identifier 0 is refused"),
            move |t| refuses(t, &Publish::new(t.version, &t.topic("x"), "x").qos(qos, 0).bytes(), 0x82),
        );
        s.both(
            "2.3.1 MQTT-2.3.1-5",
            "2.2.1 MQTT-2.2.1-2",
            format!("PUBLISH with QoS {qos} that ends before its packet identifier is malformed"),
            move |t| {
                let header = first::PUBLISH | qos << 1;
                refuses(t, &packet(header, &[&wire::text("t")]), 0x81)?;
                refuses(t, &packet(header, &[&wire::text("t"), &[0]]), 0x81)
            },
        );
    }
    for &(kind, name) in &KINDS[..6] {
        let zero = move |t: &Bench| -> Vec<u8> {
            let mut bytes = legal(t, kind);
            bytes[2..4].copy_from_slice(&[0, 0]);
            bytes
        };
        let statements: (&'static str, &'static str) =
            if kind == first::SUBSCRIBE || kind == first::UNSUBSCRIBE {
                ("2.3.1 MQTT-2.3.1-1", "2.2.1 MQTT-2.2.1-3")
            } else {
                ("2.3.1", "2.2.1")
            };
        s.both(statements.0, statements.1, format!("{name} with packet identifier 0 is refused"), move |t| {
            refuses(t, &zero(t), 0x82)
        });
        s.both(
            "2.3.1",
            "2.2.1",
            format!("{name} that ends before its packet identifier is malformed"),
            move |t| {
                refuses(t, &[kind, 0], 0x81)?;
                refuses(t, &[kind, 1, 0], 0x81)
            },
        );
    }
}

fn lengths(s: &mut Suite) {
    for &(kind, name) in &KINDS[..4] {
        s.both("2.2.3", "2.1.4", format!("{name} with bytes behind its end is malformed"), move |t| {
            let id = [0, 9];
            if t.version == Version::V5 {
                refuses(t, &packet(kind, &[&id, &[0, 0], b"x"]), 0x81)?;
                return refuses(t, &packet(kind, &[&id, &[0, 0, 0, 0]]), 0x81);
            }
            refuses(t, &packet(kind, &[&id, b"x"]), 0x81)?;
            refuses(t, &packet(kind, &[&id, &[0, 0]]), 0x81)
        });
    }
    s.both("3.12", "3.12", "PINGREQ with a body is malformed", |t| {
        refuses(t, &[0xC0, 1, 0], 0x81)?;
        refuses(t, &[0xC0, 2, 0, 0], 0x81)
    });
    s.v4("3.14", "DISCONNECT with a body is refused", |t| {
        refuses(t, &[0xE0, 1, 0], 0x81)?;
        refuses(t, &[0xE0, 2, 0, 0], 0x81)
    });
    s.v5("3.14", "DISCONNECT with bytes behind its properties is malformed", |t| {
        refuses(t, &[0xE0, 3, 0, 0, 0], 0x81)
    });
    s.v5("3.15", "AUTH with bytes behind its properties is malformed", |t| {
        refuses(t, &packet(first::AUTH, &[&[0x18, 4, 0x15, 0, 1, b'x'], &[0]]), 0x81)
    });
    s.both("3.3.2", "3.3.2", "PUBLISH that ends inside its topic name is malformed", |t| {
        refuses(t, &[0x30, 0], 0x81)?;
        refuses(t, &[0x30, 1, 0], 0x81)?;
        refuses(t, &[0x30, 3, 0, 2, b'x'], 0x81)
    });
    s.v5("3.3.2", "PUBLISH that ends before its property length is malformed", |t| {
        refuses(t, &packet(0x30, &[&wire::text("t")]), 0x81)
    });
}
