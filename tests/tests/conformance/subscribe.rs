//! SUBSCRIBE and SUBACK: MQTT-3.1.1 3.8 and 3.9, MQTT-5.0 3.8 and 3.9, with subscription options and
//! identifiers.

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::property::{self, Properties, id};
use causeway_tests::mqtt::wire::{Publish, first, packet, subscribe, subscribe_with, text};

use crate::suite::{Bench, Suite};

const NO_LOCAL: u8 = 0b0100;
const AS_PUBLISHED: u8 = 0b1000;

fn refused(t: &Bench, bytes: &[u8], reason: u8) -> Result<()> {
    let mut client = t.client("c")?;
    client.send(bytes)?;
    client.refused(reason)
}

pub(crate) fn cases(s: &mut Suite) {
    packets(s);
    effects(s);
    options(s);
    identifiers(s);
}

fn packets(s: &mut Suite) {
    s.both(
        "3.8.3 MQTT-3.8.3-3",
        "3.8.3 MQTT-3.8.3-2",
        "SUBSCRIBE without a filter is a protocol error",
        |t| refused(t, &subscribe(t.version, 7, &[]), 0x82),
    );
    s.v4("3.8.3 MQTT-3-8.3-4", "a requested QoS with reserved bits is refused", |t| {
        for options in (3..=255).filter(|options| options & 0xFC != 0 || *options == 3) {
            refused(t, &subscribe(t.version, 7, &[(&t.topic("x"), options)]), 0x81)
                .with_context(|| format!("{options:#010b}"))?;
        }
        Ok(())
    });
    s.v5("3.8.3.1 MQTT-3.8.3-5", "subscription options with reserved bits are malformed", |t| {
        for options in [0x40, 0x80, 0xC0, 0x41, 0xAA] {
            refused(t, &subscribe(t.version, 7, &[(&t.topic("x"), options)]), 0x81)
                .with_context(|| format!("{options:#010b}"))?;
        }
        Ok(())
    });
    s.v5("3.8.3.1", "a subscription with QoS 3 is a protocol error", |t| {
        for options in [3, 3 | NO_LOCAL, 3 | AS_PUBLISHED] {
            refused(t, &subscribe(t.version, 7, &[(&t.topic("x"), options)]), 0x82)?;
        }
        Ok(())
    });
    s.v5("3.8.3.1", "a subscription with retain handling 3 is a protocol error", |t| {
        refused(t, &subscribe(t.version, 7, &[(&t.topic("x"), 0x30)]), 0x82)
    });
    s.both("3.8.3", "3.8.3", "a filter without its options is malformed", |t| {
        let properties: &[u8] = if t.is_v5() { &[0] } else { &[] };
        let bytes = packet(first::SUBSCRIBE, &[&[0, 7], properties, &text("a")]);
        refused(t, &bytes, 0x81)?;
        let bytes = packet(first::SUBSCRIBE, &[&[0, 7], properties, &text("a"), &[0], &text("b")]);
        refused(t, &bytes, 0x81)
    });
    s.both("3.8.3", "3.8.3", "bytes behind the last filter are malformed", |t| {
        let properties: &[u8] = if t.is_v5() { &[0] } else { &[] };
        refused(t, &packet(first::SUBSCRIBE, &[&[0, 7], properties, &text("a"), &[0], &[0]]), 0x81)
    });
    s.both(
        "3.8.4 MQTT-3.8.4-1 MQTT-3.8.4-2",
        "3.8.4 MQTT-3.8.4-1 MQTT-3.8.4-2",
        "SUBACK has the identifier of its SUBSCRIBE",
        |t| {
            let mut client = t.client("c")?;
            for number in [1_u16, 255, 256, 65_535, 1] {
                client.send(&subscribe(t.version, number, &[(&t.topic("x"), 0)]))?;
                client.suback(number)?;
            }
            client.quiet()
        },
    );
    s.v4("3.9.3", "SUBACK is exactly 90 03, identifier and code", |t| {
        let mut client = t.client("c")?;
        for qos in 0..3 {
            client.send(&subscribe(t.version, 0x1234, &[(&t.topic("x"), qos)]))?;
            client.expect(&[0x90, 3, 0x12, 0x34, qos])?;
        }
        Ok(())
    });
    s.both(
        "3.8.4 MQTT-3.8.4-5",
        "3.8.4 MQTT-3.8.4-6",
        "SUBACK has one code for each filter, in order",
        |t| {
            let mut client = t.client("c")?;
            let topics: Vec<String> = (0..9).map(|n| t.topic(&format!("/{n}"))).collect();
            let filters: Vec<(&str, u8)> = topics
                .iter()
                .zip([0, 1, 2, 2, 1, 0, 1, 1, 0])
                .map(|(topic, qos)| (topic.as_str(), qos))
                .collect();
            let reasons = client.try_subscribe(&filters)?;
            ensure!(reasons == [0, 1, 2, 2, 1, 0, 1, 1, 0], "{reasons:?}");
            Ok(())
        },
    );
    s.both(
        "3.8.4 MQTT-3.8.4-4",
        "3.8.4 MQTT-3.8.4-5",
        "a SUBSCRIBE with a thousand filters is as a thousand of them",
        |t| {
            let mut client = t.client("c")?;
            let topics: Vec<String> = (0..1000).map(|n| t.topic(&format!("/{n}"))).collect();
            let filters: Vec<(&str, u8)> = topics.iter().map(|topic| (topic.as_str(), 0)).collect();
            ensure!(client.try_subscribe(&filters)? == [0; 1000], "not all");
            for topic in [&topics[0], &topics[500], &topics[999]] {
                client.send(&Publish::new(t.version, topic, "x").bytes())?;
                client.receives(topic, "x")?;
            }
            Ok(())
        },
    );
    s.both("4.7.3 MQTT-4.7.3-1", "4.7.3 MQTT-4.7.3-1", "an empty filter is refused", |t| {
        refused(t, &subscribe(t.version, 7, &[("", 0)]), 0x8F)?;
        refused(t, &subscribe(t.version, 7, &[(&t.topic("x"), 0), ("", 0)]), 0x8F)
    });
    s.both("3.8.3", "3.8.3", "what an illegal SUBSCRIBE also asks for is not done", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("c").lasting(60);
        let (mut client, _) = t.with("c", &lasting)?;
        client.send(&subscribe(t.version, 7, &[(&topic, 1), ("", 0)]))?;
        client.refused(0x8F)?;
        t.client("other")?.publish(&topic, "x", 1)?;
        t.with("again", &lasting)?.0.quiet()
    });
    s.both("3.8.4", "3.8.4", "SUBSCRIBEs in one segment are answered in order", |t| {
        let mut client = t.client("c")?;
        let all: Vec<u8> = (1..=50).flat_map(|n| subscribe(t.version, n, &[(&t.topic("x"), 0)])).collect();
        client.send(&all)?;
        for n in 1..=50 {
            client.suback(n)?;
        }
        Ok(())
    });
}

