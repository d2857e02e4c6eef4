//! Deliveries: QoS flows from server to client, flow control, delivery again, order, maximum packet size.
//! MQTT-3.1.1 4.3 to 4.6, MQTT-5.0 4.3, 4.4, 4.6, 4.9 and 3.1.2.11.

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::Client;
use causeway_tests::mqtt::property::{self, Properties, id};
use causeway_tests::mqtt::wire::{Publish, Published, ack, ack_with, first};

use crate::suite::{Bench, Suite};

pub(crate) fn cases(s: &mut Suite) {
    flows(s);
    again(s);
    window(s);
    order(s);
    sizes(s);
    to_the_server(s);
}

fn flows(s: &mut Suite) {
    s.both(
        "4.3.1 MQTT-4.3.1-1",
        "4.3.1 MQTT-4.3.1-1",
        "QoS 0 is delivered without identifier and acknowledgement",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let publish = Publish::new(t.version, &topic, "x").bytes();
            t.client("c")?.send(&publish)?;
            watcher.expect(&publish)?;
            watcher.quiet()
        },
    );
    s.both(
        "4.3.2 MQTT-4.3.2-1",
        "4.3.2 MQTT-4.3.2-1",
        "QoS 1 is delivered with an identifier and DUP 0",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 1)?;
            t.client("c")?.publish(&topic, "x", 1)?;
            let published = watcher.receives(&topic, "x")?;
            ensure!(published.qos == 1 && !published.dup, "{published:?}");
            watcher.acknowledge(&published)?;
            watcher.quiet()
        },
    );
    s.both(
        "4.3.3 MQTT-4.3.3-1",
        "4.3.3 MQTT-4.3.3-1",
        "QoS 2 is delivered by PUBLISH, PUBREC, PUBREL, PUBCOMP",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 2)?;
            t.client("c")?.publish(&topic, "x", 2)?;
            let published = watcher.receives(&topic, "x")?;
            ensure!(published.qos == 2 && !published.dup, "{published:?}");
            let number = published.packet_identifier;
            watcher.send(&ack(first::PUBREC, number))?;
            watcher.expect(&ack(first::PUBREL, number))?;
            watcher.send(&ack(first::PUBCOMP, number))?;
            watcher.quiet()
        },
    );
    s.both(
        "4.3.3 MQTT-4.3.3-1",
        "4.3.3 MQTT-4.3.3-4",
        "a PUBREC that comes again is answered by PUBREL again",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 2)?;
            t.client("c")?.publish(&topic, "x", 2)?;
            let number = watcher.receives(&topic, "x")?.packet_identifier;
            for _ in 0..3 {
                watcher.send(&ack(first::PUBREC, number))?;
                let reason = watcher.acked(first::PUBREL, number)?;
                ensure!(reason == 0, "{reason:#04x}");
            }
            watcher.send(&ack(first::PUBCOMP, number))?;
            watcher.quiet()
        },
    );
    s.v5(
        "4.3.3 MQTT-4.3.3-4",
        "a PUBREC with a failure ends the delivery: no PUBREL, the identifier is free",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 2)?;
            let mut client = t.client("c")?;
            for reason in [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99] {
                client.publish(&topic, "x", 2)?;
                let published = watcher.receives(&topic, "x")?;
                watcher.send(&ack_with(first::PUBREC, published.packet_identifier, reason))?;
                watcher.quiet()?;
            }
            Ok(())
        },
    );
    s.v5("4.3.3", "a PUBREC with 0x10 goes on with the delivery", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 2)?;
        t.client("c")?.publish(&topic, "x", 2)?;
        let number = watcher.receives(&topic, "x")?.packet_identifier;
        watcher.send(&ack_with(first::PUBREC, number, 0x10))?;
        watcher.acked(first::PUBREL, number)?;
        watcher.send(&ack(first::PUBCOMP, number))?;
        watcher.quiet()
    });
    s.v5("4.3.2", "a PUBACK with a failure ends the delivery for good", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("watcher").lasting(60);
        let (mut watcher, _) = t.with("watcher", &lasting)?;
        watcher.subscribe(&topic, 1)?;
        t.client("c")?.publish(&topic, "x", 1)?;
        let number = watcher.receives(&topic, "x")?.packet_identifier;
        watcher.send(&ack_with(first::PUBACK, number, 0x97))?;
        watcher.quiet()?;
        watcher.disconnect()?;
        t.with("again", &lasting)?.0.quiet()
    });
    for (kind, name, qos) in [
        (first::PUBACK, "PUBACK for a QoS 2 delivery", 2),
        (first::PUBREC, "PUBREC for a QoS 1 delivery", 1),
        (first::PUBCOMP, "PUBCOMP for a QoS 1 delivery", 1),
        (first::PUBCOMP, "PUBCOMP before PUBREC", 2),
    ] {
        s.both("4.3", "4.3", format!("{name} breaks the protocol, and ends no delivery"), move |t| {
            let topic = t.topic("x");
            let lasting = t.connector("watcher").lasting(60);
            let (mut watcher, _) = t.with("watcher", &lasting)?;
            watcher.subscribe(&topic, 2)?;
            t.client("c")?.publish(&topic, "x", qos)?;
            let number = watcher.receives(&topic, "x")?.packet_identifier;
            watcher.send(&ack(kind, number))?;
            watcher.refused(0x82)?;
            let (mut watcher, _) = t.with("again", &lasting)?;
            let published = watcher.receives(&topic, "x")?;
            ensure!(published.dup && published.packet_identifier == number, "{published:?}");
            watcher.acknowledge(&published)?;
            watcher.quiet()
        });
    }
    s.both(
        "2.3.1 MQTT-2.3.1-4",
        "2.2.1 MQTT-2.2.1-4",
        "deliveries under way have different identifiers",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 2)?;
            let mut client = t.client("c")?;
            let mut seen = std::collections::BTreeSet::new();
            for n in 0..20 {
                client.publish(&topic, "x", 1 + n % 2)?;
                ensure!(seen.insert(watcher.receives(&topic, "x")?.packet_identifier), "twice");
            }
            Ok(())
        },
    );
    s.both("4.3", "4.3", "identifiers of both directions are apart", |t| {
        let topic = t.topic("x");
        let mut client = t.subscriber("c", &topic, 1)?;
        for number in 1..=5 {
            client.send(&Publish::new(t.version, &topic, "own").qos(1, number).bytes())?;
        }
        let (mut acks, mut deliveries) = (0, 0);
        while acks < 5 || deliveries < 5 {
            let packet = client.packet()?;
            if packet.first == first::PUBACK {
                acks += 1;
            } else {
                let published = packet.publish(t.version)?;
                client.send(&ack(first::PUBACK, published.packet_identifier))?;
                deliveries += 1;
            }
        }
        client.quiet()
    });
}

