//! MQTT 3.1, "MQIsdp": what differs from 3.1.1, and the same flows once more.

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::wire::{
    Connect, DISCONNECT, PINGREQ, Publish, Will, ack, first, packet, subscribe, text, unsubscribe,
};

use crate::suite::{Bench, Suite};

fn refused(t: &Bench, bytes: &[u8]) -> Result<()> {
    let mut client = t.client("c")?;
    client.send(bytes)?;
    client.closed()
}

pub(crate) fn cases(s: &mut Suite) {
    connect(s);
    unused_flags(s);
    packets(s);
    flows(s);
}

fn connect(s: &mut Suite) {
    s.v3("3.1", "MQIsdp with level 3 is connected: CONNACK is exactly 20 02 00 00", |t| {
        let mut client = t.open("c")?;
        client.send(&t.connector("c").bytes())?;
        client.expect(&[0x20, 2, 0, 0])
    });
    s.v3("3.2", "the first byte of CONNACK is not used: no session present", |t| {
        let lasting = t.connector("c").clean(false);
        t.with("c", &lasting)?.0.disconnect()?;
        let mut client = t.open("again")?;
        client.send(&lasting.bytes())?;
        client.expect(&[0x20, 2, 0, 0])
    });
    s.v3("3.1", "MQIsdp with another level is answered with 1", |t| {
        for level in [0, 1, 2, 4, 5, 6, 255] {
            let mut client = t.open("c")?;
            client.send(&Connect { level, ..t.connector("c") }.bytes())?;
            client.expect(&[0x20, 2, 0, 1])?;
            client.closed()?;
        }
        Ok(())
    });
    s.v3("3.1", "an empty client identifier is refused with 2, clean or not", |t| {
        for clean in [true, false] {
            let mut client = t.open("c")?;
            client.send(&Connect::new(t.version, "").clean(clean).bytes())?;
            client.expect(&[0x20, 2, 0, 2])?;
            client.closed()?;
        }
        Ok(())
    });
    s.v3("3.1", "a client identifier of more than 23 characters is allowed, as later versions do", |t| {
        t.with("c", &Connect::new(t.version, &t.id(&"x".repeat(60))))?.0.quiet()
    });
    s.v3("3.1", "will QoS and will retain without a will are disregarded", |t| {
        t.with("c", &t.connector("c").flip(0b0011_0000))?.0.quiet()
    });
    s.v3("3.1", "user name and password may be missing although their flags are set", |t| {
        t.with("c", &t.connector("c").flip(0b1100_0000))?.0.quiet()?;
        t.with("d", &t.connector("d").login(Some("user"), None).flip(0b0100_0000))?.0.quiet()
    });
    s.v3("3.1", "user name and password are taken", |t| {
        t.with("c", &t.connector("c").login(Some("user"), Some(b"password")))?.0.quiet()
    });
    s.v3("3.1", "a second CONNECT ends the connection", |t| refused(t, &t.connector("c").bytes()));
    s.v3("3.1", "a will is published when the connection just ends", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 1)?;
        t.with("c", &t.connector("c").will(Will { qos: 1, ..Will::new(&topic, "gone") }))?.0.vanish()?;
        watcher.receives(&topic, "gone")?;
        Ok(())
    });
    s.v3("3.14", "a DISCONNECT takes the will back", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 1)?;
        t.with("c", &t.connector("c").will(Will::new(&topic, "gone")))?.0.disconnect()?;
        watcher.quiet()
    });
    s.v3("3.1", "a will with QoS 3 is refused", |t| {
        let mut client = t.open("c")?;
        client.send(&t.connector("c").will(Will { qos: 3, ..Will::new(&t.topic("w"), "x") }).bytes())?;
        client.closed()
    });
    s.v3("3.1", "a silent client is cut off after 1.5 times its keep-alive", |t| {
        t.with("c", &t.connector("c").keep_alive(1))?.0.closed()
    });
    s.v3("3.1", "a takeover ends the first connection without a word", |t| {
        let (mut first, _) = t.with("first", &t.connector("c"))?;
        let (mut second, _) = t.with("second", &t.connector("c"))?;
        first.closed()?;
        second.quiet()
    });
}

