//! Wills: MQTT-3.1.1 3.1.2.5 to 3.1.2.7, MQTT-5.0 3.1.2.5 and 3.1.3.2.

use std::time::{Duration, Instant};

use anyhow::ensure;
use causeway_tests::mqtt::property::{self, Properties, id};
use causeway_tests::mqtt::wire::{DISCONNECT, Will, packet};

use crate::suite::{Bench, Suite};

fn delayed(topic: &str, payload: &str, seconds: u32) -> Will {
    Will { properties: vec![property::four(id::WILL_DELAY_INTERVAL, seconds)], ..Will::new(topic, payload) }
}

pub(crate) fn cases(s: &mut Suite) {
    when(s);
    what(s);
    delay(s);
}

/// When it is published, and when not.
fn when(s: &mut Suite) {
    s.both(
        "3.1.2.5 MQTT-3.1.2-8",
        "3.1.2.5 MQTT-3.1.2-8",
        "a will is published when the connection just ends",
        |t| {
            let topic = t.topic("w");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            t.with("c", &t.connector("c").will(Will::new(&topic, "gone")))?.0.vanish()?;
            let published = watcher.receives(&topic, "gone")?;
            ensure!(!published.retain && !published.dup, "{published:?}");
            Ok(())
        },
    );
    s.both("3.1.2.5 MQTT-3.1.2-10", "3.1.2.5 MQTT-3.1.2-10", "a DISCONNECT takes the will back", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        t.with("c", &t.connector("c").will(Will::new(&topic, "gone")))?.0.disconnect()?;
        watcher.quiet()
    });
    s.both(
        "3.1.2.5 MQTT-3.1.2-8",
        "3.1.2.5 MQTT-3.1.2-8",
        "a will is published when the client breaks the protocol",
        |t| {
            let topic = t.topic("w");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let (mut client, _) = t.with("c", &t.connector("c").will(Will::new(&topic, "gone")))?;
            client.send(&[0x00, 0])?;
            client.refused(0x81)?;
            watcher.receives(&topic, "gone")?;
            Ok(())
        },
    );
    s.both("3.1.2.5", "3.1.2.5", "a will is published when another connection takes over", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let (mut first, _) = t.with("first", &t.connector("c").will(Will::new(&topic, "taken")))?;
        let (mut second, _) = t.with("second", &t.connector("c"))?;
        first.refused(0x8E)?;
        watcher.receives(&topic, "taken")?;
        second.quiet()
    });
    s.both("3.1.2.5", "3.1.2.5", "a will of a session that goes on is published, too", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        t.with("c", &t.connector("c").lasting(60).will(Will::new(&topic, "gone")))?.0.vanish()?;
        watcher.receives(&topic, "gone")?;
        Ok(())
    });
    s.both("3.1.2.5", "3.1.2.5", "a will belongs to a connection, not to its session", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        t.with("c", &t.connector("c").lasting(60).will(Will::new(&topic, "gone")))?.0.disconnect()?;
        t.with("c", &t.connector("c").lasting(60))?.0.vanish()?;
        watcher.quiet()
    });
    s.both("3.1.2.5", "3.1.2.5", "a refused CONNECT leaves no will", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let mut client = t.open("c")?;
        client.send(&t.connector("c").will(Will::new(&topic, "gone")).flip(1).bytes())?;
        client.not_connected(None, 0x81)?;
        watcher.quiet()
    });
    s.v5("3.14.4 MQTT-3.14.4-3", "DISCONNECT with 0x04 publishes the will", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let (mut client, _) = t.with("c", &t.connector("c").will(Will::new(&topic, "wanted")))?;
        client.send(&packet(DISCONNECT[0], &[&[0x04]]))?;
        client.closed()?;
        watcher.receives(&topic, "wanted")?;
        Ok(())
    });
    s.v5("3.14.4 MQTT-3.14.4-3", "DISCONNECT with a failure publishes the will", |t| {
        for reason in [0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99] {
            let topic = t.topic(&format!("w{reason}"));
            let mut watcher = t.subscriber(&format!("watcher{reason}"), &topic, 0)?;
            let (mut client, _) = t.with("c", &t.connector("c").will(Will::new(&topic, "failed")))?;
            client.send(&packet(DISCONNECT[0], &[&[reason]]))?;
            client.closed()?;
            watcher.receives(&topic, "failed")?;
            watcher.disconnect()?;
        }
        Ok(())
    });
}