/// Messages in flight when the connection goes (MQTT-3.1.1 4.4, MQTT-5.0 4.4).
fn again(s: &mut Suite) {
    let lasting = |t: &Bench| t.connector("watcher").lasting(60);
    for qos in 1..3_u8 {
        s.both(
            "4.4 MQTT-4.4.0-1",
            "4.4 MQTT-4.4.0-1",
            format!("QoS {qos} without an answer comes again with DUP and its identifier"),
            move |t| {
                let topic = t.topic("x");
                let (mut watcher, _) = t.with("watcher", &lasting(t))?;
                watcher.subscribe(&topic, qos)?;
                t.client("c")?.publish(&topic, "x", qos)?;
                let before = watcher.receives(&topic, "x")?;
                for _ in 0..3 {
                    watcher.vanish()?;
                    watcher = t.with("again", &lasting(t))?.0;
                    let published = watcher.receives(&topic, "x")?;
                    ensure!(published.dup && published.qos == qos, "{published:?}");
                    ensure!(published.packet_identifier == before.packet_identifier, "{published:?}");
                }
                let published = Published { dup: true, ..before };
                watcher.acknowledge(&published)?;
                watcher.quiet()?;
                watcher.disconnect()?;
                t.with("last", &lasting(t))?.0.quiet()
            },
        );
    }
    s.both(
        "4.4 MQTT-4.4.0-1",
        "4.4 MQTT-4.4.0-1",
        "PUBREL without an answer comes again, the PUBLISH does not",
        move |t| {
            let topic = t.topic("x");
            let (mut watcher, _) = t.with("watcher", &lasting(t))?;
            watcher.subscribe(&topic, 2)?;
            t.client("c")?.publish(&topic, "x", 2)?;
            let number = watcher.receives(&topic, "x")?.packet_identifier;
            watcher.send(&ack(first::PUBREC, number))?;
            watcher.acked(first::PUBREL, number)?;
            watcher.vanish()?;
            let (mut watcher, _) = t.with("again", &lasting(t))?;
            watcher.expect(&ack(first::PUBREL, number))?;
            watcher.send(&ack(first::PUBCOMP, number))?;
            watcher.quiet()?;
            watcher.disconnect()?;
            t.with("last", &lasting(t))?.0.quiet()
        },
    );
    s.both(
        "4.4 MQTT-4.4.0-1",
        "4.4 MQTT-4.4.0-1",
        "nothing is sent again while the connection lives, after seconds",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 2)?;
            let mut client = t.client("c")?;
            client.publish(&topic, "1", 1)?;
            client.publish(&topic, "2", 2)?;
            watcher.receives(&topic, "1")?;
            watcher.receives(&topic, "2")?;
            std::thread::sleep(std::time::Duration::from_secs(3));
            watcher.quiet()
        },
    );
    s.both("4.4", "4.4", "what comes again keeps its order and comes before what is new", move |t| {
        let topic = t.topic("x");
        let (mut watcher, _) = t.with("watcher", &lasting(t))?;
        watcher.subscribe(&topic, 2)?;
        let mut client = t.client("c")?;
        for n in 0..10 {
            client.publish(&topic, n.to_string(), 1 + n % 2)?;
        }
        let mut numbers = Vec::new();
        for n in 0..10 {
            numbers.push(watcher.receives(&topic, n.to_string())?.packet_identifier);
        }
        // 3 is done, 4 is QoS 1 and done; 5 is released.
        watcher.send(&ack(first::PUBACK, numbers[4]))?;
        watcher.send(&ack(first::PUBREC, numbers[5]))?;
        watcher.acked(first::PUBREL, numbers[5])?;
        watcher.vanish()?;
        client.publish(&topic, "new", 1)?;
        let (mut watcher, _) = t.with("again", &lasting(t))?;
        for n in (0..10).filter(|n| *n != 4) {
            if n == 5 {
                watcher.expect(&ack(first::PUBREL, numbers[5]))?;
                continue;
            }
            let published = watcher.receives(&topic, n.to_string())?;
            ensure!(published.dup && published.packet_identifier == numbers[n], "{published:?}");
        }
        let published = watcher.receives(&topic, "new")?;
        ensure!(!published.dup, "{published:?}");
        Ok(())
    });
    s.both("4.4", "4.4", "a clean start gets nothing again", move |t| {
        let topic = t.topic("x");
        let (mut watcher, _) = t.with("watcher", &lasting(t))?;
        watcher.subscribe(&topic, 1)?;
        t.client("c")?.publish(&topic, "x", 1)?;
        watcher.receives(&topic, "x")?;
        watcher.vanish()?;
        t.with("again", &t.connector("watcher"))?.0.quiet()
    });
}

