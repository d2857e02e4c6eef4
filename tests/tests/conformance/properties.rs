//! Properties, packet by packet: MQTT-5.0 2.2.2.

use anyhow::{Context, Result};
use causeway_tests::mqtt::property::{self, id};
use causeway_tests::mqtt::wire::{Connect, Publish, Will, first, identifier, packet, text};

use crate::suite::{Bench, Suite};

/// A packet of a client that has properties.
struct Carrier {
    name: &'static str,
    section: &'static str,
    /// Properties it may carry, beside user properties.
    allowed: &'static [u8],
    /// It is the CONNECT.
    connect: bool,
    bytes: fn(&Bench, &[u8]) -> Vec<u8>,
}

/// CONNECT with these bytes as its property section, length included, and those as that of its will.
fn connect(t: &Bench, section: &[u8], will: Option<&[u8]>) -> Vec<u8> {
    let connect = Connect::new(t.version, &t.id("c"));
    let mut body = text("MQTT");
    body.extend([5, if will.is_some() { 0b110 } else { 0b010 }, 0, 60]);
    body.extend(section);
    body.extend(text(&String::from_utf8_lossy(&connect.client_id)));
    if let Some(will) = will {
        body.extend(will);
        body.extend(text(&t.topic("will")));
        body.extend(text("payload"));
    }
    packet(first::CONNECT, &[&body])
}

const CARRIERS: &[Carrier] = &[
    Carrier {
        name: "CONNECT",
        section: "3.1.2.11",
        allowed: &[
            id::SESSION_EXPIRY_INTERVAL,
            id::RECEIVE_MAXIMUM,
            id::MAXIMUM_PACKET_SIZE,
            id::TOPIC_ALIAS_MAXIMUM,
            id::REQUEST_RESPONSE_INFORMATION,
            id::REQUEST_PROBLEM_INFORMATION,
            id::AUTHENTICATION_METHOD,
            id::AUTHENTICATION_DATA,
        ],
        connect: true,
        bytes: |t, section| connect(t, section, None),
    },
    Carrier {
        name: "a will",
        section: "3.1.3.2",
        allowed: &[
            id::WILL_DELAY_INTERVAL,
            id::PAYLOAD_FORMAT_INDICATOR,
            id::MESSAGE_EXPIRY_INTERVAL,
            id::CONTENT_TYPE,
            id::RESPONSE_TOPIC,
            id::CORRELATION_DATA,
        ],
        connect: true,
        bytes: |t, section| connect(t, &[0], Some(section)),
    },
    Carrier {
        name: "PUBLISH",
        section: "3.3.2.3",
        allowed: &[
            id::PAYLOAD_FORMAT_INDICATOR,
            id::MESSAGE_EXPIRY_INTERVAL,
            id::TOPIC_ALIAS,
            id::RESPONSE_TOPIC,
            id::CORRELATION_DATA,
            id::SUBSCRIPTION_IDENTIFIER,
            id::CONTENT_TYPE,
        ],
        connect: false,
        bytes: |t, section| packet(first::PUBLISH, &[&text(&t.topic("x")), section, b"payload"]),
    },
    Carrier {
        name: "PUBACK",
        section: "3.4.2.2",
        allowed: &[id::REASON_STRING],
        connect: false,
        bytes: |_, section| packet(first::PUBACK, &[&identifier(7), &[0], section]),
    },
    Carrier {
        name: "PUBREC",
        section: "3.5.2.2",
        allowed: &[id::REASON_STRING],
        connect: false,
        bytes: |_, section| packet(first::PUBREC, &[&identifier(7), &[0x80], section]),
    },
    Carrier {
        name: "PUBREL",
        section: "3.6.2.2",
        allowed: &[id::REASON_STRING],
        connect: false,
        bytes: |_, section| packet(first::PUBREL, &[&identifier(7), &[0], section]),
    },
    Carrier {
        name: "PUBCOMP",
        section: "3.7.2.2",
        allowed: &[id::REASON_STRING],
        connect: false,
        bytes: |_, section| packet(first::PUBCOMP, &[&identifier(7), &[0], section]),
    },
    Carrier {
        name: "SUBSCRIBE",
        section: "3.8.2.1",
        allowed: &[id::SUBSCRIPTION_IDENTIFIER],
        connect: false,
        bytes: |t, section| packet(first::SUBSCRIBE, &[&identifier(7), section, &text(&t.topic("x")), &[0]]),
    },
    Carrier {
        name: "UNSUBSCRIBE",
        section: "3.10.2.1",
        allowed: &[],
        connect: false,
        bytes: |t, section| packet(first::UNSUBSCRIBE, &[&identifier(7), section, &text(&t.topic("x"))]),
    },
    Carrier {
        name: "DISCONNECT",
        section: "3.14.2.2",
        allowed: &[id::SESSION_EXPIRY_INTERVAL, id::REASON_STRING, id::SERVER_REFERENCE],
        connect: false,
        bytes: |_, section| packet(first::DISCONNECT, &[&[0], section]),
    },
    Carrier {
        name: "AUTH",
        section: "3.15.2.2",
        allowed: &[id::AUTHENTICATION_METHOD, id::AUTHENTICATION_DATA, id::REASON_STRING],
        connect: false,
        bytes: |_, section| packet(first::AUTH, &[&[0x18], section]),
    },
];

