//! CONNECT and CONNACK: MQTT-3.1.1 3.1 and 3.2, MQTT-5.0 3.1 and 3.2. Wills and sessions have files of their
//! own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::property::{self, Properties, id};
use causeway_tests::mqtt::wire::{Connect, Publish, Version, Will, first, hex, packet, subscribe};

use crate::suite::{Bench, Suite};

/// The bits of the connect flags.
mod flag {
    pub(super) const RESERVED: u8 = 0x01;
    pub(super) const CLEAN: u8 = 0x02;
    pub(super) const WILL: u8 = 0x04;
    pub(super) const WILL_RETAIN: u8 = 0x20;
    pub(super) const PASSWORD: u8 = 0x40;
    pub(super) const USERNAME: u8 = 0x80;
}

fn refused(t: &Bench, connect: &Connect, return_code: Option<u8>, reason: u8) -> Result<()> {
    let mut client = t.open("c")?;
    client.send(&connect.bytes())?;
    client.not_connected(return_code, reason)
}

pub(crate) fn cases(s: &mut Suite) {
    protocol(s);
    flags(s);
    payload(s);
    client_identifier(s);
    connack(s);
    keep_alive(s);
    ends(s);
}

fn protocol(s: &mut Suite) {
    s.v4("3.1.2.1 MQTT-3.1.2-1", "another protocol name is refused", |t| {
        for name in ["mqtt", "MQTTT", "", "HTTP", "MQIsdp", "mqisdp", "MQT"] {
            let connect = Connect { name: name.into(), ..t.connector("c") };
            refused(t, &connect, Some(1), 0x84).context(name)?;
        }
        Ok(())
    });
    s.v5("3.1.2.1 MQTT-3.1.2-1", "another protocol name is refused", |t| {
        for name in ["mqtt", "MQTTT", "", "HTTP", "MQIsdp"] {
            let mut client = t.open("c")?;
            client.send(&Connect { name: name.into(), ..t.connector("c") }.bytes())?;
            // Nobody knows which form the client understands: the oldest that says what is wrong.
            client.expect(&[0x20, 2, 0, 1]).context(name)?;
            client.closed()?;
        }
        Ok(())
    });
    s.v4("3.1.2.2 MQTT-3.1.2-2", "another protocol level is answered with 0x01", |t| {
        for level in [0, 1, 2, 3] {
            refused(t, &Connect { level, ..t.connector("c") }, Some(1), 0x84)
                .with_context(|| format!("level {level}"))?;
        }
        Ok(())
    });
    s.v5("3.1.2.2 MQTT-3.1.2-2", "a later protocol version is answered with 0x84", |t| {
        for level in [6, 7, 127, 0x85, 255] {
            refused(t, &Connect { level, ..t.connector("c") }, None, 0x84)
                .with_context(|| format!("level {level}"))?;
        }
        Ok(())
    });
    s.v4("3.1.2.2", "the level with the bit of bridges is refused with 0x01", |t| {
        let mut client = t.open("c")?;
        client.send(&Connect { level: 0x84, ..t.connector("c") }.bytes())?;
        client.expect(&[0x20, 2, 0, 1])?;
        client.closed()
    });
    s.both("3.1.2", "3.1.2", "a CONNECT that ends inside its variable header is refused", |t| {
        let body = t.connector("c").body();
        for end in 0..10 {
            let mut client = t.open("c")?;
            client.send(&packet(first::CONNECT, &[&body[..end]]))?;
            if end < 7 { client.closed() } else { client.not_connected(None, 0x81) }
                .with_context(|| format!("{end} bytes"))?;
        }
        Ok(())
    });
    s.both("3.1.4 MQTT-3.1.4-1", "3.1.4 MQTT-3.1.4-1", "a CONNECT that ends anywhere else is refused", |t| {
        let connect =
            t.connector("c").will(Will::new(&t.topic("w"), "x")).login(Some("user"), Some(b"password"));
        let body = connect.body();
        for end in 10..body.len() {
            let mut client = t.open("c")?;
            client.send(&packet(first::CONNECT, &[&body[..end]]))?;
            client.not_connected(None, 0x81).with_context(|| format!("{end} bytes of {}", hex(&body)))?;
        }
        Ok(())
    });
    s.both("3.1.3 MQTT-3.1.3-1", "3.1.3 MQTT-3.1.3-1", "bytes behind the payload are refused", |t| {
        let connect = t.connector("c");
        let login = t.connector("c").login(Some("user"), Some(b"password"));
        for connect in [connect, login] {
            let mut client = t.open("c")?;
            client.send(&packet(first::CONNECT, &[&connect.body(), &[0]]))?;
            client.not_connected(None, 0x81)?;
        }
        Ok(())
    });
}