/// The receive maximum of a client (MQTT-5.0 3.1.2.11.3, 4.9).
fn window(s: &mut Suite) {
    fn limited(t: &Bench, maximum: u16, qos: u8) -> Result<Client> {
        let connect = t.connector("watcher").with(property::two(id::RECEIVE_MAXIMUM, maximum));
        let (mut watcher, _) = t.with("watcher", &connect)?;
        watcher.subscribe(&t.topic("x"), qos)?;
        Ok(watcher)
    }
    for qos in 1..3_u8 {
        s.v5(
            "4.9 MQTT-4.9.0-2",
            format!("a client with receive maximum 2 never has more of QoS {qos} unanswered"),
            move |t| {
                let mut watcher = limited(t, 2, qos)?;
                let mut client = t.client("c")?;
                for n in 0..7 {
                    client.publish(&t.topic("x"), n.to_string(), qos)?;
                }
                let mut open = std::collections::VecDeque::new();
                let mut next = 0;
                while next < 7 {
                    while open.len() < 2 && next < 7 {
                        open.push_back(watcher.receives(&t.topic("x"), next.to_string())?);
                        next += 1;
                    }
                    watcher.quiet()?;
                    let published: Published = open.pop_front().context("one is open")?;
                    let number = published.packet_identifier;
                    if qos == 1 {
                        watcher.send(&ack(first::PUBACK, number))?;
                        continue;
                    }
                    watcher.send(&ack(first::PUBREC, number))?;
                    watcher.acked(first::PUBREL, number)?;
                    // Only PUBCOMP makes room (MQTT-5.0 4.9).
                    watcher.quiet()?;
                    watcher.send(&ack(first::PUBCOMP, number))?;
                }
                Ok(())
            },
        );
    }
    s.v5("4.9 MQTT-4.9.0-3", "QoS 0 passes a full receive maximum", |t| {
        let mut watcher = limited(t, 1, 1)?;
        let mut client = t.client("c")?;
        client.publish(&t.topic("x"), "1", 1)?;
        client.publish(&t.topic("x"), "2", 1)?;
        client.publish(&t.topic("x"), "0", 0)?;
        let published = watcher.receives(&t.topic("x"), "1")?;
        watcher.receives(&t.topic("x"), "0")?;
        watcher.quiet()?;
        watcher.acknowledge(&published)?;
        watcher.receives(&t.topic("x"), "2")?;
        Ok(())
    });
    s.v5("4.9", "a PUBREC with a failure makes room", |t| {
        let mut watcher = limited(t, 1, 2)?;
        let mut client = t.client("c")?;
        client.publish(&t.topic("x"), "1", 2)?;
        client.publish(&t.topic("x"), "2", 2)?;
        let published = watcher.receives(&t.topic("x"), "1")?;
        watcher.send(&ack_with(first::PUBREC, published.packet_identifier, 0x80))?;
        watcher.receives(&t.topic("x"), "2")?;
        Ok(())
    });
    s.v5("4.9", "with receive maximum 1 messages come one by one, in order", |t| {
        let mut watcher = limited(t, 1, 2)?;
        let mut client = t.client("c")?;
        for n in 0..12 {
            client.publish(&t.topic("x"), n.to_string(), 1 + n % 2)?;
        }
        for n in 0..12 {
            let published = watcher.receives(&t.topic("x"), n.to_string())?;
            watcher.quiet()?;
            watcher.acknowledge(&published)?;
        }
        watcher.quiet()
    });
    s.v5("4.9", "a receive maximum counts for the connection that named it", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("watcher").lasting(60);
        let (mut watcher, _) =
            t.with("watcher", &lasting.clone().with(property::two(id::RECEIVE_MAXIMUM, 1)))?;
        watcher.subscribe(&topic, 1)?;
        let mut client = t.client("c")?;
        for n in 0..4 {
            client.publish(&topic, n.to_string(), 1)?;
        }
        watcher.receives(&topic, "0")?;
        watcher.quiet()?;
        watcher.vanish()?;
        let (mut watcher, _) = t.with("again", &lasting.with(property::two(id::RECEIVE_MAXIMUM, 3)))?;
        for n in 0..3 {
            watcher.receives(&topic, n.to_string())?;
        }
        watcher.quiet()
    });
    s.v5("4.9", "acknowledgements that come again or for nothing do not widen the receive maximum", |t| {
        let mut watcher = limited(t, 1, 1)?;
        let mut client = t.client("c")?;
        for n in 0..4 {
            client.publish(&t.topic("x"), n.to_string(), 1)?;
        }
        let first_one = watcher.receives(&t.topic("x"), "0")?;
        watcher.send(&ack(first::PUBACK, 999))?;
        watcher.quiet()?;
        watcher.acknowledge(&first_one)?;
        watcher.receives(&t.topic("x"), "1")?;
        watcher.acknowledge(&first_one)?;
        watcher.acknowledge(&first_one)?;
        watcher.quiet()
    });
}