impl Carrier {
    fn refused(&self, t: &Bench, section: &[u8], reason: u8) -> Result<()> {
        let bytes = (self.bytes)(t, section);
        if self.connect {
            let mut client = t.open("c")?;
            client.send(&bytes)?;
            return client.not_connected(None, reason);
        }
        let mut client = t.client("c")?;
        client.send(&bytes)?;
        client.refused(reason)
    }

    /// What it may carry at once without another meaning: no method nobody has, no identifier only servers
    /// send.
    fn harmless(&self) -> Vec<Vec<u8>> {
        let excluded = |id: u8| {
            matches!(id, id::AUTHENTICATION_METHOD | id::AUTHENTICATION_DATA)
                || (id == id::SUBSCRIPTION_IDENTIFIER && self.name == "PUBLISH")
                || (id == id::SERVER_REFERENCE && self.name == "DISCONNECT")
        };
        let every = property::every().into_iter();
        every.filter(|(id, _)| self.allowed.contains(id) && !excluded(*id)).map(|(_, bytes)| bytes).collect()
    }
}

pub(crate) fn cases(s: &mut Suite) {
    for carrier in CARRIERS {
        let name = carrier.name;
        s.v5("2.2.2.2", format!("{name} with a property of other packets is malformed"), move |t| {
            for (id, bytes) in property::every() {
                if !carrier.allowed.contains(&id) && id != id::USER_PROPERTY {
                    let section = property::section(&[bytes]);
                    carrier.refused(t, &section, 0x81).with_context(|| format!("property {id:#04x}"))?;
                }
            }
            Ok(())
        });
        s.v5("2.2.2.2", format!("{name} with a property that does not exist is malformed"), move |t| {
            for unknown in [0x00, 0x04, 0x0A, 0x14, 0x1B, 0x20, 0x2B, 0x3F, 0x40, 0x7F] {
                let section = property::section(&[vec![unknown, 0, 0, 0, 0]]);
                carrier.refused(t, &section, 0x81).with_context(|| format!("property {unknown:#04x}"))?;
            }
            // Identifiers are variable byte integers, if all known ones take one byte.
            carrier.refused(t, &property::section(&[vec![0x81, 0x01, 0]]), 0x81)?;
            carrier.refused(t, &property::section(&[vec![0x9F, 0x00, 0, 0]]), 0x81)
        });
        if !carrier.allowed.is_empty() {
            s.v5("2.2.2.2", format!("{name} with a property twice is a protocol error"), move |t| {
                let method = property::string(id::AUTHENTICATION_METHOD, "x");
                for (id, bytes) in
                    property::every().into_iter().filter(|(id, _)| carrier.allowed.contains(id))
                {
                    if id == id::SUBSCRIPTION_IDENTIFIER && name == "PUBLISH" {
                        continue;
                    }
                    let mut twice = vec![bytes.clone(), bytes];
                    if id == id::AUTHENTICATION_DATA {
                        twice.insert(0, method.clone());
                    }
                    let section = property::section(&twice);
                    carrier.refused(t, &section, 0x82).with_context(|| format!("property {id:#04x}"))?;
                }
                Ok(())
            });
            s.v5("2.2.2.2", format!("{name} with a property cut short is malformed"), move |t| {
                let allowed = |(id, _): &(u8, Vec<u8>)| carrier.allowed.contains(id);
                for (id, bytes) in property::every().into_iter().filter(allowed) {
                    for end in 1..bytes.len() {
                        // A string or binary data that is shorter and says so is another one, and legal.
                        let section = property::section(&[bytes[..end].to_vec()]);
                        carrier
                            .refused(t, &section, 0x81)
                            .with_context(|| format!("property {id:#04x} with {end} bytes"))?;
                    }
                }
                Ok(())
            });
        }
        s.v5("2.2.2.1", format!("{name} with a property length beyond its end is malformed"), move |t| {
            for section in [&[0x7F][..], &[0xFF, 0x7F], &[0xFF, 0xFF, 0xFF, 0x7F]] {
                let bytes =
                    if carrier.connect || name == "SUBSCRIBE" || name == "UNSUBSCRIBE" || name == "PUBLISH" {
                        // There are bytes behind it, but not so many.
                        section.to_vec()
                    } else {
                        [section, &property::user("n", "v")].concat()
                    };
                carrier.refused(t, &bytes, 0x81)?;
            }
            Ok(())
        });
        if name == "AUTH" {
            continue;
        }
        s.v5(carrier.section, format!("{name} with every property it may carry is taken"), move |t| {
            let mut all = carrier.harmless();
            all.extend([property::user("a", "1"), property::user("a", "1"), property::user("", "")]);
            taken(t, carrier, &all)?;
            all.reverse();
            taken(t, carrier, &all)
        });
        s.v5(carrier.section, format!("{name} with two hundred user properties is taken"), move |t| {
            let all: Vec<Vec<u8>> = (0..200).map(|n| property::user("name", &n.to_string())).collect();
            taken(t, carrier, &all)
        });
    }
    values(s);
}