fn flags(s: &mut Suite) {
    s.both("3.1.2.3 MQTT-3.1.2-3", "3.1.2.3 MQTT-3.1.2-3", "the reserved connect flag is refused", |t| {
        refused(t, &t.connector("c").flip(flag::RESERVED), None, 0x81)?;
        refused(t, &t.connector("c").flip(flag::RESERVED | flag::CLEAN), None, 0x81)
    });
    s.both("3.1.2.6 MQTT-3.1.2-14", "3.1.2.6 MQTT-3.1.2-12", "will QoS 3 is refused", |t| {
        let will = Will { qos: 3, ..Will::new(&t.topic("w"), "x") };
        refused(t, &t.connector("c").will(will), None, 0x81)
    });
    s.both(
        "3.1.2.6 MQTT-3.1.2-13",
        "3.1.2.6 MQTT-3.1.2-11",
        "will QoS without the will flag is refused",
        |t| {
            for qos in 1..4 {
                refused(t, &t.connector("c").flip(qos << 3), None, 0x81)?;
            }
            Ok(())
        },
    );
    s.both(
        "3.1.2.7 MQTT-3.1.2-15",
        "3.1.2.7 MQTT-3.1.2-13",
        "will retain without the will flag is refused",
        |t| refused(t, &t.connector("c").flip(flag::WILL_RETAIN), None, 0x81),
    );
    s.v4("3.1.2.9 MQTT-3.1.2-22", "a password without a user name is refused", |t| {
        refused(t, &t.connector("c").login(None, Some(b"x")), None, 0x81)
    });
    s.v5("3.1.2.9", "a password without a user name is allowed", |t| {
        t.with("c", &t.connector("c").login(None, Some(b"x")))?.0.quiet()
    });
    s.both(
        "3.1.2.8 MQTT-3.1.2-19",
        "3.1.2.8 MQTT-3.1.2-17",
        "a user name without a password is allowed",
        |t| t.with("c", &t.connector("c").login(Some("somebody"), None))?.0.quiet(),
    );
    s.both("3.1.2.9 MQTT-3.1.2-21", "3.1.2.9 MQTT-3.1.2-19", "user name and password are allowed", |t| {
        t.with("c", &t.connector("c").login(Some("somebody"), Some(b"secret")))?.0.quiet()?;
        t.with("d", &t.connector("d").login(Some(""), Some(b"")))?.0.quiet()
    });
}

fn payload(s: &mut Suite) {
    let flags: [(&'static str, &'static str, &str, u8); 3] = [
        ("3.1.2.8 MQTT-3.1.2-18", "3.1.2.8 MQTT-3.1.2-16", "a user name without its flag", flag::USERNAME),
        ("3.1.2.9 MQTT-3.1.2-20", "3.1.2.9 MQTT-3.1.2-18", "a password without its flag", flag::PASSWORD),
        ("3.1.2.5 MQTT-3.1.2-11", "3.1.2.5", "a will without its flag", flag::WILL),
    ];
    for (v4, v5, name, bit) in flags {
        s.both(v4, v5, format!("{name} is refused"), move |t| {
            let connect = match bit {
                flag::USERNAME => t.connector("c").login(Some("user"), None),
                flag::PASSWORD => t.connector("c").login(Some("user"), Some(b"password")),
                _ => t.connector("c").will(Will::new(&t.topic("w"), "x")),
            };
            refused(t, &connect.flip(bit), None, 0x81)
        });
    }
    s.both(
        "3.1.2.8 MQTT-3.1.2-19",
        "3.1.2.8 MQTT-3.1.2-17",
        "the user name flag without a user name is refused",
        |t| refused(t, &t.connector("c").flip(flag::USERNAME), None, 0x81),
    );
    s.both(
        "3.1.2.9 MQTT-3.1.2-21",
        "3.1.2.9 MQTT-3.1.2-19",
        "the password flag without a password is refused",
        |t| refused(t, &t.connector("c").login(Some("user"), None).flip(flag::PASSWORD), None, 0x81),
    );
    s.both("3.1.2.5 MQTT-3.1.2-9", "3.1.2.5 MQTT-3.1.2-9", "the will flag without a will is refused", |t| {
        refused(t, &t.connector("c").flip(flag::WILL), None, 0x81)
    });
    s.both("3.1.3.2", "3.1.3.3", "an empty will topic is refused", |t| {
        refused(t, &t.connector("c").will(Will::new("", "x")), None, 0x90)
    });
    s.both("3.1.3.2 MQTT-3.3.2-2", "3.1.3.3", "a will topic with a wildcard is refused", |t| {
        for topic in ["#", "+", "a/#", "a/+/b", "a#"] {
            refused(t, &t.connector("c").will(Will::new(topic, "x")), None, 0x90).context(topic)?;
        }
        Ok(())
    });
    s.both("3.1.3.3", "3.1.3.4", "an empty will payload is allowed", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        t.with("c", &t.connector("c").will(Will::new(&topic, "")))?.0.vanish()?;
        watcher.receives(&topic, "")?;
        Ok(())
    });
}

