//! Sessions: clean, resumed, taken over, expired. MQTT-3.1.1 3.1.2.4, 3.1.4 and 4.1, MQTT-5.0 the same and
//! 3.1.2.11.2.

use std::time::Duration;

use anyhow::{Result, ensure};
use causeway_tests::mqtt::property::{self, Properties, id};
use causeway_tests::mqtt::wire::{ConnAck, Connect, PINGREQ, Publish};

use crate::suite::{Bench, Suite};

fn present(connack: &ConnAck) -> Result<()> {
    ensure!(connack.session_present, "no session present");
    Ok(())
}

fn absent(connack: &ConnAck) -> Result<()> {
    ensure!(!connack.session_present, "session present");
    Ok(())
}

/// Clean off, and no expiry in 5.0.
fn unclean(t: &Bench) -> Connect {
    t.connector("c").clean(false)
}

fn lasting(t: &Bench) -> Connect {
    t.connector("c").lasting(60)
}

pub(crate) fn cases(s: &mut Suite) {
    resume(s);
    ends(s);
    takeover(s);
    queue(s);
}

fn resume(s: &mut Suite) {
    s.both("3.2.2.2 MQTT-3.2.2-3", "3.2.2.1.1 MQTT-3.2.2-3", "a first connection finds no session", |t| {
        absent(&t.with("c", &lasting(t))?.1)
    });
    s.both("3.2.2.2 MQTT-3.2.2-2", "3.2.2.1.1 MQTT-3.2.2-3", "a session that is there is said to be", |t| {
        t.with("c", &lasting(t))?.0.disconnect()?;
        present(&t.with("again", &lasting(t))?.1)
    });
    s.both(
        "3.2.2.2 MQTT-3.2.2-1",
        "3.2.2.1.1 MQTT-3.2.2-2",
        "a clean start finds none, and ends the one there was",
        |t| {
            t.with("c", &lasting(t))?.0.disconnect()?;
            let (client, connack) = t.with("clean", &t.connector("c"))?;
            absent(&connack)?;
            client.disconnect()?;
            absent(&t.with("again", &lasting(t))?.1)
        },
    );
    s.both("3.1.2.4 MQTT-3.1.2-4", "3.1.2.4 MQTT-3.1.2-5", "subscriptions go on with their session", |t| {
        let topic = t.topic("x");
        let (mut client, _) = t.with("c", &lasting(t))?;
        client.subscribe(&topic, 1)?;
        client.disconnect()?;
        let (mut client, _) = t.with("again", &lasting(t))?;
        t.client("other")?.publish(&topic, "x", 1)?;
        client.receives(&topic, "x")?;
        Ok(())
    });
    s.both("3.1.2.4 MQTT-3.1.2-6", "3.1.2.4 MQTT-3.1.2-4", "a clean start forgets subscriptions", |t| {
        let topic = t.topic("x");
        let (mut client, _) = t.with("c", &lasting(t))?;
        client.subscribe(&topic, 1)?;
        client.disconnect()?;
        let (mut client, _) = t.with("again", &t.connector("c"))?;
        t.client("other")?.publish(&topic, "x", 1)?;
        client.quiet()
    });
    s.both("3.1.2.4 MQTT-3.1.2-5", "4.1", "QoS 1 and 2 wait for a client that is away, in order", |t| {
        let topic = t.topic("x");
        let (mut client, _) = t.with("c", &lasting(t))?;
        client.subscribe(&topic, 2)?;
        client.disconnect()?;
        let mut other = t.client("other")?;
        for n in 0..16 {
            other.publish(&topic, n.to_string(), 1 + n % 2)?;
        }
        let (mut client, _) = t.with("again", &lasting(t))?;
        // All of it comes before anything is answered: the receive maximum leaves room.
        let mut all = Vec::new();
        for n in 0..16 {
            let published = client.receives(&topic, n.to_string())?;
            ensure!(published.qos == 1 + n % 2 && !published.dup, "{published:?}");
            all.push(published);
        }
        for published in &all {
            client.acknowledge(published)?;
        }
        client.quiet()
    });
    s.both("3.1.2.4", "4.1", "QoS 0 does not wait for a client that is away", |t| {
        let topic = t.topic("x");
        let (mut client, _) = t.with("c", &lasting(t))?;
        client.subscribe(&topic, 2)?;
        client.disconnect()?;
        let mut other = t.client("other")?;
        other.publish(&topic, "0", 0)?;
        other.publish(&topic, "1", 1)?;
        let (mut client, _) = t.with("again", &lasting(t))?;
        client.receives(&topic, "1")?;
        Ok(())
    });
    s.both("3.1.2.4", "4.1", "a session survives the mere end of its connection", |t| {
        let topic = t.topic("x");
        let (mut client, _) = t.with("c", &lasting(t))?;
        client.subscribe(&topic, 1)?;
        client.vanish()?;
        t.client("other")?.publish(&topic, "x", 1)?;
        let (mut client, connack) = t.with("again", &lasting(t))?;
        present(&connack)?;
        client.receives(&topic, "x")?;
        Ok(())
    });
    s.both("3.1.2.4", "4.1", "a session survives that its client breaks the protocol", |t| {
        let topic = t.topic("x");
        let (mut client, _) = t.with("c", &lasting(t))?;
        client.subscribe(&topic, 1)?;
        client.send(&[0, 0])?;
        client.refused(0x81)?;
        let (mut client, connack) = t.with("again", &lasting(t))?;
        present(&connack)?;
        t.client("other")?.publish(&topic, "x", 1)?;
        client.receives(&topic, "x")?;
        Ok(())
    });
    s.both("3.1.2.4 MQTT-3.1.2-7", "4.1", "retained messages are not part of a session", |t| {
        let topic = t.topic("x");
        let (mut client, _) = t.with("c", &lasting(t))?;
        client.publish_retained(&topic, "r", 1)?;
        client.disconnect()?;
        t.with("clean", &t.connector("c"))?.0.disconnect()?;
        t.subscriber("late", &topic, 0)?.receives(&topic, "r")?;
        Ok(())
    });
    s.both("3.1.2.4", "3.1.2.4", "a session does not send retained messages again", |t| {
        let topic = t.topic("x");
        t.client("other")?.publish_retained(&topic, "r", 1)?;
        let (mut client, _) = t.with("c", &lasting(t))?;
        client.subscribe(&topic, 0)?;
        client.receives(&topic, "r")?;
        client.disconnect()?;
        t.with("again", &lasting(t))?.0.quiet()
    });
}

