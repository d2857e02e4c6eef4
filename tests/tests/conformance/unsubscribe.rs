//! UNSUBSCRIBE and UNSUBACK: MQTT-3.1.1 3.10 and 3.11, MQTT-5.0 3.10 and 3.11.

use anyhow::{Result, ensure};
use causeway_tests::mqtt::wire::{Publish, first, packet, text, unsubscribe};

use crate::suite::{Bench, Suite};

fn refused(t: &Bench, bytes: &[u8], reason: u8) -> Result<()> {
    let mut client = t.client("c")?;
    client.send(bytes)?;
    client.refused(reason)
}

pub(crate) fn cases(s: &mut Suite) {
    s.both(
        "3.10.3 MQTT-3.10.3-2",
        "3.10.3 MQTT-3.10.3-2",
        "UNSUBSCRIBE without a filter is a protocol error",
        |t| refused(t, &unsubscribe(t.version, 7, &[]), 0x82),
    );
    s.both("3.10.3", "3.10.3", "bytes behind the last filter are malformed", |t| {
        let properties: &[u8] = if t.is_v5() { &[0] } else { &[] };
        refused(t, &packet(first::UNSUBSCRIBE, &[&[0, 7], properties, &text("a"), &[0]]), 0x81)
    });
    s.both("4.7.3 MQTT-4.7.3-1", "4.7.3 MQTT-4.7.3-1", "an empty filter in UNSUBSCRIBE is refused", |t| {
        refused(t, &unsubscribe(t.version, 7, &[""]), 0x8F)
    });
    s.both(
        "4.7.1 MQTT-4.7.1-2",
        "4.7.1 MQTT-4.7.1-1",
        "a filter in UNSUBSCRIBE with a misplaced wildcard is refused",
        |t| {
            for filter in ["a#", "#/a", "a+", "a/+b"] {
                refused(t, &unsubscribe(t.version, 7, &[filter]), 0x8F)?;
            }
            Ok(())
        },
    );
    s.v4("3.11 MQTT-3.10.4-4", "UNSUBACK is exactly b0 02 and the identifier", |t| {
        let mut client = t.client("c")?;
        for number in [1_u16, 255, 256, 65_535] {
            client.send(&unsubscribe(t.version, number, &[&t.topic("x"), &t.topic("y")]))?;
            let id = number.to_be_bytes();
            client.expect(&[0xB0, 2, id[0], id[1]])?;
        }
        Ok(())
    });
    s.v5(
        "3.11.3 MQTT-3.11.3-1 MQTT-3.11.3-2",
        "UNSUBACK has one reason code for each filter, in order",
        |t| {
            let (a, b, c) = (t.topic("/a"), t.topic("/b"), t.topic("/c"));
            let mut client = t.client("c")?;
            client.subscribe(&a, 0)?;
            client.subscribe(&c, 0)?;
            let reasons = client.unsubscribe(&[&a, &b, &c, &a])?;
            ensure!(reasons == [0, 0x11, 0, 0x11], "{reasons:02x?}");
            Ok(())
        },
    );
    s.both(
        "3.10.4 MQTT-3.10.4-5",
        "3.10.4 MQTT-3.10.4-5",
        "a filter nobody subscribed to is answered as well",
        |t| {
            let reasons = t.client("c")?.unsubscribe(&[&t.topic("x")])?;
            ensure!(!t.is_v5() || reasons == [0x11], "{reasons:02x?}");
            Ok(())
        },
    );
    s.both("3.10.4 MQTT-3.10.4-2", "3.10.4 MQTT-3.10.4-2", "nothing arrives behind the UNSUBACK", |t| {
        let topic = t.topic("x");
        let mut client = t.subscriber("c", &topic, 1)?;
        let mut other = t.client("other")?;
        other.publish(&topic, "before", 1)?;
        client.receives(&topic, "before")?;
        client.unsubscribe(&[&topic])?;
        other.publish(&topic, "after", 1)?;
        client.quiet()
    });
    s.both("3.10.4 MQTT-3.10.4-6", "3.10.4 MQTT-3.10.4-6", "one UNSUBSCRIBE ends many subscriptions", |t| {
        let topics: Vec<String> = (0..50).map(|n| t.topic(&format!("/{n}"))).collect();
        let mut client = t.client("c")?;
        let filters: Vec<(&str, u8)> = topics.iter().map(|topic| (topic.as_str(), 0)).collect();
        client.try_subscribe(&filters)?;
        client.unsubscribe(&topics[1..].iter().map(String::as_str).collect::<Vec<_>>())?;
        let mut other = t.client("other")?;
        for topic in topics.iter().rev() {
            other.publish(topic, "x", 0)?;
        }
        client.receives(&topics[0], "x")?;
        client.quiet()
    });
    s.both(
        "3.10.4 MQTT-3.10.4-1",
        "3.10.4 MQTT-3.10.4-1",
        "filters are compared letter by letter, not by what they match",
        |t| {
            let topic = t.topic("/a");
            let mut client = t.client("c")?;
            client.subscribe(&t.topic("/+"), 0)?;
            for other in [t.topic("/a"), t.topic("/#"), t.topic("/+/"), t.topic("/+/#")] {
                client.unsubscribe(&[&other])?;
            }
            client.send(&Publish::new(t.version, &topic, "x").bytes())?;
            client.receives(&topic, "x")?;
            client.unsubscribe(&[&t.topic("/+")])?;
            client.send(&Publish::new(t.version, &topic, "y").bytes())?;
            client.quiet()
        },
    );
    s.both(
        "3.10.4 MQTT-3.10.4-2",
        "3.10.4 MQTT-3.10.4-2",
        "of subscriptions that overlap the others go on",
        |t| {
            let topic = t.topic("/a");
            let mut client = t.client("c")?;
            client.subscribe(&t.topic("/#"), 0)?;
            client.subscribe(&topic, 1)?;
            client.unsubscribe(&[&topic])?;
            t.client("other")?.publish(&topic, "x", 1)?;
            ensure!(client.receives(&topic, "x")?.qos == 0, "the QoS of the subscription that ended");
            client.quiet()
        },
    );
    s.both(
        "3.10.4 MQTT-3.10.4-3",
        "3.10.4 MQTT-3.10.4-3",
        "a delivery that was begun is completed behind an UNSUBSCRIBE",
        |t| {
            let topic = t.topic("x");
            let mut client = t.subscriber("c", &topic, 2)?;
            t.client("other")?.publish(&topic, "x", 2)?;
            let published = client.receives(&topic, "x")?;
            client.unsubscribe(&[&topic])?;
            client.acknowledge(&published)?;
            client.quiet()
        },
    );
    s.both("3.10.4", "3.10.4", "subscribing again after an UNSUBSCRIBE works", |t| {
        let topic = t.topic("x");
        let mut client = t.client("c")?;
        for _ in 0..3 {
            client.subscribe(&topic, 0)?;
            client.send(&Publish::new(t.version, &topic, "x").bytes())?;
            client.receives(&topic, "x")?;
            client.unsubscribe(&[&topic])?;
        }
        Ok(())
    });
    s.both("3.10.4", "3.10.4", "an UNSUBSCRIBE outlives the connection", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("c").lasting(60);
        let (mut client, _) = t.with("c", &lasting)?;
        client.subscribe(&topic, 1)?;
        client.unsubscribe(&[&topic])?;
        client.disconnect()?;
        t.client("other")?.publish(&topic, "x", 1)?;
        t.with("again", &lasting)?.0.quiet()
    });
    s.v5("3.10.4", "what an illegal UNSUBSCRIBE also asks for is not done", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("c").lasting(60);
        let (mut client, _) = t.with("c", &lasting)?;
        client.subscribe(&topic, 1)?;
        client.send(&unsubscribe(t.version, 7, &[&topic, "a#"]))?;
        client.refused(0x8F)?;
        t.client("other")?.publish(&topic, "x", 1)?;
        t.with("again", &lasting)?.0.receives(&topic, "x")?;
        Ok(())
    });
}