fn client_identifier(s: &mut Suite) {
    s.both(
        "3.1.3.1 MQTT-3.1.3-5",
        "3.1.3.1 MQTT-3.1.3-5",
        "letters and digits up to 23 bytes are allowed",
        |t| {
            let base = t.id("0123456789abcdefghijklmnopqrstuvwxyz");
            for id in [&base[..23], &base[..14]] {
                t.with("c", &Connect::new(t.version, id))?.0.quiet()?;
            }
            let upper = format!("ABCDEFGHIJKLMNOP{}", t.id(""));
            t.with("c", &Connect::new(t.version, &upper))?.0.quiet()
        },
    );
    s.both("3.1.3.1", "3.1.3.1", "a client identifier of 65535 bytes is allowed", |t| {
        let id = t.id(&"x".repeat(65_535));
        t.with("c", &Connect::new(t.version, &id[..65_535]))?.0.quiet()
    });
    s.v4("3.1.3.1 MQTT-3.1.3-6", "an empty client identifier with a clean session is allowed", |t| {
        let (mut client, _) = t.with("c", &Connect::new(t.version, ""))?;
        let (mut other, _) = t.with("d", &Connect::new(t.version, ""))?;
        client.quiet()?;
        other.quiet()
    });
    s.v4(
        "3.1.3.1 MQTT-3.1.3-8 MQTT-3.1.3-9",
        "an empty client identifier without a clean session is refused",
        |t| refused(t, &Connect::new(t.version, "").clean(false), Some(2), 0),
    );
    s.v5(
        "3.1.3.1 MQTT-3.1.3-6 MQTT-3.1.3-7",
        "an empty client identifier is replaced by a unique one",
        |t| {
            let mut assigned = Vec::new();
            for name in ["a", "b", "c"] {
                let (mut client, connack) = t.with(name, &Connect::new(t.version, ""))?;
                client.quiet()?;
                let id = connack
                    .properties
                    .bytes(id::ASSIGNED_CLIENT_IDENTIFIER)
                    .context("no identifier")?
                    .to_vec();
                ensure!(!id.is_empty() && !assigned.contains(&id), "{}", hex(&id));
                assigned.push(id);
            }
            Ok(())
        },
    );
    s.v5("3.2.2.3.7 MQTT-3.2.2-16", "an assigned client identifier finds its session again", |t| {
        let (client, connack) = t.with("a", &Connect::new(t.version, "").lasting(60))?;
        let id = connack.properties.bytes(id::ASSIGNED_CLIENT_IDENTIFIER).context("no identifier")?;
        let connect = Connect { client_id: id.to_vec(), ..Connect::new(t.version, "") }.clean(false);
        client.disconnect()?;
        let (mut client, connack) = t.with("b", &connect)?;
        ensure!(connack.session_present, "no session");
        ensure!(connack.properties.bytes(id::ASSIGNED_CLIENT_IDENTIFIER).is_none(), "assigned again");
        client.quiet()
    });
    s.v5("3.2.2.3.7", "a client that brings its identifier is not assigned one", |t| {
        let (_client, connack) = t.with("c", &t.connector("c"))?;
        ensure!(connack.properties.bytes(id::ASSIGNED_CLIENT_IDENTIFIER).is_none(), "assigned");
        Ok(())
    });
    s.both(
        "3.1.3.1 MQTT-3.1.3-2",
        "3.1.3.1 MQTT-3.1.3-2",
        "identifiers differ by case, space and form",
        |t| {
            let ids = ["a", "A", "a ", " a", "\u{e9}", "e\u{301}"].map(|text| t.id(text));
            let mut clients = Vec::new();
            for id in &ids {
                clients.push(t.with(id, &Connect::new(t.version, id))?.0);
            }
            clients.iter_mut().try_for_each(causeway_tests::mqtt::Client::quiet)
        },
    );
}