fn effects(s: &mut Suite) {
    s.both(
        "3.8.4 MQTT-3.8.4-3",
        "3.8.4 MQTT-3.8.4-3",
        "a filter that is subscribed again is replaced, not added",
        |t| {
            let topic = t.topic("x");
            let mut client = t.subscriber("c", &topic, 0)?;
            client.subscribe(&topic, 2)?;
            client.subscribe(&topic, 1)?;
            t.client("other")?.publish(&topic, "x", 2)?;
            ensure!(client.receives(&topic, "x")?.qos == 1, "not the last QoS");
            client.quiet()
        },
    );
    s.both(
        "3.8.4 MQTT-3.8.4-3",
        "3.8.4 MQTT-3.8.4-3",
        "a filter twice in one SUBSCRIBE counts as the last of them",
        |t| {
            let topic = t.topic("x");
            let mut client = t.client("c")?;
            ensure!(client.try_subscribe(&[(&topic, 2), (&topic, 0)])? == [2, 0], "other codes");
            t.client("other")?.publish(&topic, "x", 2)?;
            ensure!(client.receives(&topic, "x")?.qos == 0, "not the last QoS");
            client.quiet()
        },
    );
    s.both(
        "3.3.5 MQTT-3.3.5-1",
        "3.3.4 MQTT-3.3.4-2",
        "subscriptions that overlap deliver once, with the highest QoS",
        |t| {
            let topic = t.topic("/a/b");
            let mut client = t.client("c")?;
            client.subscribe(&t.topic("/#"), 1)?;
            client.subscribe(&t.topic("/+/b"), 2)?;
            client.subscribe(&topic, 0)?;
            t.client("other")?.publish(&topic, "x", 2)?;
            let published = client.receives(&topic, "x")?;
            ensure!(published.qos == 2, "QoS {}", published.qos);
            client.acknowledge(&published)?;
            client.quiet()
        },
    );
    s.both("3.8.4", "3.8.4", "a message published behind the SUBACK arrives", |t| {
        let mut other = t.client("other")?;
        let mut client = t.client("c")?;
        for n in 0..50 {
            let topic = t.topic(&format!("/{n}"));
            client.subscribe(&topic, 1)?;
            other.publish(&topic, "x", 0)?;
            client.receives(&topic, "x")?;
        }
        Ok(())
    });
}