/// MQTT-3.1.1 4.6, MQTT-5.0 4.6.
fn order(s: &mut Suite) {
    for qos in 0..3_u8 {
        s.both(
            "4.6 MQTT-4.6.0-6",
            "4.6 MQTT-4.6.0-6",
            format!("many messages of QoS {qos} in one segment arrive in order"),
            move |t| {
                // Fewer where nothing is answered: servers have windows.
                let count: u16 = if qos == 2 { 20 } else { 100 };
                let topic = t.topic("x");
                let mut watcher = t.subscriber("watcher", &topic, qos)?;
                let mut client = t.client("c")?;
                let all: Vec<u8> = (1..=count)
                    .flat_map(|n| Publish::new(t.version, &topic, n.to_string()).qos(qos, n).bytes())
                    .collect();
                client.send(&all)?;
                if qos == 2 {
                    // Some servers hand on what was released.
                    for n in 1..=count {
                        client.acked(first::PUBREC, n)?;
                    }
                    client.send(&(1..=count).flat_map(|n| ack(first::PUBREL, n)).collect::<Vec<u8>>())?;
                }
                for n in 1..=count {
                    let published = watcher.receives(&topic, n.to_string())?;
                    if qos == 1 {
                        watcher.send(&ack(first::PUBACK, published.packet_identifier))?;
                    }
                }
                Ok(())
            },
        );
    }
    s.both(
        "4.6",
        "4.6",
        "messages of one publisher to several topics keep their order for one who gets all",
        |t| {
            let mut watcher = t.subscriber("watcher", &t.topic("/#"), 1)?;
            let mut client = t.client("c")?;
            let all: Vec<u8> = (0..60)
                .flat_map(|n| {
                    Publish::new(t.version, &t.topic(&format!("/{}", n % 7)), n.to_string()).bytes()
                })
                .collect();
            client.send(&all)?;
            for n in 0..60 {
                watcher.receives(&t.topic(&format!("/{}", n % 7)), n.to_string())?;
            }
            Ok(())
        },
    );
    s.both("4.6", "4.6", "every subscriber sees the same order", |t| {
        let topic = t.topic("x");
        let mut watchers = Vec::new();
        for n in 0..4 {
            watchers.push(t.subscriber(&format!("w{n}"), &topic, 0)?);
        }
        let mut client = t.client("c")?;
        for n in 0..50 {
            client.send(&Publish::new(t.version, &topic, n.to_string()).bytes())?;
        }
        for watcher in &mut watchers {
            for n in 0..50 {
                watcher.receives(&topic, n.to_string())?;
            }
        }
        Ok(())
    });
}