fn connack(s: &mut Suite) {
    s.v4("3.2 MQTT-3.2.0-1", "CONNACK is exactly 20 02 00 00", |t| {
        let mut client = t.open("c")?;
        client.send(&t.connector("c").bytes())?;
        client.expect(&[0x20, 2, 0, 0])
    });
    s.v5("3.2 MQTT-3.2.0-1", "the first packet is CONNACK, with session present 0 and success", |t| {
        let mut client = t.open("c")?;
        client.send(&t.connector("c").bytes())?;
        let packet = client.packet()?;
        ensure!(packet.first == 0x20 && packet.body.starts_with(&[0, 0]), "{packet}");
        packet.connack(Version::V5)?;
        Ok(())
    });
    s.both(
        "3.1.4 MQTT-3.1.4-4",
        "3.1.4 MQTT-3.1.4-5",
        "packets right behind the CONNECT are answered behind its CONNACK",
        |t| {
            let mut client = t.open("c")?;
            let topic = t.topic("x");
            let all = [
                t.connector("c").bytes(),
                subscribe(t.version, 5, &[(&topic, 0)]),
                Publish::new(t.version, &topic, "early").bytes(),
                vec![0xC0, 0],
            ];
            client.send(&all.concat())?;
            ensure!(client.connack()?.reason == 0, "not connected");
            client.suback(5)?;
            // PINGRESP may overtake the delivery, which is not an answer.
            let (mut pong, mut early) = (false, false);
            while !(pong && early) {
                let packet = client.packet()?;
                if packet.first == first::PINGRESP {
                    pong = true;
                } else {
                    early = packet.publish(t.version)?.payload == b"early";
                }
            }
            Ok(())
        },
    );
    s.both(
        "3.1.4 MQTT-3.1.4-5",
        "3.1.4 MQTT-3.1.4-6",
        "packets behind a refused CONNECT have no effect",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.open("c")?;
            let refused = t.connector("c").flip(flag::RESERVED).bytes();
            client.send(&[refused, Publish::new(t.version, &topic, "early").retain().bytes()].concat())?;
            client.not_connected(None, 0x81)?;
            watcher.quiet()?;
            t.subscriber("late", &topic, 0)?.quiet()
        },
    );
    s.both(
        "3.2.2.3 MQTT-3.2.2-4 MQTT-3.2.2-5",
        "3.2.2.1 MQTT-3.2.2-6 MQTT-3.2.2-7",
        "a refusal has session present 0 and closes",
        |t| {
            // Reading a CONNACK checks that no failure comes with session present.
            let lasting = t.connector("c").lasting(60);
            t.with("c", &lasting)?.0.disconnect()?;
            let mut client = t.open("c")?;
            client.send(&Connect { level: if t.is_v5() { 6 } else { 3 }, ..lasting }.bytes())?;
            client.not_connected(Some(1), 0x84)
        },
    );
    s.v5("3.2.2.3.3", "a receive maximum that is announced is not 0", |t| {
        let (_client, connack) = t.with("c", &t.connector("c"))?;
        ensure!(connack.properties.number(id::RECEIVE_MAXIMUM) != Some(0), "receive maximum 0");
        Ok(())
    });
    s.v5("3.2.2.3.6", "a maximum packet size that is announced is not 0", |t| {
        let (_client, connack) = t.with("c", &t.connector("c"))?;
        ensure!(connack.properties.number(id::MAXIMUM_PACKET_SIZE) != Some(0), "maximum packet size 0");
        Ok(())
    });
    s.v5("3.2.2.3.4", "every QoS is there: no maximum QoS is announced", |t| {
        let (_client, connack) = t.with("c", &t.connector("c"))?;
        ensure!(connack.properties.number(id::MAXIMUM_QOS).is_none(), "a maximum QoS");
        Ok(())
    });
    s.v5("3.2.2.3.5", "retained messages are there", |t| {
        let (_client, connack) = t.with("c", &t.connector("c"))?;
        ensure!(connack.properties.number(id::RETAIN_AVAILABLE) != Some(0), "no retained messages");
        Ok(())
    });
    s.v5("3.2.2.3.11", "wildcards and subscription identifiers are there", |t| {
        let (_client, connack) = t.with("c", &t.connector("c"))?;
        for id in [id::WILDCARD_SUBSCRIPTION_AVAILABLE, id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE] {
            ensure!(connack.properties.number(id) != Some(0), "property {id:#04x} is 0");
        }
        Ok(())
    });
    s.v5("3.1.2.11.6 MQTT-3.1.2-28", "no response information without a request for it", |t| {
        for connect in
            [t.connector("c"), t.connector("c").with(property::byte(id::REQUEST_RESPONSE_INFORMATION, 0))]
        {
            let (client, connack) = t.with("c", &connect)?;
            ensure!(connack.properties.bytes(id::RESPONSE_INFORMATION).is_none(), "response information");
            client.disconnect()?;
        }
        Ok(())
    });
    s.v5("3.1.2.11.7 MQTT-3.1.2-29", "no reason strings or user properties where they are not wanted", |t| {
        let connect = t.connector("c").with(property::byte(id::REQUEST_PROBLEM_INFORMATION, 0));
        let (mut client, _) = t.with("c", &connect)?;
        let plain = |properties: &[property::Property]| -> Result<()> {
            ensure!(
                properties.bytes(id::REASON_STRING).is_none() && properties.user().is_empty(),
                "{properties:?}"
            );
            Ok(())
        };
        client.send(&subscribe(t.version, 1, &[(&t.topic("x"), 0), ("$share/g/a", 0)]))?;
        plain(&client.suback(1)?.properties)?;
        client.send(&Publish::new(t.version, &t.topic("nobody"), "x").qos(1, 2).bytes())?;
        plain(&client.packet()?.ack(t.version, first::PUBACK)?.properties)?;
        client.send(&causeway_tests::mqtt::wire::ack(first::PUBREL, 99))?;
        plain(&client.packet()?.ack(t.version, first::PUBCOMP)?.properties)
    });
    s.v5("3.1.2.11.10", "a method of authentication that nobody knows is refused", |t| {
        let method = property::string(id::AUTHENTICATION_METHOD, "NO-SUCH-METHOD");
        refused(t, &t.connector("c").with(method.clone()), None, 0x8C)?;
        let data = property::data(id::AUTHENTICATION_DATA, b"data");
        refused(t, &t.connector("c").with(method).with(data), None, 0x8C)
    });
    s.both("3.1.4", "3.1.4", "nothing is sent before a CONNECT", |t| {
        let mut client = t.open("c")?;
        client.set_patience(Duration::from_millis(200));
        ensure!(client.packet().is_err(), "a packet before CONNECT");
        client.set_patience(causeway_tests::mqtt::client::PATIENCE);
        let connack = client.connect(&t.connector("c"))?;
        ensure!(connack.reason == 0, "{connack:?}");
        Ok(())
    });
}

