//! Topic names and filters: MQTT-3.1.1 4.7, MQTT-5.0 4.7, and shared subscriptions: MQTT-5.0 4.8.2.

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::wire::{first, subscribe};

use crate::suite::Suite;

/// Filter, topic, whether it matches. `T` stands for a level of the case's own.
const MATCHES: &[(&str, &str, bool)] = &[
    ("T/tennis/player1/#", "T/tennis/player1", true),
    ("T/tennis/player1/#", "T/tennis/player1/ranking", true),
    ("T/tennis/player1/#", "T/tennis/player1/score/wimbledon", true),
    ("T/tennis/player1/#", "T/tennis/player10", false),
    ("T/#", "T", true),
    ("T/#", "T/", true),
    ("T/tennis/+", "T/tennis/player1", true),
    ("T/tennis/+", "T/tennis/player1/ranking", false),
    ("T/tennis/+", "T/tennis", false),
    ("T/+", "T", false),
    ("T/+", "T/", true),
    ("T/+/player1", "T/tennis/player1", true),
    ("T/+/player1", "T//player1", true),
    ("T/+/+", "T/a/b", true),
    ("T/+/+", "T/a", false),
    ("T/+/#", "T/a", true),
    ("T/+/#", "T", false),
    ("T/a", "T/a/", false),
    ("T/a/", "T/a", false),
    ("/T", "/T", true),
    ("/T", "T", false),
    ("T", "/T", false),
    ("/+", "/T", true),
    ("+/+", "/T", true),
    ("+", "/T", false),
    ("+/T", "x/T", true),
    ("T//b", "T//b", true),
    ("T//b", "T/b", false),
    ("T/A", "T/a", false),
    ("T/a b", "T/a b", true),
    ("T/a", "T/ a", false),
    ("T/é", "T/e\u{301}", false),
    ("T/\u{1F980}/+", "T/\u{1F980}/x", true),
    ("T/$x", "T/$x", true),
    ("T/+", "T/$x", true),
    ("T/#", "T/$x/y", true),
    ("$T/a", "$T/a", true),
    ("$T/+", "$T/a", true),
    ("$T/#", "$T/a/b", true),
    ("+/a", "$T/a", false),
    ("#", "$T/a", false),
    ("+/#", "$T", false),
];

pub(crate) fn cases(s: &mut Suite) {
    for (n, &(filter, topic, matches)) in MATCHES.iter().enumerate() {
        let word = if matches { "matches" } else { "does not match" };
        let (v4, v5) = if topic.starts_with('$') {
            ("4.7.2 MQTT-4.7.2-1", "4.7.2 MQTT-4.7.2-1")
        } else if filter.contains('#') {
            ("4.7.1.2 MQTT-4.7.1-2", "4.7.1.2 MQTT-4.7.1-1")
        } else if filter.contains('+') {
            ("4.7.1.3 MQTT-4.7.1-3", "4.7.1.3 MQTT-4.7.1-2")
        } else {
            ("4.7.3 MQTT-4.7.3-4", "4.7.3 MQTT-4.7.3-4")
        };
        s.both(v4, v5, format!("{n}: {filter} {word} {topic}"), move |t| {
            let own = t.topic(&format!("n{n}"));
            let (filter, topic) = (filter.replace('T', &own), topic.replace('T', &own));
            let mut watcher = t.subscriber("watcher", &filter, 0)?;
            t.client("c")?.publish(&topic, "x", 0)?;
            if !own_level(&filter, &own) {
                // A filter of wildcards sees what other cases publish as well.
                return sees(&mut watcher, &topic, matches);
            }
            if matches {
                watcher.receives(&topic, "x")?;
            }
            watcher.quiet()
        });
    }
    filters(s);
    shared(s);
}

/// True where nothing of other cases can match.
fn own_level(filter: &str, own: &str) -> bool {
    filter.split('/').any(|level| level.trim_start_matches('$') == own)
}

/// Takes everything up to the PINGRESP and looks for the topic.
fn sees(watcher: &mut causeway_tests::mqtt::Client, topic: &str, wanted: bool) -> Result<()> {
    let version = watcher.version();
    watcher.send(&[0xC0, 0])?;
    let mut seen = false;
    loop {
        let packet = watcher.packet()?;
        if packet.first == first::PINGRESP {
            break;
        }
        let published = packet.publish(version)?;
        ensure!(!published.topic.starts_with('$'), "{} came", published.topic);
        seen |= published.topic == topic;
    }
    ensure!(seen == wanted, "seen: {seen}");
    Ok(())
}