/// What arrives.
fn what(s: &mut Suite) {
    for qos in 0..3_u8 {
        s.both("3.1.2.6", "3.1.2.6", format!("a will with QoS {qos} arrives with it"), move |t| {
            let topic = t.topic("w");
            let mut watcher = t.subscriber("watcher", &topic, 2)?;
            t.with("c", &t.connector("c").will(Will { qos, ..Will::new(&topic, "gone") }))?.0.vanish()?;
            let published = watcher.receives(&topic, "gone")?;
            ensure!(published.qos == qos, "QoS {}", published.qos);
            watcher.acknowledge(&published)?;
            watcher.quiet()
        });
    }
    s.both("3.1.2.7 MQTT-3.1.2-17", "3.1.2.7 MQTT-3.1.2-15", "a will with will retain is retained", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        t.with("c", &t.connector("c").will(Will { retain: true, ..Will::new(&topic, "kept") }))?
            .0
            .vanish()?;
        ensure!(!watcher.receives(&topic, "kept")?.retain, "retain for a subscription that was there");
        ensure!(t.subscriber("late", &topic, 0)?.receives(&topic, "kept")?.retain, "not retained");
        Ok(())
    });
    s.both("3.1.2.7 MQTT-3.1.2-16", "3.1.2.7 MQTT-3.1.2-14", "a will without will retain is not", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        t.with("c", &t.connector("c").will(Will::new(&topic, "passing")))?.0.vanish()?;
        watcher.receives(&topic, "passing")?;
        t.subscriber("late", &topic, 0)?.quiet()
    });
    s.both("3.1.2.7", "3.1.2.7", "an empty will with will retain removes what is retained", |t| {
        let topic = t.topic("w");
        t.client("first")?.publish_retained(&topic, "old", 1)?;
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        watcher.receives(&topic, "old")?;
        t.with("c", &t.connector("c").will(Will { retain: true, ..Will::new(&topic, "") }))?.0.vanish()?;
        watcher.receives(&topic, "")?;
        t.subscriber("late", &topic, 0)?.quiet()
    });
    s.v5(
        "3.1.3.2 MQTT-3.1.3-10",
        "the properties of a will arrive unchanged, user properties in order",
        |t| {
            let topic = t.topic("w");
            let mut watcher = t.subscriber("watcher", &topic, 1)?;
            let properties = vec![
                property::user("b", "1"),
                property::byte(id::PAYLOAD_FORMAT_INDICATOR, 1),
                property::four(id::MESSAGE_EXPIRY_INTERVAL, 1000),
                property::user("a", "2"),
                property::string(id::CONTENT_TYPE, "text/plain"),
                property::string(id::RESPONSE_TOPIC, "answers"),
                property::user("b", "1"),
                property::data(id::CORRELATION_DATA, b"\x00\x01"),
            ];
            let will = Will { qos: 1, properties, ..Will::new(&topic, "text") };
            t.with("c", &t.connector("c").will(will))?.0.vanish()?;
            let published = watcher.receives(&topic, "text")?;
            let got = &published.properties[..];
            ensure!(got.number(id::PAYLOAD_FORMAT_INDICATOR) == Some(1), "{got:?}");
            let expiry = got.number(id::MESSAGE_EXPIRY_INTERVAL);
            ensure!(expiry.is_some_and(|left| (990..=1000).contains(&left)), "{expiry:?}");
            ensure!(got.bytes(id::CONTENT_TYPE) == Some(b"text/plain"), "{got:?}");
            ensure!(got.bytes(id::RESPONSE_TOPIC) == Some(b"answers"), "{got:?}");
            ensure!(got.bytes(id::CORRELATION_DATA) == Some(b"\x00\x01"), "{got:?}");
            ensure!(got.number(id::WILL_DELAY_INTERVAL).is_none(), "{got:?}");
            let user: Vec<_> = got.user();
            let user: Vec<_> = user.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            ensure!(user == [("b", "1"), ("a", "2"), ("b", "1")], "{user:?}");
            Ok(())
        },
    );
    s.both("3.1.2.5", "3.1.2.5", "a client gets the will of its own former connection", |t| {
        // The subscription belongs to the session, which is there when the will is published.
        let topic = t.topic("w");
        let lasting = t.connector("c").lasting(60);
        let (mut client, _) =
            t.with("c", &lasting.clone().will(Will { qos: 1, ..Will::new(&topic, "mine") }))?;
        client.subscribe(&topic, 1)?;
        client.vanish()?;
        // Connected again before the server saw the end of the first connection, it may come later.
        let (mut client, connack) = t.with("again", &lasting)?;
        ensure!(connack.session_present, "no session");
        let published = client.receives(&topic, "mine")?;
        client.acknowledge(&published)?;
        client.quiet()
    });
}

