//! PUBLISH: MQTT-3.1.1 3.3, MQTT-5.0 3.3, and message expiry. Retained messages and deliveries have files of
//! their own.

use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_tests::mqtt::property::{self, Properties, id};
use causeway_tests::mqtt::wire::{Publish, first};

use crate::suite::{Bench, Suite};

pub(crate) fn cases(s: &mut Suite) {
    flags(s);
    topic_name(s);
    properties(s);
    alias(s);
    expiry(s);
}

fn flags(s: &mut Suite) {
    s.both("3.3.1.1 MQTT-3.3.1-3", "3.3.1.1 MQTT-3.3.1-3", "DUP of a publisher is not handed on", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 2)?;
        let mut client = t.client("c")?;
        for qos in 1..3 {
            client.deliver(Publish::new(t.version, &topic, "x").dup(), qos)?;
            let published = watcher.receives(&topic, "x")?;
            ensure!(!published.dup && published.qos == qos, "{published:?}");
            watcher.acknowledge(&published)?;
        }
        Ok(())
    });
    for (published, subscribed) in
        [(0_u8, 0_u8), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    {
        s.both(
            "3.8.4 MQTT-3.8.4-6",
            "3.8.4 MQTT-3.8.4-8",
            format!("published with QoS {published}, subscribed with {subscribed}: delivered with the lower"),
            move |t| {
                let topic = t.topic("x");
                let mut watcher = t.subscriber("watcher", &topic, subscribed)?;
                t.client("c")?.publish(&topic, "x", published)?;
                let delivery = watcher.receives(&topic, "x")?;
                ensure!(delivery.qos == published.min(subscribed), "QoS {}", delivery.qos);
                watcher.acknowledge(&delivery)?;
                watcher.quiet()
            },
        );
    }
    s.both(
        "3.3.1.3 MQTT-3.3.1-9",
        "3.3.1.3 MQTT-3.3.1-12",
        "retain is cleared for subscriptions that were there",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 1)?;
            t.client("c")?.publish_retained(&topic, "x", 1)?;
            let delivery = watcher.receives(&topic, "x")?;
            ensure!(!delivery.retain, "retain is set");
            Ok(())
        },
    );
    s.both("3.3.3", "3.3.3", "an empty payload arrives as one", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        t.client("c")?.publish(&topic, "", 1)?;
        watcher.receives(&topic, "")?;
        Ok(())
    });
    s.both("3.3.3", "3.3.3", "a payload of any bytes arrives unchanged", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let payload: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        t.client("c")?.publish(&topic, &payload, 1)?;
        watcher.receives(&topic, &payload)?;
        Ok(())
    });
    s.both("3.3.5", "3.3.4", "a publisher that subscribed gets its own message", |t| {
        let topic = t.topic("x");
        let mut client = t.subscriber("c", &topic, 0)?;
        client.send(&Publish::new(t.version, &topic, "own").bytes())?;
        client.receives(&topic, "own")?;
        client.quiet()
    });
    s.both("3.3.5", "3.3.4", "a message reaches every subscriber and nobody else", |t| {
        let topic = t.topic("x");
        let mut watchers = Vec::new();
        for n in 0..8 {
            watchers.push(t.subscriber(&format!("w{n}"), &topic, n % 3)?);
        }
        let mut other = t.subscriber("other", &t.topic("y"), 2)?;
        t.client("c")?.publish(&topic, "x", 1)?;
        for watcher in &mut watchers {
            watcher.receives(&topic, "x")?;
        }
        other.quiet()
    });
}

fn topic_name(s: &mut Suite) {
    s.both("3.3.2.1 MQTT-3.3.2-2", "3.3.2.1 MQTT-3.3.2-2", "a topic name with a wildcard is refused", |t| {
        for topic in ["#", "+", "a/#", "a/+/b", "a#", "+a", "/+"] {
            let mut client = t.client("c")?;
            client.send(&Publish::new(t.version, topic, "x").bytes())?;
            client.refused(0x90).context(topic)?;
        }
        Ok(())
    });
    s.v4("4.7.3 MQTT-4.7.3-1", "an empty topic name is refused", |t| {
        let mut client = t.client("c")?;
        client.send(&Publish::new(t.version, "", "x").bytes())?;
        client.refused(0x90)
    });
    s.v5("3.3.2.1", "an empty topic name without a topic alias is a protocol error", |t| {
        let mut client = t.client("c")?;
        client.send(&Publish::new(t.version, "", "x").bytes())?;
        client.refused(0x82)
    });
}