fn taken(t: &Bench, carrier: &Carrier, properties: &[Vec<u8>]) -> Result<()> {
    let bytes = (carrier.bytes)(t, &property::section(properties));
    if carrier.connect {
        let mut client = t.open("c")?;
        client.send(&bytes)?;
        let connack = client.connack()?;
        anyhow::ensure!(connack.reason == 0, "CONNACK {:#04x}", connack.reason);
        client.quiet()?;
        return client.disconnect();
    }
    let mut client = t.client("c")?;
    match carrier.name {
        // Acknowledgements of something.
        "PUBACK" | "PUBREC" | "PUBCOMP" => {
            let qos = if carrier.name == "PUBACK" { 1 } else { 2 };
            let topic = t.topic("/own");
            client.subscribe(&topic, qos)?;
            client.send(&Publish::new(t.version, &topic, "x").bytes())?;
            client.published()?;
            let mut other = t.client("other")?;
            other.publish(&topic, "x", qos)?;
            let published = client.published()?;
            if carrier.name == "PUBCOMP" {
                client.send(&causeway_tests::mqtt::wire::ack(first::PUBREC, published.packet_identifier))?;
                client.acked(first::PUBREL, published.packet_identifier)?;
            }
            let mut bytes = bytes;
            let at = bytes.len() - property::section(properties).len() - 3;
            bytes[at..at + 2].copy_from_slice(&identifier(published.packet_identifier));
            client.send(&bytes)?;
        }
        "PUBREL" => {
            client.send(&Publish::new(t.version, &t.topic("x"), "x").qos(2, 7).bytes())?;
            client.acked(first::PUBREC, 7)?;
            client.send(&bytes)?;
            client.acked(first::PUBCOMP, 7)?;
        }
        "SUBSCRIBE" => {
            client.send(&bytes)?;
            client.suback(7)?;
        }
        "UNSUBSCRIBE" => {
            client.send(&bytes)?;
            client.packet()?.unsuback(t.version)?;
        }
        "DISCONNECT" => {
            client.send(&bytes)?;
            return client.closed();
        }
        _ => client.send(&bytes)?,
    }
    client.quiet()
}