/// Subscription options (MQTT-5.0 3.8.3.1).
fn options(s: &mut Suite) {
    s.v5("3.8.3.1 MQTT-3.8.3-3", "no local keeps one's own messages away, not those of others", |t| {
        let topic = t.topic("x");
        let mut client = t.subscriber("c", &topic, 1 | NO_LOCAL)?;
        client.publish(&topic, "own", 1)?;
        client.quiet()?;
        t.client("other")?.publish(&topic, "other", 1)?;
        client.receives(&topic, "other")?;
        client.quiet()
    });
    s.v5("3.8.3.1 MQTT-3.8.3-3", "no local concerns one subscription: another that matches delivers", |t| {
        let topic = t.topic("/x");
        let mut client = t.subscriber("c", &topic, NO_LOCAL)?;
        client.subscribe(&t.topic("/+"), 0)?;
        client.send(&Publish::new(t.version, &topic, "own").bytes())?;
        client.receives(&topic, "own")?;
        client.quiet()
    });
    s.v5("3.8.3.1", "no local holds for a client that was away, too", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("c").lasting(60);
        let (mut client, _) = t.with("c", &lasting)?;
        client.subscribe(&topic, 1 | NO_LOCAL)?;
        client.disconnect()?;
        let (mut client, _) = t.with("again", &lasting)?;
        client.publish(&topic, "own", 1)?;
        client.quiet()
    });
    s.v5("3.8.3.1 MQTT-3.8.3-4", "no local on a shared subscription is a protocol error", |t| {
        refused(t, &subscribe(t.version, 7, &[(&format!("$share/g/{}", t.topic("x")), NO_LOCAL)]), 0x82)
    });
    s.v5("3.8.3.1 MQTT-3.3.1-13", "retain as published hands the flag on", |t| {
        let topic = t.topic("x");
        let mut kept = t.subscriber("kept", &topic, AS_PUBLISHED)?;
        let mut cleared = t.subscriber("cleared", &topic, 0)?;
        let mut other = t.client("other")?;
        other.publish_retained(&topic, "retained", 1)?;
        other.publish(&topic, "plain", 1)?;
        ensure!(kept.receives(&topic, "retained")?.retain, "cleared");
        ensure!(!kept.receives(&topic, "plain")?.retain, "set");
        ensure!(!cleared.receives(&topic, "retained")?.retain, "set");
        ensure!(!cleared.receives(&topic, "plain")?.retain, "set");
        Ok(())
    });
    s.v5("3.8.3.1 MQTT-3.3.1-9", "retain handling 0 sends retained messages each time", |t| {
        let topic = t.topic("x");
        t.client("other")?.publish_retained(&topic, "r", 1)?;
        let mut client = t.client("c")?;
        for _ in 0..3 {
            client.subscribe(&topic, 0)?;
            ensure!(client.receives(&topic, "r")?.retain, "retain is not set");
        }
        client.quiet()
    });
    s.v5("3.8.3.1 MQTT-3.3.1-10", "retain handling 1 sends them to a new subscription alone", |t| {
        let topic = t.topic("x");
        t.client("other")?.publish_retained(&topic, "r", 1)?;
        let mut client = t.client("c")?;
        client.subscribe(&topic, 0x10)?;
        client.receives(&topic, "r")?;
        client.subscribe(&topic, 0x10)?;
        client.subscribe(&topic, 0x11)?;
        client.quiet()?;
        client.unsubscribe(&[&topic])?;
        client.subscribe(&topic, 0x10)?;
        client.receives(&topic, "r")?;
        client.quiet()
    });
    s.v5("3.8.3.1 MQTT-3.3.1-11", "retain handling 2 sends none", |t| {
        let topic = t.topic("x");
        t.client("other")?.publish_retained(&topic, "r", 1)?;
        let mut client = t.client("c")?;
        client.subscribe(&topic, 0x20)?;
        client.subscribe(&topic, 0x22)?;
        client.quiet()
    });
    s.v5("3.8.3.1", "a resumed session's subscription is not new to retain handling 1", |t| {
        let topic = t.topic("x");
        let lasting = t.connector("c").lasting(60);
        let (mut client, _) = t.with("c", &lasting)?;
        client.subscribe(&topic, 0x10)?;
        client.disconnect()?;
        t.client("other")?.publish_retained(&topic, "r", 0)?;
        let (mut client, _) = t.with("again", &lasting)?;
        client.subscribe(&topic, 0x10)?;
        client.quiet()
    });
    s.v5("3.8.3.1", "every legal combination of options is granted", |t| {
        let mut client = t.client("c")?;
        for qos in 0..3 {
            for bits in 0..4 {
                for handling in 0..3 {
                    client.subscribe(&t.topic("x"), qos | bits << 2 | handling << 4)?;
                }
            }
        }
        client.quiet()
    });
}

