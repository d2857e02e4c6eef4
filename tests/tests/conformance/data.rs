//! Data representation: MQTT-3.1.1 1.5, MQTT-5.0 1.5.

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::property::{self, id};
use causeway_tests::mqtt::wire::{self, Connect, Publish, Version, Will, binary, first, packet};

use crate::suite::{Bench, Suite};

/// A place where a string stands.
struct Place {
    name: &'static str,
    /// It is in the CONNECT.
    connect: bool,
    bytes: fn(&Bench, &[u8]) -> Vec<u8>,
}

fn will(t: &Bench) -> Will {
    Will::new(&t.topic("will"), "gone")
}

const PLACES: &[Place] = &[
    Place {
        name: "client identifier",
        connect: true,
        bytes: |t, text| Connect { client_id: text.to_vec(), ..t.connector("c") }.bytes(),
    },
    Place {
        name: "will topic",
        connect: true,
        bytes: |t, text| t.connector("c").will(Will { topic: text.to_vec(), ..will(t) }).bytes(),
    },
    Place {
        name: "user name",
        connect: true,
        bytes: |t, text| Connect { username: Some(text.to_vec()), ..t.connector("c") }.bytes(),
    },
    Place {
        name: "topic name",
        connect: false,
        bytes: |t, text| Publish { topic: text.to_vec(), ..Publish::new(t.version, "", "x") }.bytes(),
    },
    Place {
        name: "topic filter of SUBSCRIBE",
        connect: false,
        bytes: |t, text| {
            let properties: &[u8] = if t.is_v5() { &[0] } else { &[] };
            packet(first::SUBSCRIBE, &[&[0, 7], properties, &binary(text), &[0]])
        },
    },
    Place {
        name: "topic filter of UNSUBSCRIBE",
        connect: false,
        bytes: |t, text| {
            let properties: &[u8] = if t.is_v5() { &[0] } else { &[] };
            packet(first::UNSUBSCRIBE, &[&[0, 7], properties, &binary(text)])
        },
    },
];

fn pair(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[id::USER_PROPERTY][..], &binary(name), &binary(value)].concat()
}

/// Places that only 5.0 has.
const PLACES_OF_V5: &[Place] = &[
    Place {
        name: "name of a user property of CONNECT",
        connect: true,
        bytes: |t, text| t.connector("c").with(pair(text, b"v")).bytes(),
    },
    Place {
        name: "value of a user property of CONNECT",
        connect: true,
        bytes: |t, text| t.connector("c").with(pair(b"n", text)).bytes(),
    },
    Place {
        name: "authentication method",
        connect: true,
        bytes: |t, text| t.connector("c").with(property::data(id::AUTHENTICATION_METHOD, text)).bytes(),
    },
    Place {
        name: "content type of a will",
        connect: true,
        bytes: |t, text| {
            let properties = vec![property::data(id::CONTENT_TYPE, text)];
            t.connector("c").will(Will { properties, ..will(t) }).bytes()
        },
    },
    Place {
        name: "response topic of a will",
        connect: true,
        bytes: |t, text| {
            let properties = vec![property::data(id::RESPONSE_TOPIC, text)];
            t.connector("c").will(Will { properties, ..will(t) }).bytes()
        },
    },
    Place {
        name: "content type",
        connect: false,
        bytes: |t, text| {
            Publish::new(t.version, &t.topic("x"), "x").with(property::data(id::CONTENT_TYPE, text)).bytes()
        },
    },
    Place {
        name: "response topic",
        connect: false,
        bytes: |t, text| {
            Publish::new(t.version, &t.topic("x"), "x").with(property::data(id::RESPONSE_TOPIC, text)).bytes()
        },
    },
    Place {
        name: "name of a user property of PUBLISH",
        connect: false,
        bytes: |t, text| Publish::new(t.version, &t.topic("x"), "x").with(pair(text, b"v")).bytes(),
    },
    Place {
        name: "value of a user property of PUBLISH",
        connect: false,
        bytes: |t, text| Publish::new(t.version, &t.topic("x"), "x").with(pair(b"n", text)).bytes(),
    },
    Place {
        name: "reason string of PUBACK",
        connect: false,
        bytes: |_, text| {
            let properties = property::section(&[property::data(id::REASON_STRING, text)]);
            packet(first::PUBACK, &[&[0, 7, 0], &properties])
        },
    },
    Place {
        name: "reason string of DISCONNECT",
        connect: false,
        bytes: |_, text| {
            let properties = property::section(&[property::data(id::REASON_STRING, text)]);
            packet(first::DISCONNECT, &[&[0], &properties])
        },
    },
];

/// Sends what stands there; it must be refused as malformed.
fn is_malformed(t: &Bench, connect: bool, bytes: &[u8]) -> Result<()> {
    if connect {
        let mut client = t.open("c")?;
        client.send(bytes)?;
        return client.not_connected(None, 0x81);
    }
    let mut client = t.client("c")?;
    client.send(bytes)?;
    client.refused(0x81)
}

