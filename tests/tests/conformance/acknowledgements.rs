//! PUBACK, PUBREC, PUBREL and PUBCOMP from a publisher's side: MQTT-3.1.1 3.4 to 3.7 and 4.3, MQTT-5.0 the
//! same.

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::property::{self, id};
use causeway_tests::mqtt::wire::{Publish, ack, ack_with, first, identifier, packet};

use crate::suite::{Bench, Suite};

pub(crate) fn cases(s: &mut Suite) {
    to_the_server(s);
    exactly_once(s);
    reasons(s);
}

fn to_the_server(s: &mut Suite) {
    s.both("3.3.4 MQTT-3.3.4-1", "3.3.4 MQTT-3.3.4-1", "QoS 0 is answered by nothing", |t| {
        let mut client = t.client("c")?;
        client.send(&Publish::new(t.version, &t.topic("x"), "x").bytes())?;
        client.quiet()
    });
    s.both(
        "3.3.4 MQTT-3.3.4-1",
        "3.3.4 MQTT-3.3.4-1",
        "QoS 1 is answered by PUBACK with its identifier",
        |t| {
            let topic = t.topic("x");
            let _watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.client("c")?;
            for id in [1, 2, 255, 256, 65_535] {
                client.send(&Publish::new(t.version, &topic, "x").qos(1, id).bytes())?;
                client.expect(&ack(first::PUBACK, id))?;
            }
            client.quiet()
        },
    );
    s.both(
        "3.3.4 MQTT-3.3.4-1",
        "3.3.4 MQTT-3.3.4-1",
        "QoS 2 is answered by PUBREC, PUBREL by PUBCOMP",
        |t| {
            let topic = t.topic("x");
            let _watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.client("c")?;
            for id in [1, 2, 255, 256, 65_535] {
                client.send(&Publish::new(t.version, &topic, "x").qos(2, id).bytes())?;
                client.expect(&ack(first::PUBREC, id))?;
                client.send(&ack(first::PUBREL, id))?;
                client.expect(&ack(first::PUBCOMP, id))?;
            }
            client.quiet()
        },
    );
    s.both(
        "4.3.2 MQTT-4.3.2-2",
        "4.3.2 MQTT-4.3.2-5",
        "an identifier is free again behind its PUBACK",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.client("c")?;
            for payload in ["1", "2", "3"] {
                client.send(&Publish::new(t.version, &topic, payload).qos(1, 7).bytes())?;
                client.acked(first::PUBACK, 7)?;
                watcher.receives(&topic, payload)?;
            }
            watcher.quiet()
        },
    );
    s.both("4.3.2", "4.3.2", "a QoS 1 message that comes again is delivered again", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let mut client = t.client("c")?;
        let publish = Publish::new(t.version, &topic, "x").qos(1, 7);
        client.send(&publish.bytes())?;
        client.acked(first::PUBACK, 7)?;
        // Only before its PUBACK would it be the same one.
        client.send(&publish.dup().bytes())?;
        client.acked(first::PUBACK, 7)?;
        watcher.receives(&topic, "x")?;
        watcher.receives(&topic, "x")?;
        watcher.quiet()
    });
    s.both("4.6 MQTT-4.6.0-2", "4.6 MQTT-4.6.0-2", "PUBACKs come in the order of the PUBLISHes", |t| {
        let mut client = t.client("c")?;
        let topic = t.topic("x");
        let ids: Vec<u16> = (1..=200).map(|n| (n * 37) % 211 + 1).collect();
        let all: Vec<u8> =
            ids.iter().flat_map(|&id| Publish::new(t.version, &topic, "x").qos(1, id).bytes()).collect();
        client.send(&all)?;
        for &id in &ids {
            client.acked(first::PUBACK, id)?;
        }
        client.quiet()
    });
    s.both("4.6 MQTT-4.6.0-3", "4.6 MQTT-4.6.0-3", "PUBRECs come in the order of the PUBLISHes", |t| {
        let mut client = t.client("c")?;
        let topic = t.topic("x");
        let ids: Vec<u16> = (1..=200).map(|n| (n * 37) % 211 + 1).collect();
        let all: Vec<u8> =
            ids.iter().flat_map(|&id| Publish::new(t.version, &topic, "x").qos(2, id).bytes()).collect();
        client.send(&all)?;
        for &id in &ids {
            client.acked(first::PUBREC, id)?;
        }
        let all: Vec<u8> = ids.iter().rev().flat_map(|&id| ack(first::PUBREL, id)).collect();
        client.send(&all)?;
        for &id in ids.iter().rev() {
            client.acked(first::PUBCOMP, id)?;
        }
        client.quiet()
    });
    s.both("4.6", "4.6", "acknowledgements of QoS 1 and 2 keep their order among each other", |t| {
        let mut client = t.client("c")?;
        let topic = t.topic("x");
        let qos = |id: u16| if id.is_multiple_of(3) { 2 } else { 1 };
        let all: Vec<u8> =
            (1..=60).flat_map(|id| Publish::new(t.version, &topic, "x").qos(qos(id), id).bytes()).collect();
        client.send(&all)?;
        for id in 1..=60 {
            client.acked(if qos(id) == 2 { first::PUBREC } else { first::PUBACK }, id)?;
        }
        Ok(())
    });
}