/// Will delay interval (MQTT-5.0 3.1.3.2.2).
fn delay(s: &mut Suite) {
    let apart = |t: &Bench, seconds: u32| delayed(&t.topic("w"), "late", seconds);
    s.v5("3.1.3.2.2", "a delayed will is published after its delay", move |t| {
        let mut watcher = t.subscriber("watcher", &t.topic("w"), 0)?;
        t.with("c", &t.connector("c").lasting(60).will(apart(t, 1)))?.0.vanish()?;
        let started = Instant::now();
        watcher.quiet()?;
        watcher.receives(&t.topic("w"), "late")?;
        ensure!(started.elapsed() >= Duration::from_millis(800), "after {:?}", started.elapsed());
        Ok(())
    });
    s.v5("3.1.3.2.2", "a delayed will is published after the session, where that ends first", move |t| {
        let mut watcher = t.subscriber("watcher", &t.topic("w"), 0)?;
        t.with("c", &t.connector("c").lasting(1).will(apart(t, 60)))?.0.vanish()?;
        let started = Instant::now();
        watcher.receives(&t.topic("w"), "late")?;
        ensure!(started.elapsed() >= Duration::from_millis(800), "after {:?}", started.elapsed());
        Ok(())
    });
    s.v5("3.1.3.2.2", "a session that ends with its connection publishes a delayed will at once", move |t| {
        let mut watcher = t.subscriber("watcher", &t.topic("w"), 0)?;
        t.with("c", &t.connector("c").will(apart(t, 60)))?.0.vanish()?;
        watcher.receives(&t.topic("w"), "late")?;
        Ok(())
    });
    s.v5(
        "3.1.3.2.2 MQTT-3.1.3-9",
        "a client that comes back in time keeps its delayed will from being published after",
        move |t| {
            let mut watcher = t.subscriber("watcher", &t.topic("w"), 0)?;
            t.with("c", &t.connector("c").lasting(60).will(apart(t, 1)))?.0.vanish()?;
            let (mut client, _) = t.with("again", &t.connector("c").lasting(60))?;
            std::thread::sleep(Duration::from_millis(1500));
            watcher.quiet()?;
            client.quiet()
        },
    );
    s.v5(
        "3.1.3.2.2 MQTT-3.1.3-9",
        "a takeover that resumes keeps a delayed will from being published after",
        move |t| {
            let mut watcher = t.subscriber("watcher", &t.topic("w"), 0)?;
            let (mut first, _) = t.with("first", &t.connector("c").lasting(60).will(apart(t, 1)))?;
            let (mut second, _) = t.with("second", &t.connector("c").lasting(60))?;
            first.refused(0x8E)?;
            std::thread::sleep(Duration::from_millis(1500));
            watcher.quiet()?;
            second.quiet()
        },
    );
    s.v5("3.1.3.2.2", "a clean start ends the session and publishes its delayed will", move |t| {
        let mut watcher = t.subscriber("watcher", &t.topic("w"), 0)?;
        t.with("c", &t.connector("c").lasting(60).will(apart(t, 60)))?.0.vanish()?;
        watcher.quiet()?;
        let (mut client, _) = t.with("again", &t.connector("c"))?;
        watcher.receives(&t.topic("w"), "late")?;
        client.quiet()
    });
    s.v5("3.1.3.2.2", "a DISCONNECT with 0x04 starts the delay: published after it", move |t| {
        let mut watcher = t.subscriber("watcher", &t.topic("w"), 0)?;
        let (mut client, _) = t.with("c", &t.connector("c").lasting(60).will(apart(t, 1)))?;
        client.send(&packet(DISCONNECT[0], &[&[0x04]]))?;
        client.closed()?;
        watcher.quiet()?;
        watcher.receives(&t.topic("w"), "late")?;
        Ok(())
    });
    s.v5("3.1.3.2.4", "the expiry of a will begins when it is published, after its delay", |t| {
        let topic = t.topic("w");
        let mut watcher = t.subscriber("watcher", &topic, 0)?;
        let mut will = delayed(&topic, "late", 2);
        will.properties.push(property::four(id::MESSAGE_EXPIRY_INTERVAL, 1));
        t.with("c", &t.connector("c").lasting(60).will(will))?.0.vanish()?;
        watcher.receives(&topic, "late")?;
        Ok(())
    });
}