/// Ill-formed UTF-8, each with what is wrong with it.
const ILL_FORMED: &[(&[u8], &str)] = &[
    (b"a\x80", "a continuation byte alone"),
    (b"a\xC3", "a cut character"),
    (b"\xC0\x80", "U+0000 in two bytes"),
    (b"\xC1\xBF", "an over-long form"),
    (b"\xE0\x80\xAF", "an over-long form of three bytes"),
    (b"\xF0\x80\x80\xAF", "an over-long form of four bytes"),
    (b"\xED\xA0\x80", "the first surrogate, U+D800"),
    (b"\xED\xBF\xBF", "the last surrogate, U+DFFF"),
    (b"\xED\xA0\x81\xED\xB0\x80", "a pair of surrogates"),
    (b"\xF4\x90\x80\x80", "beyond U+10FFFF"),
    (b"\xF5\x80\x80\x80", "a byte that never occurs"),
    (b"\xFF\xFE", "another byte that never occurs"),
];

const MARKER: &[u8] = b"marker";

/// The same packet, in which the string `marker` claims to be longer than the packet.
fn with_length_that_lies(mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    let at = bytes.windows(MARKER.len()).position(|window| window == MARKER).context("the marker")?;
    bytes[at - 2..at].copy_from_slice(&[0xFF, 0xFF]);
    Ok(bytes)
}