/// 3.1 says of some bits that they are not used, and gives no value that they must have.
fn unused_flags(s: &mut Suite) {
    s.v3("2.1", "the flags of CONNECT's fixed header are not used: any value is connected", |t| {
        for flags in 0..16 {
            let mut client = t.open("c")?;
            let mut bytes = t.connector("c").bytes();
            bytes[0] |= flags;
            client.send(&bytes)?;
            client.expect(&[0x20, 2, 0, 0]).with_context(|| format!("flags {flags:#06b}"))?;
            client.send(&PINGREQ)?;
            client.expect(&[0xD0, 0])?;
            client.disconnect()?;
        }
        Ok(())
    });
    s.v3("3.1", "bit 0 of the connect flags is not used: a set one changes nothing", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("c").clean(false).flip(1);
        let (mut client, _) = t.with("c", &lasting)?;
        client.subscribe(&topic, 1)?;
        client.disconnect()?;
        t.client("other")?.publish(&topic, "x", 1)?;
        t.with("again", &lasting)?.0.receives(&topic, "x")?;
        t.with("clean", &t.connector("c").flip(1))?.0.quiet()
    });
    s.v3("3.1", "unused bits of CONNECT leave will and login as they are", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 1)?;
        let connect = t
            .connector("c")
            .login(Some("user"), Some(b"password"))
            .will(Will { qos: 1, ..Will::new(&topic, "gone") })
            .flip(1);
        let mut bytes = connect.bytes();
        bytes[0] |= 0x0F;
        let mut client = t.open("c")?;
        client.send(&bytes)?;
        client.expect(&[0x20, 2, 0, 0])?;
        client.vanish()?;
        watcher.receives(&topic, "gone")?;
        Ok(())
    });
    s.v3("2.1", "the flags of PINGREQ, PUBACK, PUBREC, PUBCOMP and DISCONNECT are not used", |t| {
        for flags in 1..16 {
            let mut client = t.client("c")?;
            for kind in [first::PUBACK, first::PUBCOMP] {
                // Nothing waits for it: it has no effect.
                client.send(&ack(kind | flags, 9))?;
            }
            client.send(&ack(first::PUBREC | flags, 9))?;
            client.acked(first::PUBREL, 9)?;
            client.send(&[PINGREQ[0] | flags, 0])?;
            client.expect(&[0xD0, 0]).with_context(|| format!("flags {flags:#06b}"))?;
            client.send(&[DISCONNECT[0] | flags, 0])?;
            client.closed()?;
        }
        Ok(())
    });
    s.v3("2.1", "a DISCONNECT with flags takes the will back", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 1)?;
        let (mut client, _) = t.with("c", &t.connector("c").will(Will::new(&topic, "gone")))?;
        client.send(&[DISCONNECT[0] | 0x0F, 0])?;
        client.closed()?;
        watcher.quiet()
    });
    s.v3("2.1", "RETAIN is not used in SUBSCRIBE, UNSUBSCRIBE and PUBREL", |t| {
        let topic = t.topic("x");
        for unused in [0x01, 0x09] {
            let with = |mut bytes: Vec<u8>| {
                bytes[0] |= unused;
                bytes
            };
            let mut client = t.client("c")?;
            client.send(&with(subscribe(t.version, 1, &[(&topic, 1)])))?;
            client.suback(1)?;
            client.send(&Publish::new(t.version, &topic, "x").qos(2, 3).bytes())?;
            client.acked(first::PUBREC, 3)?;
            let delivery = client.receives(&topic, "x")?;
            ensure!(!delivery.retain, "{delivery:?}");
            client.acknowledge(&delivery)?;
            client.send(&with(ack(first::PUBREL, 3)))?;
            client.acked(first::PUBCOMP, 3)?;
            client.send(&with(unsubscribe(t.version, 2, &[&topic])))?;
            client.expect(&[0xB0, 2, 0, 2])?;
            client.disconnect()?;
        }
        Ok(())
    });
}