fn ends(s: &mut Suite) {
    s.v5("3.1.2.11.2", "without an expiry a session ends with its connection", |t| {
        t.with("c", &unclean(t))?.0.disconnect()?;
        absent(&t.with("again", &unclean(t))?.1)?;
        let zero = unclean(t).with(property::four(id::SESSION_EXPIRY_INTERVAL, 0));
        t.with("zero", &zero)?.0.vanish()?;
        absent(&t.with("last", &unclean(t))?.1)
    });
    s.v5("3.1.2.11.2", "a session is gone after its expiry", |t| {
        t.with("c", &t.connector("c").lasting(1))?.0.disconnect()?;
        std::thread::sleep(Duration::from_millis(2500));
        absent(&t.with("again", &lasting(t))?.1)
    });
    s.v5("3.1.2.11.2 MQTT-3.1.2-23", "a session is there before its expiry", |t| {
        t.with("c", &t.connector("c").lasting(10))?.0.disconnect()?;
        std::thread::sleep(Duration::from_millis(1200));
        present(&t.with("again", &lasting(t))?.1)
    });
    s.v5("3.1.2.11.2", "an expiry counts from the end of the connection, not after its beginning", |t| {
        let (mut client, _) = t.with("c", &t.connector("c").lasting(2))?;
        std::thread::sleep(Duration::from_millis(2500));
        client.quiet()?;
        client.disconnect()?;
        present(&t.with("again", &lasting(t))?.1)
    });
    s.v5("3.1.2.11.2", "the expiry is that of the last connection", |t| {
        t.with("c", &lasting(t))?.0.disconnect()?;
        let (client, connack) = t.with("again", &unclean(t))?;
        present(&connack)?;
        client.disconnect()?;
        absent(&t.with("last", &unclean(t))?.1)
    });
    s.v5("3.1.2.11.2", "a clean start with an expiry makes a session that lasts", |t| {
        let connect = t.connector("c").with(property::four(id::SESSION_EXPIRY_INTERVAL, 60));
        t.with("c", &connect)?.0.disconnect()?;
        present(&t.with("again", &unclean(t))?.1)
    });
    s.v5("3.2.2.3.2", "an expiry that the server shortens is in the CONNACK", |t| {
        let longest = t.connector("c").with(property::four(id::SESSION_EXPIRY_INTERVAL, u32::MAX));
        let (client, connack) = t.with("c", &longest)?;
        let granted = connack.properties.number(id::SESSION_EXPIRY_INTERVAL);
        ensure!(granted != Some(0), "{granted:?}");
        client.disconnect()?;
        present(&t.with("again", &unclean(t))?.1)
    });
    s.v4("3.1.2.4 MQTT-3.1.2-6", "a clean session ends with its connection", |t| {
        t.with("c", &t.connector("c"))?.0.disconnect()?;
        absent(&t.with("again", &unclean(t))?.1)
    });
    s.v4("3.1.2.4 MQTT-3.1.2-6", "a clean session ends with the mere end of its connection", |t| {
        t.with("c", &t.connector("c"))?.0.vanish()?;
        absent(&t.with("again", &unclean(t))?.1)
    });
}