/// Maximum packet size (MQTT-5.0 3.1.2.11.4, 3.2.2.3.6).
fn sizes(s: &mut Suite) {
    s.v5(
        "3.1.2.11.4 MQTT-3.1.2-24 MQTT-3.1.2-25",
        "a packet larger than the client takes is left out, as if sent",
        |t| {
            let topic = t.topic("x");
            let connect = t.connector("watcher").with(property::four(id::MAXIMUM_PACKET_SIZE, 100));
            let (mut watcher, _) = t.with("watcher", &connect)?;
            watcher.subscribe(&topic, 1)?;
            let mut client = t.client("c")?;
            client.publish(&topic, vec![b'x'; 200], 1)?;
            client.publish(&topic, vec![b'x'; 200], 0)?;
            client.publish(&topic, "small", 1)?;
            let published = watcher.receives(&topic, "small")?;
            watcher.acknowledge(&published)?;
            watcher.quiet()
        },
    );
    s.v5(
        "3.1.2.11.4 MQTT-3.1.2-24",
        "a packet exactly as large as the client takes arrives, one byte more does not",
        |t| {
            let topic = t.topic("x");
            let connect = t.connector("watcher").with(property::four(id::MAXIMUM_PACKET_SIZE, 120));
            let (mut watcher, _) = t.with("watcher", &connect)?;
            watcher.subscribe(&topic, 0)?;
            let mut client = t.client("c")?;
            let empty = Publish::new(t.version, &topic, "").bytes().len();
            let fits = Publish::new(t.version, &topic, vec![b'f'; 120 - empty]).bytes();
            ensure!(fits.len() == 120, "the suite counts wrongly");
            client.send(&Publish::new(t.version, &topic, vec![b'f'; 121 - empty]).bytes())?;
            client.send(&fits)?;
            watcher.expect(&fits)?;
            watcher.quiet()
        },
    );
    s.v5("3.1.2.11.4", "a message too large for one client reaches the others", |t| {
        let topic = t.topic("x");
        let connect = t.connector("watcher").with(property::four(id::MAXIMUM_PACKET_SIZE, 100));
        let (mut small, _) = t.with("small", &connect)?;
        small.subscribe(&topic, 0)?;
        let mut large = t.subscriber("large", &topic, 0)?;
        t.client("c")?.publish(&topic, vec![b'x'; 200], 0)?;
        large.receives(&topic, vec![b'x'; 200])?;
        small.quiet()
    });
    s.v5("3.2.2.3.6", "a packet larger than the server takes is refused with 0x95 before it is there", |t| {
        let (mut client, connack) = t.with("c", &t.connector("c"))?;
        let Some(maximum) = connack.properties.number(id::MAXIMUM_PACKET_SIZE) else { return Ok(()) };
        let mut header = vec![first::PUBLISH];
        header.extend(causeway_tests::mqtt::wire::variable_byte_integer(maximum));
        client.send(&header)?;
        client.refused(0x95)
    });
    s.v5("3.2.2.3.6", "a packet as large as the server takes is taken", |t| {
        let topic = t.topic("x");
        let (mut client, connack) = t.with("c", &t.connector("c"))?;
        let maximum = connack.properties.number(id::MAXIMUM_PACKET_SIZE).unwrap_or(1 << 20) as usize;
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let around = Publish::new(t.version, &topic, vec![0; 1 << 19]).bytes().len() - (1 << 19);
        let payload = vec![b'x'; maximum - around];
        let publish = Publish::new(t.version, &topic, &payload).bytes();
        ensure!(publish.len() == maximum, "the suite counts wrongly: {} and {maximum}", publish.len());
        client.send(&publish)?;
        watcher.receives(&topic, &payload)?;
        client.quiet()
    });
}