fn properties(s: &mut Suite) {
    s.v5("3.3.2.3", "every property arrives unchanged", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 1)?;
        let publish = Publish::new(t.version, &topic, "text")
            .with(property::string(id::CONTENT_TYPE, "text/plain; é"))
            .with(property::byte(id::PAYLOAD_FORMAT_INDICATOR, 1))
            .with(property::string(id::RESPONSE_TOPIC, "answers/é"))
            .with(property::data(id::CORRELATION_DATA, b"\x00\xFF\x80"));
        t.client("c")?.deliver(publish, 1)?;
        let published = watcher.receives(&topic, "text")?;
        let got = &published.properties[..];
        ensure!(got.len() == 4, "{got:?}");
        ensure!(got.number(id::PAYLOAD_FORMAT_INDICATOR) == Some(1), "{got:?}");
        ensure!(got.bytes(id::CONTENT_TYPE) == Some("text/plain; é".as_bytes()), "{got:?}");
        ensure!(got.bytes(id::RESPONSE_TOPIC) == Some("answers/é".as_bytes()), "{got:?}");
        ensure!(got.bytes(id::CORRELATION_DATA) == Some(b"\x00\xFF\x80"), "{got:?}");
        Ok(())
    });
    let single: [(&'static str, &str, Vec<u8>); 6] = [
        (
            "3.3.2.3.2 MQTT-3.3.2-4",
            "payload format indicator 0",
            property::byte(id::PAYLOAD_FORMAT_INDICATOR, 0),
        ),
        (
            "3.3.2.3.2 MQTT-3.3.2-4",
            "payload format indicator 1",
            property::byte(id::PAYLOAD_FORMAT_INDICATOR, 1),
        ),
        ("3.3.2.3.5 MQTT-3.3.2-15", "response topic", property::string(id::RESPONSE_TOPIC, "$x/y")),
        ("3.3.2.3.6 MQTT-3.3.2-16", "correlation data", property::data(id::CORRELATION_DATA, b"")),
        ("3.3.2.3.9 MQTT-3.3.2-20", "content type", property::string(id::CONTENT_TYPE, "")),
        ("3.3.2.3.7 MQTT-3.3.2-17", "user property", property::user("", "value")),
    ];
    for (section, name, bytes) in single {
        s.v5(section, format!("{name} arrives alone and unchanged"), move |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let publish = Publish::new(t.version, &topic, "text").with(bytes.clone()).bytes();
            t.client("c")?.send(&publish)?;
            watcher.expect(&publish)
        });
    }
    s.v5("3.3.2.3.7 MQTT-3.3.2-18", "user properties keep their order and repetitions", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let pairs = [("b", "2"), ("a", "1"), ("b", "2"), ("", ""), ("b", "1"), ("é", "\u{1F980}")];
        let mut publish = Publish::new(t.version, &topic, "x");
        publish.properties = pairs.iter().map(|(name, value)| property::user(name, value)).collect();
        t.client("c")?.send(&publish.bytes())?;
        let got = watcher.receives(&topic, "x")?.properties.user();
        let got: Vec<_> = got.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        ensure!(got == pairs, "{got:?}");
        Ok(())
    });
    s.v5("3.3.2.3.7 MQTT-3.3.2-18", "user properties keep their order between other properties", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let publish = Publish::new(t.version, &topic, "x")
            .with(property::user("z", "1"))
            .with(property::string(id::CONTENT_TYPE, "t"))
            .with(property::user("a", "2"))
            .with(property::byte(id::PAYLOAD_FORMAT_INDICATOR, 0))
            .with(property::user("z", "3"));
        t.client("c")?.send(&publish.bytes())?;
        let got = watcher.receives(&topic, "x")?.properties.user();
        let got: Vec<_> = got.iter().map(|(name, value)| format!("{name}{value}")).collect();
        ensure!(got == ["z1", "a2", "z3"], "{got:?}");
        Ok(())
    });
    s.v5("3.3.2.3", "properties do not reach clients of 3.1.1, topic and payload do", |t| {
        let topic = t.topic("x");
        let mut old = causeway_tests::mqtt::Connect::new(causeway_tests::mqtt::Version::V311, &t.id("old"));
        old.keep_alive = 0;
        let mut watcher = t.open_as("old", causeway_tests::mqtt::Version::V311)?;
        watcher.connect(&old)?;
        watcher.subscribe(&topic, 1)?;
        let publish = Publish::new(t.version, &topic, "x")
            .with(property::user("a", "b"))
            .with(property::string(id::CONTENT_TYPE, "t"));
        t.client("c")?.deliver(publish, 1)?;
        watcher.receives(&topic, "x")?;
        Ok(())
    });
    s.v5("4.10", "request and response: response topic and correlation data come and go", |t| {
        let (question, answer) = (t.topic("question"), t.topic("answer"));
        let mut asker = t.subscriber("asker", &answer, 1)?;
        let mut responder = t.subscriber("responder", &question, 1)?;
        let request = Publish::new(t.version, &question, "6*7")
            .with(property::string(id::RESPONSE_TOPIC, &answer))
            .with(property::data(id::CORRELATION_DATA, b"#1"));
        asker.deliver(request, 1)?;
        let request = responder.receives(&question, "6*7")?;
        let back = request.properties.bytes(id::RESPONSE_TOPIC).context("no response topic")?.to_vec();
        let data = request.properties.bytes(id::CORRELATION_DATA).context("no correlation data")?.to_vec();
        responder.acknowledge(&request)?;
        let response = Publish::new(t.version, std::str::from_utf8(&back)?, "42")
            .with(property::data(id::CORRELATION_DATA, &data));
        responder.deliver(response, 1)?;
        let response = asker.receives(&answer, "42")?;
        ensure!(response.properties.bytes(id::CORRELATION_DATA) == Some(b"#1"), "{response:?}");
        Ok(())
    });
}