pub(crate) fn cases(s: &mut Suite) {
    let everywhere = PLACES.iter().flat_map(|place| [(Version::V311, place), (Version::V5, place)]);
    for (version, place) in everywhere.chain(PLACES_OF_V5.iter().map(|place| (Version::V5, place))) {
        let v5 = version == Version::V5;
        let section = if v5 { "1.5.4 MQTT-1.5.4-1" } else { "1.5.3 MQTT-1.5.3-1" };
        s.add(version, section, format!("ill-formed UTF-8 is refused: {}", place.name), |t| {
            for (text, what) in ILL_FORMED {
                is_malformed(t, place.connect, &(place.bytes)(t, text)).context(*what)?;
            }
            Ok(())
        });
        let section = if v5 { "1.5.4 MQTT-1.5.4-2" } else { "1.5.3 MQTT-1.5.3-2" };
        s.add(version, section, format!("U+0000 is refused: {}", place.name), |t| {
            for text in [&b"\0"[..], b"a\0b", b"ab\0"] {
                is_malformed(t, place.connect, &(place.bytes)(t, text))?;
            }
            Ok(())
        });
        let section = if v5 { "1.5.4" } else { "1.5.3" };
        s.add(version, section, format!("a length beyond the packet is refused: {}", place.name), |t| {
            is_malformed(t, place.connect, &with_length_that_lies((place.bytes)(t, MARKER))?)
        });
    }

    s.both("1.5.3 MQTT-1.5.3-3", "1.5.4 MQTT-1.5.4-3", "U+FEFF is kept and is no byte order mark", |t| {
        let topic = format!("\u{FEFF}{}", t.topic("/x"));
        let mut client = t.subscriber("c", &topic, 0)?;
        let mut other = t.subscriber("d", &t.topic("/x"), 0)?;
        client.send(&Publish::new(t.version, &topic, "bom").bytes())?;
        client.receives(&topic, "bom")?;
        other.quiet()
    });

    let characters =
        ["\u{7F}", "\u{80}", "\u{7FF}", "\u{800}", "\u{D7FF}", "\u{E000}", "\u{10000}", "\u{10FFFF}"];
    s.both("1.5.3", "1.5.4", "characters of every length pass unchanged", move |t| {
        for character in characters {
            let topic = t.topic(&format!("/{character}/é"));
            let mut client = t.subscriber(&format!("c{character}"), &topic, 1)?;
            client.send(&Publish::new(t.version, &topic, character).bytes())?;
            client.receives(&topic, character)?;
            client.disconnect()?;
        }
        Ok(())
    });

    s.both("1.5.3", "1.5.4", "a client identifier may hold any legal character", |t| {
        let connect = Connect::new(t.version, &t.id("#/+ $ 日本 \u{1F980}"));
        t.with("c", &connect)?.0.quiet()
    });

    s.both("1.5.3", "1.5.4", "a topic of 65535 bytes passes", |t| {
        let topic = format!("{}{}", t.topic("/"), "x".repeat(65_535));
        let topic = &topic[..65_535];
        let mut client = t.subscriber("c", topic, 0)?;
        client.send(&Publish::new(t.version, topic, "long").bytes())?;
        client.receives(topic, "long")?;
        Ok(())
    });

    for (remaining, bytes) in [(127, 1), (128, 2), (16_383, 2), (16_384, 3)] {
        s.both(
            "2.2.3",
            "1.5.5",
            format!("a remaining length of {remaining} takes {bytes} bytes both ways"),
            move |t| {
                let topic = t.topic("/x");
                let mut client = t.subscriber("c", &topic, 0)?;
                let header = topic.len() + 2 + usize::from(t.is_v5());
                let publish = Publish::new(t.version, &topic, vec![b'x'; remaining - header]).bytes();
                ensure!(publish.len() == 1 + bytes + remaining, "the suite counts wrongly");
                client.send(&publish)?;
                client.expect(&publish)
            },
        );
    }

    s.both("2.2.3", "1.5.5", "a remaining length of more than four bytes is refused", |t| {
        let mut client = t.client("c")?;
        client.send(&[0x30, 0x80, 0x80, 0x80, 0x80, 0x01])?;
        client.refused(0x81)
    });

    s.both("2.2.3", "1.5.5", "a CONNECT with a remaining length of more than four bytes is refused", |t| {
        let mut client = t.open("c")?;
        client.send(&[0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F])?;
        client.closed()
    });

    s.v5("1.5.5 MQTT-1.5.5-1", "a remaining length with more bytes than it needs is refused", |t| {
        for bytes in [&[0xC0, 0x80, 0x00][..], &[0xC0, 0x80, 0x80, 0x00], &[0x40, 0x82, 0x00, 0x00, 0x07]] {
            let mut client = t.client("c")?;
            client.send(bytes)?;
            client.refused(0x81)?;
        }
        Ok(())
    });

    s.v4("2.2.3", "a remaining length with more bytes than it needs is taken, as no rule forbids it", |t| {
        let mut client = t.client("c")?;
        client.send(&[0xC0, 0x80, 0x00])?;
        client.expect(&[0xD0, 0])
    });

    s.v5("1.5.5 MQTT-1.5.5-1", "a property length with more bytes than it needs is refused", |t| {
        let mut client = t.client("c")?;
        client.send(&packet(first::PUBLISH, &[&wire::text("t"), &[0x80, 0x00]]))?;
        client.refused(0x81)
    });

    s.v5("1.5.5", "a property length of more than four bytes is refused", |t| {
        let mut client = t.client("c")?;
        client.send(&packet(first::PUBLISH, &[&wire::text("t"), &[0x80, 0x80, 0x80, 0x80, 0x01]]))?;
        client.refused(0x81)
    });

    s.v5("1.5.5 MQTT-1.5.5-1", "a subscription identifier with more bytes than it needs is refused", |t| {
        let mut client = t.client("c")?;
        let properties = [3, id::SUBSCRIPTION_IDENTIFIER, 0x81, 0x00];
        client.send(&packet(first::SUBSCRIBE, &[&[0, 1], &properties, &wire::text("t"), &[0]]))?;
        client.refused(0x81)
    });

    s.v5("1.5.5", "a subscription identifier of five bytes is refused", |t| {
        let mut client = t.client("c")?;
        let properties = [6, id::SUBSCRIPTION_IDENTIFIER, 0x80, 0x80, 0x80, 0x80, 0x01];
        client.send(&packet(first::SUBSCRIBE, &[&[0, 1], &properties, &wire::text("t"), &[0]]))?;
        client.refused(0x81)
    });

    s.both("1.5.3", "1.5.6", "will payload and password may hold any byte", |t| {
        let all: Vec<u8> = (0..=255).collect();
        let topic = t.topic("/will");
        let mut watcher = t.subscriber("w", &topic, 0)?;
        let will = Will { payload: all.clone(), ..Will::new(&topic, "") };
        let connect = t.connector("c").will(will).login(Some("somebody"), Some(&all));
        t.with("c", &connect)?.0.vanish()?;
        watcher.receives(&topic, &all)?;
        Ok(())
    });

    s.both("1.5.3", "1.5.6", "a will payload longer than the CONNECT is refused", |t| {
        let mut bytes = t.connector("c").will(Will::new(&t.topic("w"), "marker")).bytes();
        bytes = with_length_that_lies(bytes)?;
        is_malformed(t, true, &bytes)
    });

    s.v5("1.5.6", "correlation data longer than the packet is refused", |t| {
        let property = property::data(id::CORRELATION_DATA, MARKER);
        let publish = Publish::new(t.version, &t.topic("x"), "x").with(property).bytes();
        is_malformed(t, false, &with_length_that_lies(publish)?)
    });

    s.v5("1.5.7 MQTT-1.5.7-1", "a user property without its value is refused", |t| {
        let properties = [&[id::USER_PROPERTY][..], &wire::text("name")].concat();
        let section = property::section(&[properties]);
        is_malformed(t, false, &packet(first::PUBLISH, &[&wire::text("t"), &section]))
    });

    s.v5("1.5.2", "two byte integers are read big end first", |t| {
        // Topic alias 256 is beyond what any server here allows, 1 is not.
        let mut client = t.client("c")?;
        let alias = property::two(id::TOPIC_ALIAS, 1);
        client.send(&Publish::new(t.version, &t.topic("x"), "x").with(alias).bytes())?;
        client.quiet()?;
        client.send(
            &Publish::new(t.version, &t.topic("x"), "x").with(vec![id::TOPIC_ALIAS, 0x7F, 0]).bytes(),
        )?;
        client.refused(0x94)
    });
}