/// The server's own receive maximum (MQTT-5.0 3.2.2.3.3).
fn to_the_server(s: &mut Suite) {
    s.v5(
        "4.9 MQTT-4.9.0-1",
        "as many QoS 2 messages as the server's receive maximum may be unreleased",
        |t| {
            let (mut client, connack) = t.with("c", &t.connector("c"))?;
            let maximum = connack.properties.number(id::RECEIVE_MAXIMUM).unwrap_or(65_535).min(5000) as u16;
            let topic = t.topic("x");
            let all: Vec<u8> =
                (1..=maximum).flat_map(|n| Publish::new(t.version, &topic, "x").qos(2, n).bytes()).collect();
            client.send(&all)?;
            for n in 1..=maximum {
                client.acked(first::PUBREC, n)?;
            }
            client.quiet()
        },
    );
    s.v5("4.9", "one more than the server's receive maximum is refused with 0x93", |t| {
        let (mut client, connack) = t.with("c", &t.connector("c"))?;
        let maximum = connack.properties.number(id::RECEIVE_MAXIMUM).unwrap_or(65_535) as u16;
        if maximum > 5000 {
            return Ok(());
        }
        let topic = t.topic("x");
        for n in 1..=maximum {
            client.send(&Publish::new(t.version, &topic, "x").qos(2, n).bytes())?;
        }
        for n in 1..=maximum {
            client.acked(first::PUBREC, n)?;
        }
        client.send(&Publish::new(t.version, &topic, "x").qos(2, maximum + 1).bytes())?;
        client.refused(0x93)
    });
    s.v5("4.9", "PUBCOMP makes room in the server's receive maximum", |t| {
        let (mut client, connack) = t.with("c", &t.connector("c"))?;
        let maximum = connack.properties.number(id::RECEIVE_MAXIMUM).unwrap_or(65_535).min(5000) as u16;
        let topic = t.topic("x");
        for n in 1..=maximum {
            client.send(&Publish::new(t.version, &topic, "x").qos(2, n).bytes())?;
        }
        for n in 1..=maximum {
            client.acked(first::PUBREC, n)?;
        }
        client.send(&ack(first::PUBREL, 1))?;
        client.acked(first::PUBCOMP, 1)?;
        client.send(&Publish::new(t.version, &topic, "x").qos(2, 1).bytes())?;
        client.acked(first::PUBREC, 1)?;
        client.quiet()
    });
    s.v5("4.9", "a QoS 2 message that comes again does not count twice", |t| {
        let (mut client, connack) = t.with("c", &t.connector("c"))?;
        let maximum = connack.properties.number(id::RECEIVE_MAXIMUM).unwrap_or(65_535).min(5000) as u16;
        let topic = t.topic("x");
        for n in 1..=maximum {
            client.send(&Publish::new(t.version, &topic, "x").qos(2, n).bytes())?;
        }
        for n in 1..=maximum {
            client.acked(first::PUBREC, n)?;
        }
        client.send(&Publish::new(t.version, &topic, "x").qos(2, 1).dup().bytes())?;
        client.acked(first::PUBREC, 1)?;
        client.quiet()
    });
}