/// A PUBLISH with an alias.
fn aliased(t: &Bench, topic: &str, alias: u16, payload: &str) -> Publish {
    Publish::new(t.version, topic, payload).with(property::two(id::TOPIC_ALIAS, alias))
}

/// Topic aliases from client to server (MQTT-5.0 3.3.2.3.4).
fn alias(s: &mut Suite) {
    s.v5("3.3.2.3.4", "an alias stands for the topic it was set with", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let mut client = t.client("c")?;
        client.send(&aliased(t, &topic, 1, "set").bytes())?;
        client.send(&aliased(t, "", 1, "used").bytes())?;
        client.send(&aliased(t, "", 1, "again").bytes())?;
        for payload in ["set", "used", "again"] {
            let published = watcher.receives(&topic, payload)?;
            ensure!(published.properties.number(id::TOPIC_ALIAS).is_none(), "handed on: {published:?}");
        }
        Ok(())
    });
    s.v5("3.3.2.3.4", "an alias can be set again", |t| {
        let (a, b) = (t.topic("/a"), t.topic("/b"));
        let mut watcher = t.subscriber("watcher", &t.topic("/+"), 0)?;
        let mut client = t.client("c")?;
        for (topic, alias, payload) in
            [(&*a, 1, "1"), (&*b, 2, "2"), (&*b, 1, "3"), ("", 1, "4"), ("", 2, "5")]
        {
            client.send(&aliased(t, topic, alias, payload).bytes())?;
        }
        for (topic, payload) in [(&a, "1"), (&b, "2"), (&b, "3"), (&b, "4"), (&b, "5")] {
            watcher.receives(topic, payload)?;
        }
        Ok(())
    });
    for qos in 1..3 {
        s.v5("3.3.2.3.4", format!("an alias works with QoS {qos}"), move |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.client("c")?;
            client.deliver(aliased(t, &topic, 1, "set"), qos)?;
            client.deliver(aliased(t, "", 1, "used"), qos)?;
            watcher.receives(&topic, "set")?;
            watcher.receives(&topic, "used")?;
            Ok(())
        });
    }
    s.v5("3.3.2.3.4", "an alias that was not set is a protocol error", |t| {
        let mut client = t.client("c")?;
        client.send(&aliased(t, "", 1, "x").bytes())?;
        client.refused(0x82)
    });
    s.v5("3.3.2.3.4 MQTT-3.3.2-9", "an alias above the topic alias maximum is refused", |t| {
        let (mut client, connack) = t.with("c", &t.connector("c"))?;
        let maximum = connack.properties.number(id::TOPIC_ALIAS_MAXIMUM).unwrap_or(0) as u16;
        ensure!(maximum < u16::MAX, "no alias is above {maximum}");
        client.send(&aliased(t, &t.topic("x"), maximum + 1, "x").bytes())?;
        client.refused(0x94)
    });
    s.v5("3.3.2.3.4 MQTT-3.3.2-7", "aliases end with their connection", |t| {
        let lasting = t.connector("c").lasting(60);
        let (mut client, _) = t.with("c", &lasting)?;
        client.send(&aliased(t, &t.topic("x"), 1, "x").bytes())?;
        client.quiet()?;
        client.disconnect()?;
        let (mut client, _) = t.with("again", &lasting)?;
        client.send(&aliased(t, "", 1, "x").bytes())?;
        client.refused(0x82)
    });
    s.v5("3.3.2.3.4 MQTT-3.3.2-7", "aliases belong to one connection each", |t| {
        let (a, b) = (t.topic("/a"), t.topic("/b"));
        let mut watcher = t.subscriber("watcher", &t.topic("/+"), 0)?;
        let (mut first, mut second) = (t.client("first")?, t.client("second")?);
        first.send(&aliased(t, &a, 1, "1").bytes())?;
        first.quiet()?;
        second.send(&aliased(t, &b, 1, "2").bytes())?;
        second.quiet()?;
        first.send(&aliased(t, "", 1, "3").bytes())?;
        first.quiet()?;
        second.send(&aliased(t, "", 1, "4").bytes())?;
        for (topic, payload) in [(&a, "1"), (&b, "2"), (&a, "3"), (&b, "4")] {
            watcher.receives(topic, payload)?;
        }
        Ok(())
    });
    s.v5("3.1.2.11.5 MQTT-3.1.2-27", "a client that takes no aliases is sent none", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let mut client = t.client("c")?;
        for n in 0..20 {
            client.send(&Publish::new(t.version, &topic, n.to_string()).bytes())?;
        }
        for n in 0..20 {
            let published = watcher.receives(&topic, n.to_string())?;
            ensure!(published.properties.number(id::TOPIC_ALIAS).is_none(), "{published:?}");
        }
        Ok(())
    });
    s.v5(
        "3.1.2.11.5 MQTT-3.1.2-26",
        "a client that takes three aliases is sent none above 3, and each is set first",
        |t| {
            let connect = t.connector("watcher").with(property::two(id::TOPIC_ALIAS_MAXIMUM, 3));
            let (mut watcher, _) = t.with("watcher", &connect)?;
            watcher.subscribe(&t.topic("/+"), 1)?;
            let mut client = t.client("c")?;
            let mut known = std::collections::BTreeMap::new();
            for round in 0..5 {
                for n in 0..5 {
                    let topic = t.topic(&format!("/{n}"));
                    client.publish(&topic, round.to_string(), 1)?;
                    let published = watcher.published()?;
                    watcher.acknowledge(&published)?;
                    let alias = published.properties.number(id::TOPIC_ALIAS);
                    ensure!(alias.is_none_or(|alias| (1..=3).contains(&alias)), "alias {alias:?}");
                    let resolved = match alias {
                        Some(alias) if published.topic.is_empty() => {
                            known.get(&alias).cloned().context("an alias that was not set")?
                        }
                        Some(alias) => {
                            known.insert(alias, published.topic.clone());
                            published.topic
                        }
                        None => published.topic,
                    };
                    ensure!(resolved == topic, "{resolved} instead of {topic}");
                }
            }
            Ok(())
        },
    );
}