/// Subscription identifiers (MQTT-5.0 3.8.2.1.2).
fn identifiers(s: &mut Suite) {
    let numbers = |properties: &[property::Property]| {
        let mut numbers = properties.numbers(id::SUBSCRIPTION_IDENTIFIER);
        numbers.sort_unstable();
        numbers
    };
    let number = property::subscription_identifier;
    s.v5("3.3.4 MQTT-3.3.4-3", "a delivery carries the identifier of its subscription", move |t| {
        let topic = t.topic("x");
        let mut client = t.client("c")?;
        client.subscribe_with(&[number(42)], &topic, 1)?;
        t.client("other")?.publish(&topic, "x", 1)?;
        ensure!(numbers(&client.receives(&topic, "x")?.properties) == [42], "another");
        Ok(())
    });
    s.v5(
        "3.3.4 MQTT-3.3.4-4",
        "a delivery for several subscriptions carries all their identifiers",
        move |t| {
            let topic = t.topic("/a/b");
            let mut client = t.client("c")?;
            client.subscribe_with(&[number(3)], &t.topic("/#"), 0)?;
            client.subscribe_with(&[number(300)], &t.topic("/+/b"), 2)?;
            client.subscribe(&t.topic("/a/+"), 1)?;
            client.subscribe_with(&[number(30_000)], &topic, 1)?;
            t.client("other")?.publish(&topic, "x", 2)?;
            let published = client.receives(&topic, "x")?;
            ensure!(numbers(&published.properties) == [3, 300, 30_000], "{published:?}");
            ensure!(published.qos == 2, "{published:?}");
            client.acknowledge(&published)?;
            client.quiet()
        },
    );
    s.v5(
        "3.3.4",
        "two subscriptions with one identifier: it is there once or twice, the message once",
        move |t| {
            let topic = t.topic("/a");
            let mut client = t.client("c")?;
            client.subscribe_with(&[number(5)], &t.topic("/#"), 0)?;
            client.subscribe_with(&[number(5)], &t.topic("/+"), 0)?;
            t.client("other")?.publish(&topic, "x", 0)?;
            let got = numbers(&client.receives(&topic, "x")?.properties);
            ensure!(got == [5] || got == [5, 5], "{got:?}");
            client.quiet()
        },
    );
    s.v5("3.8.4 MQTT-3.8.4-3", "subscribing again replaces the identifier, or takes it away", move |t| {
        let topic = t.topic("x");
        let mut other = t.client("other")?;
        let mut client = t.client("c")?;
        let steps: [(&[Vec<u8>], &[u32]); 3] = [(&[number(1)], &[1]), (&[number(2)], &[2]), (&[], &[])];
        for (properties, wanted) in steps {
            client.subscribe_with(properties, &topic, 0)?;
            other.publish(&topic, "x", 0)?;
            let got = numbers(&client.receives(&topic, "x")?.properties);
            ensure!(got == wanted, "{got:?}, not {wanted:?}");
        }
        Ok(())
    });
    s.v5("3.8.2.1.2", "an identifier belongs to every filter of its SUBSCRIBE", move |t| {
        let (a, b) = (t.topic("/a"), t.topic("/b"));
        let mut client = t.client("c")?;
        client.send(&subscribe_with(t.version, 7, &[number(9)], &[(&a, 0), (&b, 0)]))?;
        client.suback(7)?;
        for topic in [&a, &b] {
            client.send(&Publish::new(t.version, topic, "x").bytes())?;
            ensure!(numbers(&client.receives(topic, "x")?.properties) == [9], "another");
        }
        Ok(())
    });
    s.v5("3.8.2.1.2", "a retained message carries the identifier of the subscription that asked", move |t| {
        let topic = t.topic("/a");
        t.client("other")?.publish_retained(&topic, "r", 1)?;
        let mut client = t.client("c")?;
        client.subscribe_with(&[number(1)], &topic, 0)?;
        ensure!(numbers(&client.receives(&topic, "r")?.properties) == [1], "another");
        client.subscribe_with(&[number(2)], &t.topic("/+"), 0)?;
        ensure!(numbers(&client.receives(&topic, "r")?.properties) == [2], "another");
        Ok(())
    });
    s.v5("3.8.2.1.2", "identifiers survive the connection with their session", move |t| {
        let topic = t.topic("x");
        let lasting = t.connector("c").lasting(60);
        let (mut client, _) = t.with("c", &lasting)?;
        client.subscribe_with(&[number(77)], &topic, 1)?;
        client.disconnect()?;
        let mut other = t.client("other")?;
        other.publish(&topic, "queued", 1)?;
        let (mut client, _) = t.with("again", &lasting)?;
        let published = client.receives(&topic, "queued")?;
        ensure!(numbers(&published.properties) == [77], "another");
        client.acknowledge(&published)?;
        other.publish(&topic, "live", 1)?;
        ensure!(numbers(&client.receives(&topic, "live")?.properties) == [77], "another");
        Ok(())
    });
    s.v5("3.3.4", "each client gets its own identifiers", move |t| {
        let topic = t.topic("x");
        let mut clients = Vec::new();
        for n in 1..5 {
            let mut client = t.client(&format!("c{n}"))?;
            client.subscribe_with(&[number(n)], &topic, 0)?;
            clients.push((n, client));
        }
        t.client("other")?.publish(&topic, "x", 0)?;
        for (n, client) in &mut clients {
            ensure!(numbers(&client.receives(&topic, "x")?.properties) == [*n], "another");
        }
        Ok(())
    });
}
