//! Limits of a server, with a node that has low ones: see [`Instance::Small`].

use std::time::{Duration, Instant};

use anyhow::ensure;
use causeway_tests::mqtt::property::{self, Properties, id};
use causeway_tests::mqtt::wire::{Publish, Will, ack, first, subscribe};

use crate::suite::{Instance, Suite};

pub(crate) fn cases(s: &mut Suite) {
    s.on(Instance::Small, |s| {
        announced(s);
        publications(s);
        subscriptions(s);
        sessions(s);
    });
}

fn announced(s: &mut Suite) {
    s.v5("3.2.2.3", "the limits are in the CONNACK", |t| {
        let (_client, connack) = t.with("c", &t.connector("c"))?;
        let got = &connack.properties[..];
        for (id, wanted) in
            [(id::RECEIVE_MAXIMUM, 4), (id::MAXIMUM_PACKET_SIZE, 2048), (id::TOPIC_ALIAS_MAXIMUM, 3)]
        {
            ensure!(got.number(id) == Some(wanted), "property {id:#04x}: {got:?}");
        }
        Ok(())
    });
    s.v5("3.2.2.3.2", "an expiry beyond the longest is cut to it, and said", |t| {
        for (asked, told) in [(1, None), (2, None), (3, Some(2)), (u32::MAX, Some(2))] {
            let connect = t.connector("c").with(property::four(id::SESSION_EXPIRY_INTERVAL, asked));
            let (client, connack) = t.with("c", &connect)?;
            let got = connack.properties.number(id::SESSION_EXPIRY_INTERVAL);
            ensure!(got == told, "asked for {asked}: {got:?}");
            client.disconnect()?;
        }
        Ok(())
    });
    s.both("3.1.4", "3.1.4", "a connection without a CONNECT is closed after a while, without a word", |t| {
        let started = Instant::now();
        t.open("c")?.closed()?;
        ensure!(started.elapsed() >= Duration::from_millis(400), "after {:?}", started.elapsed());
        Ok(())
    });
    s.both("3.1.4", "3.1.4", "half a CONNECT is closed after a while, too", |t| {
        let mut client = t.open("c")?;
        let bytes = t.connector("c").bytes();
        client.send(&bytes[..bytes.len() / 2])?;
        client.closed()
    });
    s.both("3.1.4", "3.1.4", "a CONNECT byte by byte has no more time than another: closed after it", |t| {
        let mut client = t.open("c")?;
        let started = Instant::now();
        for byte in t.connector(&"x".repeat(100)).bytes() {
            client.push(&[byte]);
            std::thread::sleep(Duration::from_millis(20));
            if started.elapsed() > Duration::from_millis(1200) {
                break;
            }
        }
        // The last bytes found it closed already: an end in any form.
        ensure!(client.packet().is_err(), "an answer");
        Ok(())
    });
}

fn publications(s: &mut Suite) {
    s.both("3.3", "3.2.2.3.6", "a packet beyond the maximum packet size is refused", |t| {
        let mut client = t.client("c")?;
        client.push(&Publish::new(t.version, &t.topic("x"), vec![0; 3000]).bytes());
        client.refused(0x95)
    });
    s.both("3.1", "3.2.2.3.6", "a CONNECT beyond the maximum packet size is refused", |t| {
        let mut client = t.open("c")?;
        let connect = t.connector("c").will(Will { payload: vec![0; 3000], ..Will::new(&t.topic("w"), "") });
        client.push(&connect.bytes());
        // Refused by its length alone: what version it is has not been read.
        client.closed()
    });
    s.v5("4.9", "QoS 1 beyond the receive maximum in one segment is answered or refused, never lost", |t| {
        let mut client = t.client("c")?;
        let all: Vec<u8> =
            (1..=20).flat_map(|n| Publish::new(t.version, &t.topic("x"), "x").qos(1, n).bytes()).collect();
        client.send(&all)?;
        for n in 1..=20 {
            let packet = client.packet()?;
            if packet.first == first::DISCONNECT {
                ensure!(packet.disconnect()?.reason == 0x93, "{packet}");
                return client.closed();
            }
            ensure!(packet.ack(t.version, first::PUBACK)?.packet_identifier == n, "{packet}");
        }
        client.quiet()
    });
    s.v5("4.9 MQTT-4.9.0-1", "a fifth unreleased QoS 2 message is refused with 0x93", |t| {
        let mut client = t.client("c")?;
        for n in 1..=4 {
            client.send(&Publish::new(t.version, &t.topic("x"), "x").qos(2, n).bytes())?;
            client.acked(first::PUBREC, n)?;
        }
        client.send(&Publish::new(t.version, &t.topic("x"), "x").qos(2, 5).bytes())?;
        client.refused(0x93)
    });
    s.v4("4.3.3", "a fifth unreleased QoS 2 message of 3.1.1, which knows no such limit, is taken", |t| {
        let mut client = t.client("c")?;
        for n in 1..=12 {
            client.send(&Publish::new(t.version, &t.topic("x"), "x").qos(2, n).bytes())?;
            client.acked(first::PUBREC, n)?;
        }
        for n in 1..=12 {
            client.send(&ack(first::PUBREL, n))?;
            client.acked(first::PUBCOMP, n)?;
        }
        Ok(())
    });
    s.v5("3.3.2.3.4 MQTT-3.3.2-9", "alias 3 is taken, 4 is refused with 0x94", |t| {
        let mut client = t.client("c")?;
        let with =
            |alias| Publish::new(t.version, &t.topic("x"), "x").with(property::two(id::TOPIC_ALIAS, alias));
        client.send(&with(3).bytes())?;
        client.quiet()?;
        client.send(&with(4).bytes())?;
        client.refused(0x94)
    });
    s.both("4.7.3", "4.7.3", "a topic name with more levels than allowed is refused with 0x90", |t| {
        let mut client = t.client("c")?;
        client.send(&Publish::new(t.version, &(t.topic("") + &"/".repeat(7)), "x").bytes())?;
        client.quiet()?;
        client.send(&Publish::new(t.version, &(t.topic("") + &"/".repeat(8)), "x").bytes())?;
        client.refused(0x90)
    });
    s.both("3.1.3.2", "3.1.3.3", "a will topic with more levels than allowed is refused", |t| {
        let mut client = t.open("c")?;
        client.send(&t.connector("c").will(Will::new(&"/".repeat(8), "x")).bytes())?;
        client.not_connected(None, 0x90)
    });
    s.both("4.1", "4.1", "at most three deliveries are unanswered, the others wait", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 1)?;
        let mut client = t.client("c")?;
        for n in 0..5 {
            client.publish(&topic, n.to_string(), 1)?;
        }
        let first_one = watcher.receives(&topic, "0")?;
        watcher.receives(&topic, "1")?;
        watcher.receives(&topic, "2")?;
        watcher.quiet()?;
        watcher.acknowledge(&first_one)?;
        watcher.receives(&topic, "3")?;
        watcher.quiet()
    });
    s.both("4.1", "4.1", "a queue that is full keeps what it has: the newest is left out", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("c").lasting(2);
        let (mut watcher, _) = t.with("c", &lasting)?;
        watcher.subscribe(&topic, 1)?;
        watcher.disconnect()?;
        let mut client = t.client("other")?;
        for n in 0..9 {
            client.publish(&topic, n.to_string(), 1)?;
        }
        let (mut watcher, _) = t.with("again", &lasting)?;
        for n in 0..6 {
            let published = watcher.receives(&topic, n.to_string())?;
            watcher.acknowledge(&published)?;
        }
        watcher.quiet()
    });
}

