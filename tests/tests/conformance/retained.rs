//! Retained messages: MQTT-3.1.1 3.3.1.3, MQTT-5.0 3.3.1.3.

use anyhow::ensure;
use causeway_tests::mqtt::property::{self, Properties, id};
use causeway_tests::mqtt::wire::Publish;

use crate::suite::Suite;

pub(crate) fn cases(s: &mut Suite) {
    for qos in 0..3_u8 {
        s.both(
            "3.3.1.3 MQTT-3.3.1-5 MQTT-3.3.1-6",
            "3.3.1.3 MQTT-3.3.1-5",
            format!("a retained message of QoS {qos} reaches those who subscribe later, with retain set"),
            move |t| {
                let topic = t.topic("x");
                t.client("c")?.publish_retained(&topic, "r", qos)?;
                for wanted in 0..3 {
                    let mut late = t.subscriber(&format!("late{wanted}"), &topic, wanted)?;
                    let published = late.receives(&topic, "r")?;
                    ensure!(published.retain && !published.dup, "{published:?}");
                    ensure!(published.qos == qos.min(wanted), "QoS {}", published.qos);
                    late.acknowledge(&published)?;
                    late.quiet()?;
                }
                Ok(())
            },
        );
    }
    s.both(
        "3.3.1.3 MQTT-3.3.1-5",
        "3.3.1.3 MQTT-3.3.1-5",
        "the last retained message of a topic is kept, alone",
        |t| {
            let topic = t.topic("x");
            let mut client = t.client("c")?;
            for (n, qos) in [0, 1, 2, 0].into_iter().enumerate() {
                client.publish_retained(&topic, n.to_string(), qos)?;
            }
            let mut late = t.subscriber("late", &topic, 2)?;
            ensure!(late.receives(&topic, "3")?.qos == 0, "not the last");
            late.quiet()
        },
    );
    s.both(
        "3.3.1.3 MQTT-3.3.1-12",
        "3.3.1.3 MQTT-3.3.1-8",
        "a message without retain leaves the retained one",
        |t| {
            let topic = t.topic("x");
            let mut client = t.client("c")?;
            client.publish_retained(&topic, "kept", 1)?;
            client.publish(&topic, "passing", 1)?;
            client.publish(&topic, "", 1)?;
            t.subscriber("late", &topic, 0)?.receives(&topic, "kept")?;
            Ok(())
        },
    );
    s.both(
        "3.3.1.3 MQTT-3.3.1-10",
        "3.3.1.3 MQTT-3.3.1-6",
        "an empty payload with retain removes it, and is sent to subscribers",
        |t| {
            let topic = t.topic("x");
            let mut client = t.client("c")?;
            client.publish_retained(&topic, "r", 1)?;
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            watcher.receives(&topic, "r")?;
            client.publish_retained(&topic, "", 1)?;
            ensure!(!watcher.receives(&topic, "")?.retain, "retain is set");
            t.subscriber("late", &topic, 0)?.quiet()
        },
    );
    s.both(
        "3.3.1.3 MQTT-3.3.1-11",
        "3.3.1.3 MQTT-3.3.1-7",
        "an empty payload with retain is not kept itself",
        |t| {
            let topic = t.topic("x");
            t.client("c")?.publish_retained(&topic, "", 1)?;
            t.subscriber("late", &topic, 0)?.quiet()
        },
    );
    s.both(
        "3.3.1.3 MQTT-3.3.1-8",
        "3.3.1.3",
        "a wildcard subscription gets every retained message that matches",
        |t| {
            let mut client = t.client("c")?;
            for name in ["", "/a", "/a/b", "/a/b/c", "/d"] {
                client.publish_retained(&t.topic(name), format!("at {name}"), 1)?;
            }
            let wanted: [(&str, &[&str]); 6] = [
                ("/#", &["", "/a", "/a/b", "/a/b/c", "/d"]),
                ("/+", &["/a", "/d"]),
                ("/a/#", &["/a", "/a/b", "/a/b/c"]),
                ("/+/b", &["/a/b"]),
                ("/+/+/#", &["/a/b", "/a/b/c"]),
                ("/e/#", &[]),
            ];
            for (n, (filter, names)) in wanted.into_iter().enumerate() {
                let mut late = t.subscriber(&format!("late{n}"), &t.topic(filter), 0)?;
                let mut got = Vec::new();
                for _ in names {
                    let published = late.published()?;
                    ensure!(published.retain, "{published:?}");
                    got.push(String::from_utf8_lossy(&published.payload).replace("at ", ""));
                }
                got.sort();
                ensure!(got == names, "{filter}: {got:?}, not {names:?}");
                late.quiet()?;
            }
            Ok(())
        },
    );
    s.both("3.8.4 MQTT-3.8.4-3", "3.8.4", "subscribing again sends retained messages again", |t| {
        let topic = t.topic("x");
        t.client("c")?.publish_retained(&topic, "r", 0)?;
        let mut late = t.client("late")?;
        for _ in 0..3 {
            late.subscribe(&topic, 0)?;
            ensure!(late.receives(&topic, "r")?.retain, "retain is not set");
        }
        late.quiet()
    });
    s.both(
        "3.3.1.3",
        "3.3.1.3",
        "retained messages come behind the SUBACK, one each for filters that overlap",
        |t| {
            let topic = t.topic("/x");
            t.client("c")?.publish_retained(&topic, "r", 0)?;
            let mut late = t.client("late")?;
            let reasons = late.try_subscribe(&[(&topic, 0), (&t.topic("/+"), 0)])?;
            ensure!(reasons == [0, 0], "{reasons:?}");
            // One for each subscription, or one for both.
            late.receives(&topic, "r")?;
            late.send(&[0xC0, 0])?;
            let next = late.packet()?;
            if next.first != 0xD0 {
                ensure!(next.publish(t.version)?.payload == b"r", "{next}");
                late.expect(&[0xD0, 0])?;
            }
            Ok(())
        },
    );
    s.both("3.3.1.3", "3.3.1.3", "retained messages of a hundred topics all come", |t| {
        let mut client = t.client("c")?;
        for n in 0..100 {
            let topic = t.topic(&format!("/{n}"));
            client.send(&Publish::new(t.version, &topic, n.to_string()).retain().bytes())?;
        }
        client.quiet()?;
        let mut late = t.subscriber("late", &t.topic("/#"), 0)?;
        let mut got = std::collections::BTreeSet::new();
        for _ in 0..100 {
            got.insert(late.published()?.topic);
        }
        ensure!(got.len() == 100, "{} topics", got.len());
        late.quiet()
    });
    s.v5("3.3.1.3", "a retained message keeps its properties", |t| {
        let topic = t.topic("x");
        let publish = Publish::new(t.version, &topic, "r")
            .retain()
            .with(property::string(id::CONTENT_TYPE, "text"))
            .with(property::user("b", "1"))
            .with(property::user("a", "2"))
            .with(property::data(id::CORRELATION_DATA, b"\x01"));
        t.client("c")?.deliver(publish, 1)?;
        let published = t.subscriber("late", &topic, 0)?.receives(&topic, "r")?;
        let got = &published.properties[..];
        ensure!(got.bytes(id::CONTENT_TYPE) == Some(b"text"), "{got:?}");
        ensure!(got.bytes(id::CORRELATION_DATA) == Some(b"\x01"), "{got:?}");
        let user: Vec<String> = got.user().into_iter().map(|(name, value)| name + &value).collect();
        ensure!(user == ["b1", "a2"], "{user:?}");
        Ok(())
    });
    s.v5("3.3.1.3", "a retained message does not keep the alias of its publisher", |t| {
        let topic = t.topic("x");
        let publish = Publish::new(t.version, &topic, "r").retain().with(property::two(id::TOPIC_ALIAS, 1));
        t.client("c")?.deliver(publish, 1)?;
        let published = t.subscriber("late", &topic, 0)?.receives(&topic, "r")?;
        ensure!(published.properties.number(id::TOPIC_ALIAS).is_none(), "{published:?}");
        Ok(())
    });
    s.both("3.3.1.3", "3.3.1.3", "the retained message of a client that is gone stays", |t| {
        let topic = t.topic("x");
        let mut client = t.client("c")?;
        client.publish_retained(&topic, "r", 1)?;
        client.vanish()?;
        t.subscriber("late", &topic, 0)?.receives(&topic, "r")?;
        Ok(())
    });
    s.both("3.3.1.3", "3.3.1.3", "a retained message that is refused is not kept", |t| {
        // DUP with QoS 0.
        let topic = t.topic("x");
        let mut client = t.client("c")?;
        client.send(&Publish::new(t.version, &topic, "r").retain().dup().bytes())?;
        client.refused(0x81)?;
        t.subscriber("late", &topic, 0)?.quiet()
    });
}
