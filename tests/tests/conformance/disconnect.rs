//! PINGREQ, DISCONNECT and AUTH: MQTT-3.1.1 3.12 to 3.14, MQTT-5.0 3.12 to 3.15.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::property::{self, id};
use causeway_tests::mqtt::wire::{DISCONNECT, PINGREQ, Publish, first, packet};

use crate::suite::{Bench, Suite};

/// DISCONNECT with a session expiry interval.
fn expiring(seconds: u32) -> Vec<u8> {
    let section = property::section(&[property::four(id::SESSION_EXPIRY_INTERVAL, seconds)]);
    packet(first::DISCONNECT, &[&[0], &section])
}

pub(crate) fn cases(s: &mut Suite) {
    s.both("3.12.4 MQTT-3.12.4-1", "3.12.4 MQTT-3.12.4-1", "PINGREQ is answered by d0 00", |t| {
        let mut client = t.client("c")?;
        for _ in 0..10 {
            client.send(&PINGREQ)?;
            client.expect(&[0xD0, 0])?;
        }
        Ok(())
    });
    s.both("3.12.4 MQTT-3.12.4-1", "3.12.4 MQTT-3.12.4-1", "each of a thousand PINGREQs is answered", |t| {
        let mut client = t.client("c")?;
        client.send(&PINGREQ.repeat(1000))?;
        for _ in 0..1000 {
            client.expect(&[0xD0, 0])?;
        }
        client.quiet()
    });
    s.both("3.14.4", "3.14.4", "DISCONNECT is answered by the end of the connection alone", |t| {
        t.client("c")?.disconnect()
    });
    s.both(
        "3.14.4 MQTT-3.14.4-2",
        "3.14.4 MQTT-3.14.4-2",
        "nothing behind a DISCONNECT has an effect",
        |t| {
            let topic = t.topic("x");
            let mut watcher = t.subscriber("watcher", &topic, 0)?;
            let mut client = t.client("c")?;
            let behind = Publish::new(t.version, &topic, "late").bytes();
            client.push(&[&DISCONNECT[..], &behind].concat());
            client.closed()?;
            watcher.quiet()
        },
    );
    s.both("3.14.4", "3.14.4", "what came before a DISCONNECT in one segment has its effect", |t| {
        let topic = t.topic("x");
        let mut watcher = t.subscriber("watcher", &topic, 1)?;
        let mut client = t.client("c")?;
        let before = Publish::new(t.version, &topic, "early").qos(1, 7).bytes();
        client.send(&[&before, &DISCONNECT[..]].concat())?;
        watcher.receives(&topic, "early")?;
        Ok(())
    });
    s.v5("3.14.2.1", "DISCONNECT with every reason code that a client has is taken", |t| {
        for reason in [0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99] {
            for bytes in [packet(0xE0, &[&[reason]]), packet(0xE0, &[&[reason, 0]])] {
                let mut client = t.client("c")?;
                client.send(&bytes)?;
                client.closed().with_context(|| format!("reason {reason:#04x}"))?;
            }
        }
        Ok(())
    });
    s.v5(
        "3.14.2.1",
        "DISCONNECT with a reason code that only servers have, or nobody, is a protocol error",
        |t| {
            for reason in [
                0x01, 0x02, 0x10, 0x18, 0x19, 0x84, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x9A, 0x9B, 0x9D,
                0xA2, 0xFF,
            ] {
                let mut client = t.client("c")?;
                client.send(&packet(0xE0, &[&[reason]]))?;
                client.refused(0x82).with_context(|| format!("reason {reason:#04x}"))?;
            }
            Ok(())
        },
    );
    s.v5(
        "3.14.2.2.2",
        "a session that ends with its connection cannot be given an expiry by DISCONNECT",
        |t| {
            let mut client = t.client("c")?;
            client.send(&expiring(10))?;
            client.refused(0x82)
        },
    );
    s.v5("3.14.2.2.2", "an expiry of 0 in DISCONNECT is no news to such a session", |t| {
        let mut client = t.client("c")?;
        client.send(&expiring(0))?;
        client.closed()
    });
    s.v5("3.14.2.2.2", "DISCONNECT with expiry 0 ends the session", |t| {
        let lasting = t.connector("c").lasting(60);
        let (mut client, _) = t.with("c", &lasting)?;
        client.subscribe(&t.topic("x"), 1)?;
        client.send(&expiring(0))?;
        client.closed()?;
        let (mut client, connack) = t.with("again", &lasting)?;
        ensure!(!connack.session_present, "the session is there");
        client.quiet()
    });
    s.v5("3.14.2.2.2", "DISCONNECT makes a session last longer", |t| {
        let (mut client, _) = t.with("c", &t.connector("c").lasting(1))?;
        client.send(&expiring(60))?;
        client.closed()?;
        std::thread::sleep(Duration::from_millis(1800));
        let (_client, connack) = t.with("again", &t.connector("c").lasting(60))?;
        ensure!(connack.session_present, "the session is gone");
        Ok(())
    });
    s.v5("3.14.2.2.2", "DISCONNECT makes a session shorter: gone after its new expiry", |t| {
        let (mut client, _) = t.with("c", &t.connector("c").lasting(60))?;
        client.send(&expiring(1))?;
        client.closed()?;
        std::thread::sleep(Duration::from_millis(2500));
        let (_client, connack) = t.with("again", &t.connector("c").lasting(60))?;
        ensure!(!connack.session_present, "the session is there");
        Ok(())
    });
    auth(s);
}

/// AUTH without a method that was agreed on (MQTT-5.0 3.15, 4.12).
fn auth(s: &mut Suite) {
    let with = |reason: u8, properties: &[Vec<u8>]| {
        packet(first::AUTH, &[&[reason], &property::section(properties)])
    };
    let refused = |t: &Bench, bytes: &[u8]| -> Result<()> {
        let mut client = t.client("c")?;
        client.send(bytes)?;
        client.refused(0x82)
    };
    let method = || property::string(id::AUTHENTICATION_METHOD, "SCRAM-SHA-256");
    s.v5("4.12", "AUTH without a method in CONNECT is a protocol error", move |t| {
        for reason in [0x18, 0x19] {
            refused(t, &with(reason, &[method()]))?;
            refused(t, &with(reason, &[method(), property::data(id::AUTHENTICATION_DATA, b"x")]))?;
        }
        Ok(())
    });
    s.v5(
        "3.15.2.1 MQTT-3.15.2-1",
        "AUTH with a reason code that a client does not send is a protocol error",
        move |t| {
            for reason in [0x00, 0x01, 0x04, 0x10, 0x1A, 0x80, 0x8C, 0xFF] {
                refused(t, &with(reason, &[method()]))?;
            }
            Ok(())
        },
    );
    s.v5("3.15.2.1", "an empty AUTH, which means success, is a protocol error from a client", move |t| {
        refused(t, &[first::AUTH, 0])
    });
    s.v5("3.15.2.2.2", "AUTH without an authentication method is a protocol error", move |t| {
        refused(t, &with(0x18, &[]))?;
        refused(t, &with(0x18, &[property::data(id::AUTHENTICATION_DATA, b"x")]))
    });
}