fn keep_alive(s: &mut Suite) {
    s.both(
        "3.1.2.10 MQTT-3.1.2-24",
        "3.1.2.10 MQTT-3.1.2-22",
        "a silent client is cut off after 1.5 times its keep-alive",
        |t| {
            let (mut client, _) = t.with("c", &t.connector("c").keep_alive(1))?;
            let started = Instant::now();
            client.refused(0x8D)?;
            let took = started.elapsed();
            ensure!(took >= Duration::from_millis(1400), "after {took:?}");
            ensure!(took <= Duration::from_secs(4), "after {took:?}");
            Ok(())
        },
    );
    s.both(
        "3.1.2.10 MQTT-3.1.2-23",
        "3.1.2.10 MQTT-3.1.2-20",
        "after PINGREQs and others a client stays connected",
        |t| {
            let (mut client, _) = t.with("c", &t.connector("c").keep_alive(1))?;
            for turn in 0..4 {
                std::thread::sleep(Duration::from_millis(700));
                if turn % 2 == 0 {
                    client.quiet()?;
                } else {
                    client.send(&Publish::new(t.version, &t.topic("x"), "x").bytes())?;
                }
            }
            client.quiet()
        },
    );
    s.both("3.1.2.10", "3.1.2.10", "after what it is sent a silent client is cut off all the same", |t| {
        let topic = t.topic("x");
        let (mut client, _) = t.with("c", &t.connector("c").keep_alive(1))?;
        client.subscribe(&topic, 0)?;
        let mut other = t.client("other")?;
        let started = Instant::now();
        loop {
            other.send(&Publish::new(t.version, &topic, "x").bytes())?;
            let packet = client.packet();
            match packet {
                Ok(packet) if packet.first >> 4 == 3 => {}
                Ok(packet) => {
                    ensure!(t.is_v5() && packet.disconnect()?.reason == 0x8D, "{packet}");
                    break client.closed()?;
                }
                Err(_) if !t.is_v5() => break,
                Err(error) => return Err(error),
            }
            ensure!(started.elapsed() < Duration::from_secs(5), "still connected");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    });
    s.both("3.1.2.10", "3.1.2.10", "keep-alive 0 turns it off: connected after seconds of silence", |t| {
        let (mut client, _) = t.with("c", &t.connector("c").keep_alive(0))?;
        std::thread::sleep(Duration::from_secs(3));
        client.quiet()
    });
    s.both("3.1.2.10", "3.1.2.10", "the longest keep-alive is allowed", |t| {
        t.with("c", &t.connector("c").keep_alive(65_535))?.0.quiet()
    });
    s.both(
        "3.1.2.10",
        "3.1.2.10",
        "after 1.5 times its keep-alive inside a packet a client is cut off",
        |t| {
            let (mut client, _) = t.with("c", &t.connector("c").keep_alive(1))?;
            client.send(&[0x30, 20, 0, 3, b'a'])?;
            client.refused(0x8D)
        },
    );
    s.both(
        "3.1.2.5 MQTT-3.1.2-8",
        "3.1.2.5 MQTT-3.1.2-8",
        "the will of a silent client is published after its keep-alive",
        |t| {
            let topic = t.topic("w");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let (_client, _) =
                t.with("c", &t.connector("c").keep_alive(1).will(Will::new(&topic, "silent")))?;
            watcher.receives(&topic, "silent")?;
            Ok(())
        },
    );
}

/// How connections end (MQTT-5.0 4.13): the reason arrives, and the end is orderly.
fn ends(s: &mut Suite) {
    s.both("4.8 MQTT-4.8.0-1", "4.13.1 MQTT-4.13.1-1", "no reset eats what is said last", |t| {
        let mut client = t.client("c")?;
        // Much more than the server will read behind what it refuses.
        let mut bytes = vec![0x00, 0x00];
        bytes.resize(300_000, 0xC0);
        client.push(&bytes);
        client.refused(0x81)
    });
    s.v5("4.13.1", "no reset eats the CONNACK of a refusal", |t| {
        let mut client = t.open("c")?;
        let mut bytes = t.connector("c").flip(flag::RESERVED).bytes();
        bytes.resize(300_000, 0xC0);
        client.push(&bytes);
        client.not_connected(None, 0x81)
    });
    s.both(
        "4.8 MQTT-4.8.0-1",
        "4.13.1 MQTT-4.13.1-1",
        "what is legal before an illegal packet has its effect",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.client("c")?;
            client.send(&[Publish::new(t.version, &topic, "first").bytes(), vec![0x00, 0]].concat())?;
            client.refused(0x81)?;
            watcher.receives(&topic, "first")?;
            Ok(())
        },
    );
    s.both(
        "4.8 MQTT-4.8.0-1",
        "4.13.1 MQTT-4.13.1-1",
        "what is legal behind an illegal packet has none",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.client("c")?;
            client.send(&[vec![0x00, 0], Publish::new(t.version, &topic, "second").bytes()].concat())?;
            client.refused(0x81)?;
            watcher.quiet()
        },
    );
    s.both("4.8", "4.13.1", "the client may end first, and the server closes as well", |t| {
        let mut client = t.client("c")?;
        client.finish()?;
        client.closed()
    });
    s.both("4.8", "4.13.1", "a client that ends inside a packet is just gone", |t| {
        let mut client = t.client("c")?;
        client.send(&[0x30, 100, 0])?;
        client.finish()?;
        client.closed()
    });
}