/// Method A or B, exactly once (MQTT-3.1.1 4.3.3, MQTT-5.0 4.3.3).
fn exactly_once(s: &mut Suite) {
    s.v5("4.3.3", "a PUBREC with a failure ends a delivery and makes room for the next", |t| {
        let topic = t.topic("x");
        let mut watcher = t.with("w", &t.connector("w").with(property::two(id::RECEIVE_MAXIMUM, 1)))?.0;
        watcher.subscribe(&topic, 2)?;
        let mut client = t.client("c")?;
        for payload in ["1", "2", "3"] {
            client.publish(&topic, payload, 1)?;
        }
        for payload in ["1", "2", "3"] {
            let published = watcher.receives(&topic, payload)?;
            watcher.quiet()?;
            ensure!(published.qos == 1, "QoS {}", published.qos);
            watcher.acknowledge(&published)?;
        }
        for payload in ["4", "5", "6"] {
            client.publish(&topic, payload, 2)?;
        }
        for payload in ["4", "5", "6"] {
            let published = watcher.receives(&topic, payload)?;
            watcher.quiet()?;
            watcher.send(&ack_with(first::PUBREC, published.packet_identifier, 0x83))?;
        }
        watcher.quiet()
    });
    s.both(
        "4.3.3 MQTT-4.3.3-2",
        "4.3.3 MQTT-4.3.3-10",
        "QoS 2 that comes again before PUBREL is delivered once",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.client("c")?;
            let publish = Publish::new(t.version, &topic, "x").qos(2, 7);
            client.send(&publish.bytes())?;
            client.acked(first::PUBREC, 7)?;
            for _ in 0..3 {
                client.send(&publish.clone().dup().bytes())?;
                client.acked(first::PUBREC, 7)?;
            }
            client.send(&ack(first::PUBREL, 7))?;
            client.acked(first::PUBCOMP, 7)?;
            watcher.receives(&topic, "x")?;
            watcher.quiet()
        },
    );
    s.both(
        "4.3.3 MQTT-4.3.3-2",
        "4.3.3 MQTT-4.3.3-10",
        "QoS 2 that comes again without DUP is delivered once, too",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.client("c")?;
            let publish = Publish::new(t.version, &topic, "x").qos(2, 7).bytes();
            client.send(&[publish.clone(), publish.clone(), publish].concat())?;
            for _ in 0..3 {
                client.acked(first::PUBREC, 7)?;
            }
            client.send(&ack(first::PUBREL, 7))?;
            client.acked(first::PUBCOMP, 7)?;
            watcher.receives(&topic, "x")?;
            watcher.quiet()
        },
    );
    s.both(
        "4.3.3 MQTT-4.3.3-2",
        "4.3.3 MQTT-4.3.3-12",
        "an identifier is a new message behind its PUBREL",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.client("c")?;
            for payload in ["1", "2"] {
                client.send(&Publish::new(t.version, &topic, payload).qos(2, 7).bytes())?;
                client.acked(first::PUBREC, 7)?;
                client.send(&ack(first::PUBREL, 7))?;
                client.acked(first::PUBCOMP, 7)?;
                watcher.receives(&topic, payload)?;
            }
            watcher.quiet()
        },
    );
    s.both("4.3.3", "4.3.3 MQTT-4.3.3-11", "every PUBREL is answered, the second one as well", |t| {
        let mut client = t.client("c")?;
        client.send(&Publish::new(t.version, &t.topic("x"), "x").qos(2, 7).bytes())?;
        client.acked(first::PUBREC, 7)?;
        client.send(&[ack(first::PUBREL, 7), ack(first::PUBREL, 7)].concat())?;
        let known = client.acked(first::PUBCOMP, 7)?;
        let unknown = client.acked(first::PUBCOMP, 7)?;
        let wanted = if t.is_v5() { 0x92 } else { 0 };
        ensure!((known, unknown) == (0, wanted), "{known:#04x} and {unknown:#04x}");
        client.quiet()
    });
    s.both("4.3.3", "3.6.2.1", "a PUBREL for an identifier nobody knows is answered by PUBCOMP", |t| {
        let mut client = t.client("c")?;
        client.send(&ack(first::PUBREL, 4711))?;
        let reason = client.acked(first::PUBCOMP, 4711)?;
        ensure!(reason == if t.is_v5() { 0x92 } else { 0 }, "{reason:#04x}");
        client.quiet()
    });
    s.both("4.3.3", "4.3.3", "QoS 1 and QoS 2 with one identifier in turn are all delivered", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let mut client = t.client("c")?;
        for (n, qos) in [1, 2, 1, 2, 2, 1].into_iter().enumerate() {
            client.send(&Publish::new(t.version, &topic, n.to_string()).qos(qos, 7).bytes())?;
            if qos == 1 {
                client.acked(first::PUBACK, 7)?;
            } else {
                client.acked(first::PUBREC, 7)?;
                client.send(&ack(first::PUBREL, 7))?;
                client.acked(first::PUBCOMP, 7)?;
            }
            watcher.receives(&topic, n.to_string())?;
        }
        Ok(())
    });
    s.both(
        "4.3.3",
        "4.3.3 MQTT-4.3.3-13",
        "a QoS 2 message that was released is not delivered again on another connection",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let lasting = t.connector("c").lasting(60);
            let (mut client, _) = t.with("c", &lasting)?;
            let publish = Publish::new(t.version, &topic, "x").qos(2, 7);
            client.send(&publish.bytes())?;
            client.acked(first::PUBREC, 7)?;
            client.vanish()?;
            let (mut client, connack) = t.with("again", &lasting)?;
            ensure!(connack.session_present, "no session");
            client.send(&publish.dup().bytes())?;
            client.acked(first::PUBREC, 7)?;
            client.send(&ack(first::PUBREL, 7))?;
            ensure!(client.acked(first::PUBCOMP, 7)? == 0, "not known");
            watcher.receives(&topic, "x")?;
            watcher.quiet()
        },
    );
    s.both("4.3.3", "4.3.3", "PUBREL on another connection completes what the first began", |t| {
        let lasting = t.connector("c").lasting(60);
        let (mut client, _) = t.with("c", &lasting)?;
        client.send(&Publish::new(t.version, &t.topic("x"), "x").qos(2, 7).bytes())?;
        client.acked(first::PUBREC, 7)?;
        client.vanish()?;
        let (mut client, _) = t.with("again", &lasting)?;
        client.send(&ack(first::PUBREL, 7))?;
        ensure!(client.acked(first::PUBCOMP, 7)? == 0, "not known");
        client.quiet()
    });
    s.both("4.1", "4.1", "a new session knows nothing of the QoS 2 messages of the one before", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let (mut client, _) = t.with("c", &t.connector("c").lasting(60))?;
        client.send(&Publish::new(t.version, &topic, "1").qos(2, 7).bytes())?;
        client.acked(first::PUBREC, 7)?;
        client.vanish()?;
        let (mut client, _) = t.with("again", &t.connector("c"))?;
        client.send(&Publish::new(t.version, &topic, "2").qos(2, 7).bytes())?;
        client.acked(first::PUBREC, 7)?;
        client.send(&ack(first::PUBREL, 7))?;
        client.acked(first::PUBCOMP, 7)?;
        // Servers that hand on what was released never had the first.
        let published = watcher.published()?;
        if published.payload == b"1" {
            watcher.receives(&topic, "2")?;
        } else {
            ensure!(published.payload == b"2", "{published:?}");
        }
        watcher.quiet()
    });
}