fn filters(s: &mut Suite) {
    s.both(
        "4.7.1.2 MQTT-4.7.1-2",
        "4.7.1.2 MQTT-4.7.1-1",
        "a # that is not the last whole level is refused",
        |t| {
            for filter in ["a#", "#/a", "a/#/b", "##", "a/b#", "#a", "a/#b", "/#/", "+#", "#+"] {
                let mut client = t.client("c")?;
                client.send(&subscribe(t.version, 7, &[(filter, 0)]))?;
                client.refused(0x8F).context(filter)?;
            }
            Ok(())
        },
    );
    s.both("4.7.1.3 MQTT-4.7.1-3", "4.7.1.3 MQTT-4.7.1-2", "a + that is not a whole level is refused", |t| {
        for filter in ["a+", "+a", "a/+b", "a/b+/c", "++", "/++/", "a/+#", "+a/b"] {
            let mut client = t.client("c")?;
            client.send(&subscribe(t.version, 7, &[(filter, 0)]))?;
            client.refused(0x8F).context(filter)?;
        }
        Ok(())
    });
    s.both("4.7.1", "4.7.1", "every legal filter is granted", |t| {
        let mut client = t.client("c")?;
        for filter in ["/", "//", "+/+/+", "/+", "+/", "$SYS/none/#", "$x/+", "a b", " ", "é/#"] {
            let own = format!("{filter}/{}", t.topic("z")).replace("#/", "");
            ensure!(client.try_subscribe(&[(&own, 0)])? == [0], "{own}");
        }
        Ok(())
    });
    s.both("4.7.3", "4.7.3", "a topic of a hundred levels passes", |t| {
        let topic = format!("{}{}", t.topic(""), "/l".repeat(99));
        let mut watcher = t.subscriber("watcher", &topic.replacen("/l", "/+", 50), 0)?;
        t.client("c")?.publish(&topic, "deep", 0)?;
        watcher.receives(&topic, "deep")?;
        Ok(())
    });
    s.both("4.7.2", "4.7.2", "# does not see $SYS, a filter of $SYS may be subscribed", |t| {
        let mut client = t.client("c")?;
        ensure!(client.try_subscribe(&[("$SYS/no/such/topic", 0)])? == [0], "not granted");
        client.quiet()
    });
    s.both("4.7.3", "4.7.3", "levels of nothing are levels", |t| {
        let base = t.topic("");
        let topic = format!("{base}////");
        let mut exact = t.subscriber("exact", &topic, 0)?;
        let mut plus = t.subscriber("plus", &format!("{base}/+/+/+/+"), 0)?;
        let mut fewer = t.subscriber("fewer", &format!("{base}/+/+/+"), 0)?;
        t.client("c")?.publish(&topic, "x", 0)?;
        exact.receives(&topic, "x")?;
        plus.receives(&topic, "x")?;
        fewer.quiet()
    });
}

/// Shared subscriptions (MQTT-5.0 4.8.2).
fn shared(s: &mut Suite) {
    s.v5("4.8.2 MQTT-4.8.2-1", "a shared subscription without a name or filter is refused", |t| {
        for filter in ["$share//a", "$share/g", "$share/g/", "$share/", "$share//"] {
            let mut client = t.client("c")?;
            client.send(&subscribe(t.version, 7, &[(filter, 0)]))?;
            client.refused(0x8F).context(filter)?;
        }
        Ok(())
    });
    s.v5("4.8.2 MQTT-4.8.2-2", "a wildcard in the name of a shared subscription is refused", |t| {
        for filter in ["$share/+/a", "$share/#/a", "$share/g+/a", "$share/a#b/a"] {
            let mut client = t.client("c")?;
            client.send(&subscribe(t.version, 7, &[(filter, 0)]))?;
            client.refused(0x8F).context(filter)?;
        }
        Ok(())
    });
    s.v5("4.8.2", "a misplaced wildcard in the filter of a shared subscription is refused", |t| {
        for filter in ["$share/g/a#", "$share/g/#/a", "$share/g/a+"] {
            let mut client = t.client("c")?;
            client.send(&subscribe(t.version, 7, &[(filter, 0)]))?;
            client.refused(0x8F).context(filter)?;
        }
        Ok(())
    });
}