fn subscriptions(s: &mut Suite) {
    s.both(
        "3.9.3",
        "3.9.3",
        "a subscription beyond the limit is refused in the SUBACK, the others stand",
        |t| {
            let mut client = t.client("c")?;
            let topics: Vec<String> = (0..7).map(|n| t.topic(&format!("/{n}"))).collect();
            let filters: Vec<(&str, u8)> = topics.iter().map(|topic| (topic.as_str(), 0)).collect();
            let failure = if t.is_v5() { 0x97 } else { 0x80 };
            let reasons = client.try_subscribe(&filters)?;
            ensure!(reasons == [0, 0, 0, 0, 0, failure, failure], "{reasons:02x?}");
            // One that is there may be changed, and one that went makes room.
            ensure!(client.try_subscribe(&[(&topics[0], 1)])? == [1], "not changed");
            client.unsubscribe(&[&topics[1]])?;
            ensure!(client.try_subscribe(&[(&topics[6], 0)])? == [0], "no room");
            Ok(())
        },
    );
    s.both("4.7.3", "4.7.3", "a filter with more levels than allowed is refused", |t| {
        let mut client = t.client("c")?;
        ensure!(client.try_subscribe(&[("a/+/+/+/+/+/+/#", 0)])? == [0], "eight levels are refused");
        client.send(&subscribe(t.version, 7, &[("a/+/+/+/+/+/+/+/#", 0)]))?;
        client.refused(0x8F)
    });
    s.both("4.7.3", "4.7.3", "a filter of two thousand slashes is refused, and the node lives", |t| {
        let mut client = t.client("c")?;
        client.push(&subscribe(t.version, 7, &[(&"/".repeat(1900), 0)]));
        client.refused(0x8F)?;
        t.client("d")?.quiet()
    });
}

fn sessions(s: &mut Suite) {
    s.v4("3.1.2.4", "a session of 3.1.1 ends after the time that is configured", |t| {
        t.with("c", &t.connector("c").clean(false))?.0.disconnect()?;
        std::thread::sleep(Duration::from_millis(2200));
        let (_client, connack) = t.with("again", &t.connector("c").clean(false))?;
        ensure!(!connack.session_present, "session present");
        Ok(())
    });
    s.v4("3.1.2.4", "a session of 3.1.1 is there before that time", |t| {
        t.with("c", &t.connector("c").clean(false))?.0.disconnect()?;
        let (_client, connack) = t.with("again", &t.connector("c").clean(false))?;
        ensure!(connack.session_present, "no session present");
        Ok(())
    });
    s.v5("3.1.2.11.2", "an expiry that was cut is what holds after it", |t| {
        let connect = t.connector("c").clean(false).with(property::four(id::SESSION_EXPIRY_INTERVAL, 1000));
        t.with("c", &connect)?.0.disconnect()?;
        std::thread::sleep(Duration::from_millis(3500));
        let (_client, connack) = t.with("again", &connect)?;
        ensure!(!connack.session_present, "session present");
        Ok(())
    });
}