/// Values that a property may not have, wherever it stands.
fn values(s: &mut Suite) {
    let connect: &[(&'static str, &str, Vec<u8>, u8)] = &[
        ("3.1.2.11.3", "receive maximum 0", property::two(id::RECEIVE_MAXIMUM, 0), 0x82),
        ("3.1.2.11.4", "maximum packet size 0", property::four(id::MAXIMUM_PACKET_SIZE, 0), 0x82),
        (
            "3.1.2.11.6",
            "request response information 2",
            property::byte(id::REQUEST_RESPONSE_INFORMATION, 2),
            0x82,
        ),
        (
            "3.1.2.11.7",
            "request problem information 2",
            property::byte(id::REQUEST_PROBLEM_INFORMATION, 2),
            0x82,
        ),
        (
            "3.1.2.11.10",
            "authentication data without a method",
            property::data(id::AUTHENTICATION_DATA, b"x"),
            0x82,
        ),
    ];
    for (section, name, bytes, reason) in connect.iter().cloned() {
        s.v5(section, format!("CONNECT with {name} is a protocol error"), move |t| {
            let mut client = t.open("c")?;
            client.send(&t.connector("c").with(bytes.clone()).bytes())?;
            client.not_connected(None, reason)
        });
    }
    let will: &[(&'static str, &str, Vec<u8>, u8)] = &[
        ("3.1.3.2.3", "payload format indicator 2", property::byte(id::PAYLOAD_FORMAT_INDICATOR, 2), 0x82),
        ("3.1.3.2.6", "a wildcard in its response topic", property::string(id::RESPONSE_TOPIC, "a/#"), 0x82),
    ];
    for (section, name, bytes, reason) in will.iter().cloned() {
        s.v5(section, format!("a will with {name} is a protocol error"), move |t| {
            let mut client = t.open("c")?;
            let will = Will { properties: vec![bytes.clone()], ..Will::new(&t.topic("w"), "x") };
            client.send(&t.connector("c").will(will).bytes())?;
            client.not_connected(None, reason)
        });
    }
    let publish: &[(&'static str, &str, Vec<u8>, u8)] = &[
        ("3.3.2.3.2", "payload format indicator 2", property::byte(id::PAYLOAD_FORMAT_INDICATOR, 2), 0x82),
        ("3.3.2.3.4 MQTT-3.3.2-8", "topic alias 0", property::two(id::TOPIC_ALIAS, 0), 0x94),
        (
            "3.3.2.3.5 MQTT-3.3.2-14",
            "a wildcard in its response topic",
            property::string(id::RESPONSE_TOPIC, "a/+"),
            0x82,
        ),
        ("3.3.4 MQTT-3.3.4-6", "a subscription identifier", property::subscription_identifier(1), 0x82),
    ];
    for (section, name, bytes, reason) in publish.iter().cloned() {
        s.v5(section, format!("PUBLISH with {name} is refused"), move |t| {
            let mut client = t.client("c")?;
            client.send(&Publish::new(t.version, &t.topic("x"), "x").with(bytes.clone()).bytes())?;
            client.refused(reason)
        });
    }
    s.v5("3.8.2.1.2", "SUBSCRIBE with subscription identifier 0 is a protocol error", |t| {
        let mut client = t.client("c")?;
        let section = property::section(&[vec![id::SUBSCRIPTION_IDENTIFIER, 0]]);
        client.send(&packet(first::SUBSCRIBE, &[&identifier(7), &section, &text(&t.topic("x")), &[0]]))?;
        client.refused(0x82)
    });
    s.v5("3.8.2.1.2", "subscription identifiers up to 268435455 are taken and come back", |t| {
        let mut client = t.client("c")?;
        for (n, number) in [1, 127, 128, 16_383, 16_384, 2_097_152, 268_435_455].into_iter().enumerate() {
            let topic = t.topic(&format!("/{n}"));
            client.subscribe_with(&[property::subscription_identifier(number)], &topic, 0)?;
            client.send(&Publish::new(t.version, &topic, "x").bytes())?;
            let published = client.receives(&topic, "x")?;
            let numbers =
                property::Properties::numbers(&published.properties[..], id::SUBSCRIPTION_IDENTIFIER);
            anyhow::ensure!(numbers == [number], "{numbers:?}, not {number}");
        }
        Ok(())
    });
}