/// Acknowledgements of a client: reasons and forms (MQTT-5.0 3.4 to 3.7).
fn reasons(s: &mut Suite) {
    let forms: [(u8, &str, &'static str, &[u8]); 4] = [
        (first::PUBACK, "PUBACK", "3.4.2.1", &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
        (first::PUBREC, "PUBREC", "3.5.2.1", &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
        (first::PUBREL, "PUBREL", "3.6.2.1", &[0, 0x92]),
        (first::PUBCOMP, "PUBCOMP", "3.7.2.1", &[0, 0x92]),
    ];
    for (kind, name, section, legal) in forms {
        s.v5(section, format!("{name} with a reason code it does not have is a protocol error"), move |t| {
            for reason in (0..=255).filter(|reason| !legal.contains(reason)) {
                let mut client = t.client("c")?;
                client.send(&ack_with(kind, 7, reason))?;
                client.refused(0x82).with_context(|| format!("reason {reason:#04x}"))?;
            }
            Ok(())
        });
        s.v5(section, format!("{name} with every reason code it has is taken"), move |t| {
            for &reason in legal {
                let mut client = t.client("c")?;
                client.send(&ack_with(kind, 7, reason))?;
                client.send(&packet(kind, &[&identifier(8), &[reason, 0]]))?;
                taken(&mut client, kind)?;
            }
            Ok(())
        });
    }
    for (kind, name) in [(first::PUBACK, "PUBACK"), (first::PUBREC, "PUBREC"), (first::PUBCOMP, "PUBCOMP")] {
        s.both(
            "4.3",
            "4.3",
            format!("{name} for an identifier nobody knows ends nothing"),
            move |t: &Bench| {
                let mut client = t.client("c")?;
                client.send(&ack(kind, 4711))?;
                taken(&mut client, kind)
            },
        );
    }
    s.v5("3.5.2.1", "PUBREC for an identifier nobody knows is answered by PUBREL with 0x92", |t| {
        let mut client = t.client("c")?;
        client.send(&ack(first::PUBREC, 4711))?;
        let reason = client.acked(first::PUBREL, 4711)?;
        ensure!(reason == 0x92, "{reason:#04x}");
        client.quiet()
    });
    s.v5("4.3.3", "PUBREC with a failure for an identifier nobody knows is answered by nothing", |t| {
        let mut client = t.client("c")?;
        client.send(&ack_with(first::PUBREC, 4711, 0x80))?;
        client.quiet()
    });
}

/// Nothing but the answers that such acknowledgements have comes before the PINGRESP.
fn taken(client: &mut causeway_tests::mqtt::Client, kind: u8) -> Result<()> {
    client.send(&[0xC0, 0])?;
    loop {
        let packet = client.packet()?;
        match (packet.first, kind) {
            (first::PINGRESP, _) => return Ok(()),
            (first::PUBREL, first::PUBREC) | (first::PUBCOMP, first::PUBREL) => {}
            _ => anyhow::bail!("{packet}"),
        }
    }
}