/// Message expiry (MQTT-5.0 3.3.2.3.3).
fn expiry(s: &mut Suite) {
    let expiring = |t: &Bench, topic: &str, seconds: u32| {
        Publish::new(t.version, topic, "x").with(property::four(id::MESSAGE_EXPIRY_INTERVAL, seconds))
    };
    s.v5("3.3.2.3.3 MQTT-3.3.2-6", "an expiry interval arrives, less what the message waited", move |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        t.client("c")?.send(&expiring(t, &topic, 1000).bytes())?;
        let left = watcher.receives(&topic, "x")?.properties.number(id::MESSAGE_EXPIRY_INTERVAL);
        ensure!(left.is_some_and(|left| (990..=1000).contains(&left)), "{left:?}");
        Ok(())
    });
    s.v5("3.3.2.3.3 MQTT-3.3.2-5", "a message that waited too long is not delivered after it", move |t| {
        let topic = t.topic("x");
        let lasting = t.connector("watcher").lasting(60);
        let (mut watcher, _) = t.with("watcher", &lasting)?;
        watcher.subscribe(&topic, 1)?;
        watcher.disconnect()?;
        let mut client = t.client("c")?;
        client.deliver(expiring(t, &topic, 1), 1)?;
        client.publish(&topic, "stays", 1)?;
        std::thread::sleep(Duration::from_millis(2100));
        let (mut watcher, _) = t.with("again", &lasting)?;
        watcher.receives(&topic, "stays")?;
        watcher.quiet()
    });
    s.v5(
        "3.3.2.3.3 MQTT-3.3.2-6",
        "after seconds in a queue the expiry interval is that much less",
        move |t| {
            let topic = t.topic("x");
            let lasting = t.connector("watcher").lasting(60);
            let (mut watcher, _) = t.with("watcher", &lasting)?;
            watcher.subscribe(&topic, 1)?;
            watcher.disconnect()?;
            t.client("c")?.deliver(expiring(t, &topic, 100), 1)?;
            std::thread::sleep(Duration::from_millis(2100));
            let (mut watcher, _) = t.with("again", &lasting)?;
            let left = watcher.receives(&topic, "x")?.properties.number(id::MESSAGE_EXPIRY_INTERVAL);
            ensure!(left.is_some_and(|left| (90..=98).contains(&left)), "{left:?}");
            Ok(())
        },
    );
    s.v5("3.3.2.3.3", "a message without an expiry interval does not get one", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        t.client("c")?.publish(&topic, "x", 1)?;
        ensure!(watcher.receives(&topic, "x")?.properties.is_empty(), "a property");
        Ok(())
    });
    s.v5("3.3.2.3.3", "a retained message is not delivered after its expiry", move |t| {
        let topic = t.topic("x");
        t.client("c")?.deliver(expiring(t, &topic, 1).retain(), 1)?;
        let mut early = t.subscriber("early", &topic, 0)?;
        ensure!(early.receives(&topic, "x")?.retain, "not retained");
        std::thread::sleep(Duration::from_millis(2100));
        t.subscriber("late", &topic, 0)?.quiet()
    });
    s.v5("3.3.2.3.3", "after seconds a retained message says what is left of its expiry", move |t| {
        let topic = t.topic("x");
        t.client("c")?.deliver(expiring(t, &topic, 100).retain(), 1)?;
        std::thread::sleep(Duration::from_millis(2100));
        let left = t
            .subscriber("late", &topic, 0)?
            .receives(&topic, "x")?
            .properties
            .number(id::MESSAGE_EXPIRY_INTERVAL);
        ensure!(left.is_some_and(|left| (90..=98).contains(&left)), "{left:?}");
        Ok(())
    });
    s.v5("3.4.2.1", "PUBACK says that nobody subscribed, or success", |t| {
        let mut client = t.client("c")?;
        client.send(&Publish::new(t.version, &t.topic("nobody"), "x").qos(1, 7).bytes())?;
        let reason = client.acked(first::PUBACK, 7)?;
        ensure!(matches!(reason, 0 | 0x10), "{reason:#04x}");
        Ok(())
    });
}