fn packets(s: &mut Suite) {
    s.v3("2.1", "DUP is allowed in PUBREL, SUBSCRIBE and UNSUBSCRIBE", |t| {
        let topic = t.topic("x");
        let with_dup = |mut bytes: Vec<u8>| {
            bytes[0] |= 8;
            bytes
        };
        let mut client = t.client("c")?;
        client.send(&with_dup(subscribe(t.version, 1, &[(&topic, 0)])))?;
        client.suback(1)?;
        client.send(&with_dup(unsubscribe(t.version, 2, &[&topic])))?;
        client.expect(&[0xB0, 2, 0, 2])?;
        client.send(&Publish::new(t.version, &topic, "x").qos(2, 3).bytes())?;
        client.acked(first::PUBREC, 3)?;
        client.send(&with_dup(ack(first::PUBREL, 3)))?;
        client.acked(first::PUBCOMP, 3)?;
        client.quiet()
    });
    s.v3("2.1", "SUBSCRIBE, UNSUBSCRIBE and PUBREL need QoS 1", |t| {
        for bytes in
            [subscribe(t.version, 1, &[("a", 0)]), unsubscribe(t.version, 1, &["a"]), ack(first::PUBREL, 1)]
        {
            for flags in [0x00, 0x04, 0x06] {
                refused(t, &[&[bytes[0] & 0xF0 | flags], &bytes[1..]].concat())?;
            }
        }
        Ok(())
    });
    s.v3("2.1", "packet types 0 and 15 are reserved", |t| {
        refused(t, &[0x00, 0])?;
        refused(t, &[0xF0, 0])
    });
    s.v3("3.3", "PUBLISH with QoS 3 is refused", |t| {
        refused(t, &[&[0x36][..], &Publish::new(t.version, "x", "x").qos(1, 7).bytes()[1..]].concat())
    });
    s.v3("3.3", "a topic name with a wildcard is refused", |t| {
        for topic in ["#", "a/+"] {
            refused(t, &Publish::new(t.version, topic, "x").bytes())?;
        }
        Ok(())
    });
    s.v3("2.4", "packet identifier 0 is refused", |t| {
        refused(t, &Publish::new(t.version, "x", "x").qos(1, 0).bytes())?;
        refused(t, &subscribe(t.version, 0, &[("a", 0)]))
    });
    s.v3("3.8", "SUBSCRIBE without a topic is refused", |t| refused(t, &subscribe(t.version, 1, &[])));
    s.v3("3.8", "SUBSCRIBE with QoS 3 is refused", |t| refused(t, &subscribe(t.version, 1, &[("a", 3)])));
    s.v3("3.8", "a filter with a misplaced wildcard is refused", |t| {
        for filter in ["a#", "#/a", "+a", ""] {
            refused(t, &subscribe(t.version, 1, &[(filter, 0)]))?;
        }
        Ok(())
    });
    s.v3("3.12", "PINGREQ is answered by PINGRESP", |t| {
        let mut client = t.client("c")?;
        client.send(&PINGREQ)?;
        client.expect(&[0xD0, 0])
    });
    s.v3("2.3", "packets before CONNECT are closed without an answer", |t| {
        for bytes in [PINGREQ.to_vec(), subscribe(t.version, 1, &[("a", 0)]), ack(first::PUBACK, 1)] {
            let mut client = t.open("c")?;
            client.send(&bytes)?;
            client.closed()?;
        }
        Ok(())
    });
    s.v3("2.5", "strings that are not UTF-8 are refused", |t| {
        refused(t, &packet(first::SUBSCRIBE, &[&[0, 1], &[0, 2, 0xC3, 0x28], &[0]]))?;
        refused(t, &packet(first::SUBSCRIBE, &[&[0, 1], &text("a\0"), &[0]]))
    });
}

fn flows(s: &mut Suite) {
    for qos in 0..3_u8 {
        s.v3("4.1", format!("a message of QoS {qos} goes both ways"), move |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, qos)?;
            t.client("c")?.publish(&topic, "x", qos)?;
            let published = watcher.receives(&topic, "x")?;
            ensure!(published.qos == qos && !published.retain, "{published:?}");
            watcher.acknowledge(&published)?;
            watcher.quiet()
        });
    }
    s.v3("3.3", "retained messages reach later subscribers, an empty one removes them", |t| {
        let topic = t.topic("x");
        let mut client = t.client("c")?;
        client.publish_retained(&topic, "r", 1)?;
        ensure!(t.subscriber("late", &topic, 0)?.receives(&topic, "r")?.retain, "retain is not set");
        client.publish_retained(&topic, "", 1)?;
        t.subscriber("later", &topic, 0)?.quiet()
    });
    s.v3("3.1", "a session without the clean flag keeps subscriptions and messages", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("c").clean(false);
        let (mut client, _) = t.with("c", &lasting)?;
        client.subscribe(&topic, 1)?;
        client.disconnect()?;
        t.client("other")?.publish(&topic, "x", 1)?;
        let mut client = t.open("again")?;
        client.send(&lasting.bytes())?;
        client.expect(&[0x20, 2, 0, 0])?;
        client.receives(&topic, "x")?;
        Ok(())
    });
    s.v3("4.2", "what was not acknowledged comes again with DUP", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("c").clean(false);
        let (mut client, _) = t.with("c", &lasting)?;
        client.subscribe(&topic, 2)?;
        t.client("other")?.publish(&topic, "x", 2)?;
        let before = client.receives(&topic, "x")?;
        client.vanish()?;
        let (mut client, _) = t.with("again", &lasting)?;
        let published = client.receives(&topic, "x")?;
        ensure!(published.dup && published.packet_identifier == before.packet_identifier, "{published:?}");
        client.acknowledge(&published)?;
        client.quiet()
    });
    s.v3("4.1", "QoS 2 that comes again before PUBREL is delivered once", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let mut client = t.client("c")?;
        let publish = Publish::new(t.version, &topic, "x").qos(2, 7);
        client.send(&publish.bytes())?;
        client.send(&publish.dup().bytes())?;
        client.acked(first::PUBREC, 7)?;
        client.acked(first::PUBREC, 7)?;
        client.send(&ack(first::PUBREL, 7))?;
        client.acked(first::PUBCOMP, 7)?;
        watcher.receives(&topic, "x")?;
        watcher.quiet()
    });
    s.v3("4.3", "acknowledgements come in the order of the messages", |t| {
        let mut client = t.client("c")?;
        let all: Vec<u8> =
            (1..=50).flat_map(|n| Publish::new(t.version, &t.topic("x"), "x").qos(1, n).bytes()).collect();
        client.send(&all)?;
        for n in 1..=50 {
            client.acked(first::PUBACK, n)?;
        }
        Ok(())
    });
}
