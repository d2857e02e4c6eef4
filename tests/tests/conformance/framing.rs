//! Packets and TCP segments: a packet may come in any pieces, and many may come at once. MQTT-3.1.1 4.2,
//! MQTT-5.0 4.2.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::Client;
use causeway_tests::mqtt::property::{self, id};
use causeway_tests::mqtt::wire::{
    DISCONNECT, PINGREQ, Publish, Will, ack, ack_with, first, subscribe, unsubscribe,
};

use crate::suite::{Bench, Suite};

/// Long enough that the first part is read alone almost always.
const APART: Duration = Duration::from_millis(3);

/// Sends `bytes` once for each boundary, in two parts; `prepare` makes the connection, `check` looks at what
/// follows.
fn everywhere(
    bytes: &[u8],
    mut prepare: impl FnMut() -> Result<Client>,
    mut check: impl FnMut(&mut Client) -> Result<()>,
) -> Result<()> {
    for at in 1..bytes.len() {
        let mut client = prepare()?;
        let (front, rest) = bytes.split_at(at);
        client.send(front)?;
        std::thread::sleep(APART);
        client.send(rest)?;
        check(&mut client).with_context(|| format!("cut at byte {at} of {}", bytes.len()))?;
    }
    // One byte at a time.
    let mut client = prepare()?;
    for byte in bytes {
        client.send(&[*byte])?;
        std::thread::sleep(Duration::from_millis(1));
    }
    check(&mut client).context("one byte at a time")
}

/// A name for one of many connections.
fn numbered(count: &mut usize, name: &str) -> String {
    *count += 1;
    format!("{name}{count}")
}

pub(crate) fn cases(s: &mut Suite) {
    fragments(s);
    together(s);
}

fn fragments(s: &mut Suite) {
    s.both("4.2", "4.2", "CONNECT cut at every byte", |t| {
        let topic = t.topic("w");
        let connect = t.connector("c").will(Will::new(&topic, "will")).login(Some("user"), Some(b"pass"));
        let connect = if t.is_v5() {
            connect.with(property::user("name", "value")).with(property::two(id::RECEIVE_MAXIMUM, 9))
        } else {
            connect
        };
        everywhere(
            &connect.bytes(),
            || t.open("c"),
            |client| {
                let connack = client.connack()?;
                ensure!(connack.reason == 0, "{connack:?}");
                client.quiet()?;
                client.send(&DISCONNECT)?;
                client.closed()
            },
        )
    });
    for qos in 0..3_u8 {
        s.both("4.2", "4.2", format!("PUBLISH of QoS {qos} cut at every byte"), move |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let publish = Publish::new(t.version, &topic, "payload").qos(qos, 300);
            let publish = if t.is_v5() { publish.with(property::user("a", "b")) } else { publish };
            let mut count = 0;
            everywhere(
                &publish.bytes(),
                || t.client(&numbered(&mut count, "c")),
                |client| {
                    match qos {
                        0 => {}
                        1 => drop(client.acked(first::PUBACK, 300)?),
                        _ => {
                            client.acked(first::PUBREC, 300)?;
                            client.send(&ack(first::PUBREL, 300))?;
                            client.acked(first::PUBCOMP, 300)?;
                        }
                    }
                    watcher.receives(&topic, "payload")?;
                    client.quiet()
                },
            )?;
            watcher.quiet()
        });
    }
    s.both("4.2", "4.2", "SUBSCRIBE cut at every byte", |t| {
        let bytes = subscribe(t.version, 300, &[(&t.topic("x"), 1), (&t.topic("/+/é"), 2)]);
        let mut count = 0;
        everywhere(
            &bytes,
            || t.client(&numbered(&mut count, "c")),
            |client| {
                ensure!(client.suback(300)?.reasons == [1, 2], "other codes");
                client.quiet()
            },
        )
    });
    s.both("4.2", "4.2", "UNSUBSCRIBE cut at every byte", |t| {
        let topic = t.topic("x");
        let bytes = unsubscribe(t.version, 300, &[&topic, &t.topic("y")]);
        let mut count = 0;
        everywhere(
            &bytes,
            || t.subscriber(&numbered(&mut count, "c"), &topic, 0),
            |client| {
                ensure!(client.packet()?.unsuback(t.version)?.packet_identifier == 300, "another identifier");
                client.quiet()
            },
        )
    });
    s.both("4.2", "4.2", "PUBREL cut at every byte", |t| {
        let bytes = if t.is_v5() { ack_with(first::PUBREL, 300, 0) } else { ack(first::PUBREL, 300) };
        let mut count = 0;
        everywhere(
            &bytes,
            || {
                let mut client = t.client(&numbered(&mut count, "c"))?;
                client.send(&Publish::new(t.version, &t.topic("x"), "x").qos(2, 300).bytes())?;
                client.acked(first::PUBREC, 300)?;
                Ok(client)
            },
            |client| {
                ensure!(client.acked(first::PUBCOMP, 300)? == 0, "not known");
                client.quiet()
            },
        )
    });
    for (kind, name, qos) in
        [(first::PUBACK, "PUBACK", 1), (first::PUBREC, "PUBREC", 2), (first::PUBCOMP, "PUBCOMP", 2)]
    {
        s.both("4.2", "4.2", format!("{name} cut at every byte"), move |t| {
            // The first delivery of a session has the identifier 1 or any other; all are cut in the same
            // places.
            for at in 1..=3 {
                let topic = t.topic(&format!("x{at}"));
                let mut client = t.subscriber(&format!("c{at}"), &topic, qos)?;
                t.client(&format!("o{at}"))?.publish(&topic, "x", qos)?;
                let number = client.receives(&topic, "x")?.packet_identifier;
                if kind == first::PUBCOMP {
                    client.send(&ack(first::PUBREC, number))?;
                    client.acked(first::PUBREL, number)?;
                }
                let bytes = ack(kind, number);
                client.send(&bytes[..at])?;
                std::thread::sleep(APART);
                client.send(&bytes[at..])?;
                if kind == first::PUBREC {
                    client.acked(first::PUBREL, number)?;
                }
                client.quiet()?;
            }
            Ok(())
        });
    }
    s.both("4.2", "4.2", "PINGREQ and DISCONNECT cut in the middle", |t| {
        let mut client = t.client("c")?;
        for _ in 0..3 {
            client.send(&PINGREQ[..1])?;
            std::thread::sleep(APART);
            client.send(&PINGREQ[1..])?;
            client.expect(&[0xD0, 0])?;
        }
        client.send(&DISCONNECT[..1])?;
        std::thread::sleep(APART);
        client.send(&DISCONNECT[1..])?;
        client.closed()
    });
    s.both("4.2", "4.2", "a remaining length cut between its bytes", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let payload = vec![b'x'; 20_000];
        let bytes = Publish::new(t.version, &topic, &payload).bytes();
        let mut client = t.client("c")?;
        for at in 1..5 {
            client.send(&bytes[..at])?;
            std::thread::sleep(APART);
            client.send(&bytes[at..])?;
            watcher.receives(&topic, &payload)?;
        }
        Ok(())
    });
    s.both("4.2", "4.2", "an illegal packet cut at every byte is refused all the same", |t| {
        // A packet identifier of 0.
        let bytes = subscribe(t.version, 0, &[("a", 0)]);
        let mut count = 0;
        everywhere(&bytes, || t.client(&numbered(&mut count, "c")), |client| client.refused(0x82))
    });
    s.both("4.2", "4.2", "two clients whose packets come byte by byte in turn do not meet", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let (mut a, mut b) = (t.client("a")?, t.client("b")?);
        let ours = Publish::new(t.version, &topic, "from a").bytes();
        let theirs = Publish::new(t.version, &topic, "from b").bytes();
        for (one, other) in ours.iter().zip(&theirs) {
            a.send(&[*one])?;
            b.send(&[*other])?;
        }
        let mut got = vec![watcher.published()?.payload, watcher.published()?.payload];
        got.sort();
        ensure!(got == [b"from a", b"from b"], "{got:?}");
        Ok(())
    });
}