fn takeover(s: &mut Suite) {
    s.both(
        "3.1.4 MQTT-3.1.4-2",
        "3.1.4 MQTT-3.1.4-3",
        "a second connection with one identifier ends the first",
        |t| {
            let (mut first, _) = t.with("first", &t.connector("c"))?;
            let (mut second, _) = t.with("second", &t.connector("c"))?;
            first.refused(0x8E)?;
            second.quiet()
        },
    );
    s.both("3.1.4 MQTT-3.1.4-2", "3.1.4 MQTT-3.1.4-3", "a takeover that resumes finds the session", |t| {
        let topic = t.topic("x");
        let (mut first, _) = t.with("first", &lasting(t))?;
        first.subscribe(&topic, 1)?;
        let (mut second, connack) = t.with("second", &lasting(t))?;
        present(&connack)?;
        first.refused(0x8E)?;
        t.client("other")?.publish(&topic, "x", 1)?;
        second.receives(&topic, "x")?;
        Ok(())
    });
    s.both("3.1.4 MQTT-3.1.4-3", "3.1.4 MQTT-3.1.4-4", "a takeover with a clean start finds none", |t| {
        let topic = t.topic("x");
        let (mut first, _) = t.with("first", &lasting(t))?;
        first.subscribe(&topic, 1)?;
        let (mut second, connack) = t.with("second", &t.connector("c"))?;
        absent(&connack)?;
        first.refused(0x8E)?;
        t.client("other")?.publish(&topic, "x", 1)?;
        second.quiet()
    });
    s.both("3.1.4", "3.1.4", "a takeover gets what the first connection did not acknowledge", |t| {
        let topic = t.topic("x");
        let (mut first, _) = t.with("first", &lasting(t))?;
        first.subscribe(&topic, 1)?;
        t.client("other")?.publish(&topic, "x", 1)?;
        let before = first.receives(&topic, "x")?;
        let (mut second, _) = t.with("second", &lasting(t))?;
        first.refused(0x8E)?;
        let again = second.receives(&topic, "x")?;
        ensure!(again.dup && again.packet_identifier == before.packet_identifier, "{again:?}");
        Ok(())
    });
    s.both(
        "3.1.4 MQTT-3.1.4-2",
        "3.1.4 MQTT-3.1.4-3",
        "twenty takeovers in a row leave the last one connected",
        |t| {
            let mut clients = Vec::new();
            for n in 0..20 {
                clients.push(t.with(&format!("n{n}"), &lasting(t))?.0);
            }
            let mut last = clients.pop().ok_or_else(|| anyhow::anyhow!("none"))?;
            for mut client in clients {
                client.refused(0x8E)?;
            }
            last.quiet()
        },
    );
    s.both(
        "3.1.4 MQTT-3.1.4-2",
        "3.1.4 MQTT-3.1.4-3",
        "a takeover by a client of the other version works",
        |t| {
            use causeway_tests::mqtt::Version;
            let other = if t.is_v5() { Version::V311 } else { Version::V5 };
            let (mut first, _) = t.with("first", &t.connector("c"))?;
            let mut second = t.open_as("second", other)?;
            let connack = second.connect(&Connect::new(other, &t.id("c")))?;
            ensure!(connack.reason == 0, "{connack:?}");
            first.refused(0x8E)?;
            second.quiet()
        },
    );
    s.both("3.1.4", "3.1.4", "a client that reads nothing can be taken over", |t| {
        let topic = t.topic("x");
        let (mut first, _) = t.with("first", &t.connector("c"))?;
        first.subscribe(&topic, 0)?;
        let mut other = t.client("other")?;
        for _ in 0..40 {
            other.send(&Publish::new(t.version, &topic, vec![0; 200_000]).bytes())?;
        }
        other.quiet()?;
        let (mut second, _) = t.with("second", &t.connector("c"))?;
        second.quiet()
    });
}

