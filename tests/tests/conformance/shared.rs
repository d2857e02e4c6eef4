//! Shared subscriptions: MQTT-5.0 4.8.2.

use anyhow::{Result, ensure};
use causeway_tests::mqtt::wire::{ack, ack_with, first};

use crate::suite::{Bench, Suite};

fn share(t: &Bench, group: &str, filter: &str) -> String {
    format!("$share/{group}/{}", t.topic(filter))
}

pub(crate) fn cases(s: &mut Suite) {
    s.v5("4.8.2 MQTT-4.8.2-4", "each message goes to one member of a group, and members share", |t| {
        let filter = share(t, "g", "/#");
        let mut members = Vec::new();
        for n in 0..3 {
            members.push(t.subscriber(&format!("m{n}"), &filter, 1)?);
        }
        let mut client = t.client("c")?;
        for n in 0..60 {
            client.publish(&t.topic("/x"), n.to_string(), 1)?;
        }
        let mut all = Vec::new();
        for member in &mut members {
            let got = drain(member)?;
            ensure!(!got.is_empty(), "a member got nothing");
            all.extend(got);
        }
        all.sort_by_key(|text| text.parse::<u32>().unwrap_or(u32::MAX));
        ensure!(all == (0..60).map(|n| n.to_string()).collect::<Vec<_>>(), "{all:?}");
        Ok(())
    });
    s.v5("4.8.2", "groups do not share with each other, nor with ordinary subscriptions", |t| {
        let mut one = t.subscriber("one", &share(t, "g1", "/x"), 0)?;
        let mut two = t.subscriber("two", &share(t, "g2", "/x"), 0)?;
        let mut plain = t.subscriber("plain", &t.topic("/x"), 0)?;
        t.client("c")?.publish(&t.topic("/x"), "x", 0)?;
        for client in [&mut one, &mut two, &mut plain] {
            client.receives(&t.topic("/x"), "x")?;
            client.quiet()?;
        }
        Ok(())
    });
    s.v5("4.8.2", "one client with a shared and an ordinary subscription gets the message for each", |t| {
        let topic = t.topic("/x");
        let mut client = t.subscriber("c", &share(t, "g", "/x"), 0)?;
        client.subscribe(&topic, 0)?;
        t.client("other")?.publish(&topic, "x", 0)?;
        client.receives(&topic, "x")?;
        client.receives(&topic, "x")?;
        client.quiet()
    });
    s.v5("4.8.2 MQTT-4.8.2-3", "a shared subscription keeps to the QoS that it was granted", |t| {
        let mut member = t.subscriber("m", &share(t, "g", "/x"), 1)?;
        t.client("c")?.publish(&t.topic("/x"), "x", 2)?;
        ensure!(member.receives(&t.topic("/x"), "x")?.qos == 1, "another QoS");
        Ok(())
    });
    s.v5("4.8.2", "retained messages are not sent to a shared subscription", |t| {
        t.client("c")?.publish_retained(&t.topic("/x"), "r", 1)?;
        let mut member = t.subscriber("m", &share(t, "g", "/x"), 1)?;
        member.quiet()
    });
    s.v5("4.8.2", "a member that unsubscribes gets nothing more, the others all of it", |t| {
        let filter = share(t, "g", "/x");
        let mut stays = t.subscriber("stays", &filter, 1)?;
        let mut leaves = t.subscriber("leaves", &filter, 1)?;
        ensure!(leaves.unsubscribe(&[&filter, &filter])? == [0, 0x11], "other reasons");
        let mut client = t.client("c")?;
        for n in 0..10 {
            client.publish(&t.topic("/x"), n.to_string(), 1)?;
        }
        leaves.quiet()?;
        ensure!(drain(&mut stays)?.len() == 10, "not all");
        Ok(())
    });
    s.v5("4.8.2 MQTT-4.8.2-5", "what a member that goes for good did not acknowledge reaches another", |t| {
        let filter = share(t, "g", "/x");
        let mut first_member = t.subscriber("first", &filter, 1)?;
        let mut client = t.client("c")?;
        for n in 0..6 {
            client.publish(&t.topic("/x"), n.to_string(), 1)?;
        }
        for _ in 0..6 {
            first_member.published()?;
        }
        let mut second = t.subscriber("second", &filter, 1)?;
        first_member.vanish()?;
        let mut got = Vec::new();
        for _ in 0..6 {
            let published = second.published()?;
            got.push(String::from_utf8_lossy(&published.payload).into_owned());
            second.acknowledge(&published)?;
        }
        got.sort();
        ensure!(got == ["0", "1", "2", "3", "4", "5"], "{got:?}");
        second.quiet()
    });
    s.v5("4.8.2 MQTT-4.8.2-6", "what a member refuses is not sent to another", |t| {
        let filter = share(t, "g", "/x");
        let mut one = t.subscriber("one", &filter, 1)?;
        let mut two = t.subscriber("two", &filter, 1)?;
        t.client("c")?.publish(&t.topic("/x"), "x", 1)?;
        let mut got = 0;
        for member in [&mut one, &mut two] {
            member.send(&[0xC0, 0])?;
            let packet = member.packet()?;
            if packet.first == first::PINGRESP {
                continue;
            }
            got += 1;
            let published = packet.publish(t.version)?;
            member.expect(&[0xD0, 0])?;
            member.send(&ack_with(first::PUBACK, published.packet_identifier, 0x80))?;
        }
        ensure!(got == 1, "{got} members got it");
        one.quiet()?;
        two.quiet()
    });
    s.v5("4.8.2", "a share with a filter of wildcards and subscription identifier works", |t| {
        let number = causeway_tests::mqtt::property::subscription_identifier(11);
        let mut member = t.client("m")?;
        member.subscribe_with(&[number], &share(t, "g", "/+/#"), 0)?;
        t.client("c")?.publish(&t.topic("/a/b"), "x", 0)?;
        let published = member.receives(&t.topic("/a/b"), "x")?;
        let numbers = causeway_tests::mqtt::property::Properties::numbers(&published.properties[..], 0x0B);
        ensure!(numbers == [11], "{numbers:?}");
        Ok(())
    });
    s.v4("4.7", "$share is a shared subscription before 5.0, too", |t| {
        let filter = share(t, "g", "/x");
        let mut one = t.subscriber("one", &filter, 0)?;
        let mut two = t.subscriber("two", &filter, 0)?;
        let mut client = t.client("c")?;
        for n in 0..10 {
            client.publish(&t.topic("/x"), n.to_string(), 0)?;
        }
        let (one, two) = (drain(&mut one)?, drain(&mut two)?);
        ensure!(!one.is_empty() && !two.is_empty() && one.len() + two.len() == 10, "{one:?} and {two:?}");
        Ok(())
    });
}

/// Everything that has come, acknowledged: up to the PINGRESP.
fn drain(client: &mut causeway_tests::mqtt::Client) -> Result<Vec<String>> {
    let version = client.version();
    client.send(&[0xC0, 0])?;
    let mut got = Vec::new();
    loop {
        let packet = client.packet()?;
        if packet.first == first::PINGRESP {
            return Ok(got);
        }
        let published = packet.publish(version)?;
        if published.qos == 1 {
            client.send(&ack(first::PUBACK, published.packet_identifier))?;
        }
        got.push(String::from_utf8_lossy(&published.payload).into_owned());
    }
}