fn together(s: &mut Suite) {
    s.both("4.2", "4.2", "a whole conversation in one segment", |t: &Bench| {
        let topic = t.topic("x");
        let mut client = t.open("c")?;
        let all = [
            t.connector("c").bytes(),
            subscribe(t.version, 1, &[(&t.topic("other"), 1)]),
            Publish::new(t.version, &topic, "1").qos(1, 2).bytes(),
            Publish::new(t.version, &topic, "2").qos(2, 3).bytes(),
            ack(first::PUBREL, 3),
            unsubscribe(t.version, 4, &[&t.topic("other")]),
            PINGREQ.to_vec(),
        ];
        client.send(&all.concat())?;
        ensure!(client.connack()?.reason == 0, "not connected");
        // Acknowledgements of publications may wait for others; every answer comes, each once.
        let mut got = Vec::new();
        for _ in 0..6 {
            got.push(client.packet()?.first);
        }
        got.sort_unstable();
        let mut wanted = vec![
            first::SUBACK,
            first::PUBACK,
            first::PUBREC,
            first::PUBCOMP,
            first::UNSUBACK,
            first::PINGRESP,
        ];
        wanted.sort_unstable();
        ensure!(got == wanted, "{got:02x?}");
        client.quiet()
    });
    s.both("4.2", "4.2", "ten thousand packets at once, in order", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let mut client = t.client("c")?;
        for chunk in 0..10 {
            let all: Vec<u8> = (0..1000)
                .flat_map(|n| Publish::new(t.version, &topic, (chunk * 1000 + n).to_string()).bytes())
                .collect();
            client.send(&all)?;
            for n in 0..1000 {
                watcher.receives(&topic, (chunk * 1000 + n).to_string())?;
            }
        }
        client.quiet()
    });
    s.both("4.2", "4.2", "a large packet in many segments between small ones", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let mut client = t.client("c")?;
        let payload: Vec<u8> = (0..400_000_u32).map(|n| (n % 251) as u8).collect();
        let large = Publish::new(t.version, &topic, &payload).bytes();
        let small = Publish::new(t.version, &topic, "small").bytes();
        let all = [&small[..], &large, &small].concat();
        for piece in all.chunks(50_000) {
            client.send(piece)?;
        }
        watcher.receives(&topic, "small")?;
        watcher.receives(&topic, &payload)?;
        watcher.receives(&topic, "small")?;
        Ok(())
    });
    s.both("4.2", "4.2", "a packet and half of the next in each segment", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let mut client = t.client("c")?;
        let all: Vec<u8> =
            (0..50).flat_map(|n| Publish::new(t.version, &topic, n.to_string()).bytes()).collect();
        let length = Publish::new(t.version, &topic, "0").bytes().len();
        for piece in all.chunks(length + length / 2) {
            client.send(piece)?;
            std::thread::sleep(Duration::from_millis(1));
        }
        for n in 0..50 {
            watcher.receives(&topic, n.to_string())?;
        }
        Ok(())
    });
}