fn queue(s: &mut Suite) {
    s.both("4.1", "4.1", "what is published while a client comes and goes arrives once each", |t| {
        let topic = t.topic("x");
        let (mut client, _) = t.with("c", &lasting(t))?;
        client.subscribe(&topic, 1)?;
        client.disconnect()?;
        let mut other = t.client("other")?;
        let mut next = 0;
        for round in 0..5 {
            for n in 0..4 {
                other.publish(&topic, (round * 4 + n).to_string(), 1)?;
            }
            let (mut client, _) = t.with("again", &lasting(t))?;
            for _ in 0..4 {
                let published = client.receives(&topic, next.to_string())?;
                client.acknowledge(&published)?;
                next += 1;
            }
            client.quiet()?;
            client.disconnect()?;
        }
        Ok(())
    });
    s.v5("4.1", "a session goes on from one version to the other and back", |t| {
        use causeway_tests::mqtt::Version;
        let topic = t.topic("x");
        let (mut client, _) = t.with("c", &lasting(t))?;
        client.subscribe(&topic, 1)?;
        client.disconnect()?;
        let mut other = t.client("other")?;
        let publish = Publish::new(t.version, &topic, "x").with(property::user("a", "b"));
        other.deliver(publish, 1)?;
        let mut old = t.open_as("old", Version::V311)?;
        present(&old.connect(&Connect::new(Version::V311, &t.id("c")).clean(false))?)?;
        let published = old.receives(&topic, "x")?;
        old.send(&PINGREQ)?;
        old.expect(&[0xD0, 0])?;
        old.disconnect()?;
        let (mut client, connack) = t.with("again", &lasting(t))?;
        present(&connack)?;
        let again = client.receives(&topic, "x")?;
        ensure!(again.dup && again.packet_identifier == published.packet_identifier, "{again:?}");
        ensure!(again.properties.user() == [("a".to_owned(), "b".to_owned())], "{again:?}");
        Ok(())
    });
}
