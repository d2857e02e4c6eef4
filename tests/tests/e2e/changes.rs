//! Bridges are changed, disabled, restarted and deleted while MQTT clients publish: what was acknowledged is
//! in Kafka once and in order, and what went on purpose stays counted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway::dev_kafka::ApiKey;
use causeway_benches::judge::Published;
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load};
use causeway_tests::{eventually, need, on_every_kafka, say, unique};
use mqttbytes::QoS;

use crate::sections::producer;

const CLIENTS: u32 = 10;
const RATE: f64 = 2_000.0;
/// Messages between one change and the next.
const STEP: u64 = 1_000;
const PATIENCE: Duration = Duration::from_mins(2);
const QUICK: &str = "reconnect_delay = 200ms";
const DISK: &str = "buffer { mode = disk, segment_bytes = 256KB }";

/// The books of what was disabled or deleted.
const PAST: &str = "past:kafka";

fn status(node: &Node, bridge: &str, wanted: &str) -> Result<String> {
    eventually(PATIENCE, || {
        let (status, reason) = node.status(bridge)?;
        need(status == wanted, || format!("{bridge} is {status} because of {reason:?}, not {wanted}"))?;
        Ok(reason)
    })
}

/// Publishers that go on until they are told to stop.
fn steady(node: &Node, prefix: &str, topic: &str, qos: QoS) -> Running {
    let mut settings = load(node.mqtt(), prefix, topic, CLIENTS, u64::MAX);
    (settings.qos, settings.rate) = (qos, Some(RATE));
    Running::start(settings)
}

/// Waits until so many more are acknowledged.
fn more(load: &Running) -> Result<()> {
    load.wait_for(load.acknowledged() + STEP, PATIENCE)
}

/// Ends a load; what its clients did, and how many messages were acknowledged, which are all.
fn end(load: Running) -> Result<(Vec<Published>, u64)> {
    load.stop();
    let published = load.join()?;
    ensure!(published.iter().all(|client| client.reconnects == 0), "a publisher lost its connection");
    let acknowledged = published.iter().map(|client| client.acknowledged.len()).sum();
    ensure!(
        published.iter().map(|client| client.sent).sum::<u64>() == acknowledged,
        "not all is acknowledged"
    );
    Ok((published, acknowledged))
}

on_every_kafka! {
    /// Compression, server, topic, batches: each changed under publishers of QoS 1 and of QoS 2, and a
    /// restart in between.
    fn changes_under_load_lose_double_and_reorder_nothing(target) {
        let kafka = target.shared()?;
        let names = ["once", "twice"];
        let topics = names.map(|name| [unique(name), unique(name)]);
        for topic in topics.iter().flatten() {
            kafka.create_topic(topic, 3)?;
        }
        let oracles = topics
            .iter()
            .map(|[first, second]| {
                Ok([Oracle::watch(&kafka.bootstrap(), first)?, Oracle::watch(&kafka.bootstrap(), second)?])
            })
            .collect::<Result<Vec<_>>>()?;
        let here = kafka.bootstrap();
        let elsewhere = here.replace("127.0.0.1", "localhost");
        let bridges = |bootstrap: &str, topic: usize, more: &str| -> String {
            let bridge = |(name, topics): (&&str, &[String; 2])| {
                producer(name, bootstrap, &format!("{name}/#"), &topics[topic], &format!("{QUICK}\n{more}"))
            };
            names.iter().zip(&topics).map(bridge).collect()
        };
        let node = Node::start(&bridges(&here, 0, ""))?;
        let loads = [
            steady(&node, "once-", "once/{client}", QoS::AtLeastOnce),
            steady(&node, "twice-", "twice/{client}", QoS::ExactlyOnce),
        ];
        let changes: [(&str, usize, &str); 7] = [
            (&here, 0, "compression = lz4"),
            (&elsewhere, 0, "compression = zstd"),
            (&here, 0, "max_linger_time = 3ms, max_batch_bytes = 20KB"),
            (&here, 1, "compression = gzip"),
            (&elsewhere, 1, ""),
            (&here, 1, "max_inflight = 1"),
            (&here, 1, "compression = snappy"),
        ];
        for (done, (bootstrap, topic, settings)) in (1..).zip(changes) {
            loads.iter().try_for_each(more)?;
            if let Some(faults) = kafka.faults() {
                // So that much is under way when the successor comes.
                faults.delay(ApiKey::Produce, Duration::from_millis(100), 10);
            }
            node.change_bridges(&bridges(bootstrap, topic, settings))?;
            node.check_books()?;
            if done % 3 == 0 {
                node.ctl(&["bridges", "restart", "once"], "")?.successful()?;
                node.ctl(&["bridges", "restart", "kafka:twice"], "")?.successful()?;
            }
        }
        loads.iter().try_for_each(more)?;
        for ((name, oracles), load) in names.iter().zip(&oracles).zip(loads) {
            let (published, total) = end(load)?;
            let books = node.settled(&format!("kafka:{name}"), PATIENCE)?;
            let [first, second] = oracles;
            let verdict = Oracle::judge_in_turn(&[first, second], &format!("{name}-"), &published)?;
            say(&format!("{name}, changed {} times on {target}: {verdict}", changes.len()));
            ensure!(verdict.is_perfect() && verdict.arrived == total && verdict.unacknowledged == 0, "{verdict}");
            ensure!((books.matched, books.success) == (total, total), "the counters are kept: {books:?}");
            ensure!(!first.records()?.is_empty() && !second.records()?.is_empty(), "one topic had everything");
        }
        Ok(())
    }

    /// L13, L14. What is published to a disabled bridge is not its business; enabled, it goes on, with
    /// counters from zero.
    fn a_disabled_bridge_takes_nothing_and_goes_on_when_it_is_enabled(target) {
        let kafka = target.shared()?;
        let topic = unique("switch");
        kafka.create_topic(&topic, 1)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let node = Node::start(&producer("switch", &kafka.bootstrap(), "s/#", &topic, QUICK))?;
        let hundred = |prefix: &str| Running::start(load(node.mqtt(), prefix, "s/{client}", 1, 100)).join();
        let before = hundred("before-")?;
        for command in ["disable", "disable"] {
            node.ctl(&["bridges", command, "switch"], "")?.successful()?;
        }
        status(&node, "kafka:switch", "stopped")?;
        let refused = node.ctl(&["bridges", "restart", "switch"], "")?;
        ensure!(!refused.status.success() && refused.stderr.contains("enable it first"), "{}", refused.stderr);
        let meanwhile = hundred("meanwhile-")?;
        ensure!(meanwhile[0].acknowledged.len() == 100, "publishers are served without the bridge");
        let books = node.ledger("kafka:switch")?;
        ensure!(books.matched == 0, "disabling sets the counters back: {books:?}");
        let past = node.ledger(PAST)?;
        ensure!((past.matched, past.success, past.imbalance()) == (100, 100, 0), "{past:?}");
        for command in ["enable", "enable"] {
            node.ctl(&["bridges", command, "switch"], "")?.successful()?;
        }
        status(&node, "kafka:switch", "connected")?;
        let after = hundred("after-")?;
        let books = node.settled("kafka:switch", PATIENCE)?;
        ensure!((books.matched, books.success) == (100, 100), "{books:?}");
        let keys: Vec<_> =
            oracle.records()?.into_iter().map(|(_, record)| record.record.key.unwrap_or_default()).collect();
        let of = |prefix: &str| keys.iter().filter(|key| key.starts_with(prefix.as_bytes())).count();
        ensure!([of("before-"), of("meanwhile-"), of("after-")] == [100, 0, 100], "{} records", keys.len());
        drop((before, after));
        Ok(())
    }

    /// L16. Two bridges into one topic, one of which is deleted under load: the other one notices nothing.
    fn a_bridge_that_is_deleted_leaves_its_neighbour_alone(target) {
        let kafka = target.shared()?;
        let [topic, gone] = [unique("shared"), unique("shared")];
        kafka.create_topic(&topic, 3)?;
        kafka.create_topic(&gone, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let stays = producer("stays", &kafka.bootstrap(), "n/#", &topic, QUICK);
        let goes = producer("goes", &kafka.bootstrap(), "g/#", &topic, QUICK);
        let node = Node::start(&format!("{stays}\n{goes}"))?;
        let published = Running::start(load(node.mqtt(), "goes-", "g/{client}", 1, 100)).join()?;
        ensure!(published[0].acknowledged.len() == 100, "{published:?}");
        let load = steady(&node, "stays-", "n/{client}", QoS::AtLeastOnce);
        more(&load)?;
        let deleted = node.ctl(&["bridges", "delete", "goes"], "")?.successful()?;
        ensure!(deleted.stdout.contains("kafka:goes deleted, it held nothing"), "{}", deleted.stdout);
        more(&load)?;
        let (_, total) = end(load)?;
        status(&node, "kafka:stays", "connected")?;
        let books = node.settled("kafka:stays", PATIENCE)?;
        ensure!((books.matched, books.success) == (total, total), "{books:?}");
        ensure!(node.status("kafka:goes").is_err(), "the bridge is still there");
        let past = node.ledger(PAST)?;
        ensure!((past.matched, past.success) == (100, 100), "{past:?}");
        let records = oracle.records()?;
        ensure!(records.len() as u64 == total + 100, "{} records", records.len());
        Ok(())
    }

    /// A bridge that holds messages is deleted only by force, which says how much goes and keeps it in the
    /// books.
    fn a_bridge_that_holds_messages_is_deleted_by_force_and_stays_in_the_books(target) {
        let mut kafka = target.own()?;
        let topic = unique("held");
        kafka.create_topic(&topic, 1)?;
        let node = Node::start(&producer("held", &kafka.bootstrap(), "h/#", &topic, QUICK))?;
        status(&node, "kafka:held", "connected")?;
        kafka.stop()?;
        let waiting = Running::start(load(node.mqtt(), "waits-", "h/{client}", 2, 50));
        let mut nobody = load(node.mqtt(), "nobody-", "h/{client}", 1, 70);
        nobody.qos = QoS::AtMostOnce;
        Running::start(nobody).join()?;
        eventually(PATIENCE, || {
            let books = node.ledger("kafka:held")?;
            need(books.queuing + books.inflight == 170, || format!("not all is held: {books:?}"))
        })?;
        let refused = node.ctl(&["bridges", "delete", "held"], "")?;
        ensure!(
            !refused.status.success() && refused.stderr.contains("holds 170 records") && refused.stderr.contains("--force"),
            "{}{}", refused.stdout, refused.stderr
        );
        let books = node.ledger("kafka:held")?;
        ensure!(books.queuing + books.inflight == 170 && waiting.acknowledged() == 0, "a refused delete changed something: {books:?}");
        let deleted = node.ctl(&["bridges", "delete", "held", "--force", "--json"], "")?.successful()?;
        let told: serde_json::Value = serde_json::from_str(&deleted.stdout)?;
        let count = |field: &str| told[field].as_u64().with_context(|| format!("no {field} in {told}"));
        ensure!([count("records")?, count("dropped")?, count("failed")?] == [170, 70, 100], "{told}");
        let past = node.ledger(PAST)?;
        ensure!(
            (past.matched, past.dropped_resource_stopped, past.failed, past.imbalance()) == (170, 70, 100, 0),
            "{past:?}"
        );
        // A publisher of MQTT 3.1.1 cannot be told that it failed.
        let published = waiting.join()?;
        ensure!(published.iter().all(|client| client.acknowledged.len() == 50), "publishers are left waiting");
        ensure!(node.ctl(&["bridges", "show", "held"], "")?.stderr.contains("no bridge"), "it is still there");
        Ok(())
    }

    /// L7. A disabled bridge keeps its buffer on the disk, says so, and goes on from there.
    fn a_disabled_bridge_keeps_its_disk_buffer_and_sends_it_when_it_is_enabled(target) {
        let mut kafka = target.own()?;
        let topic = unique("kept");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let node = Node::start(&producer("kept", &kafka.bootstrap(), "k/#", &topic, &format!("{QUICK}\n{DISK}")))?;
        status(&node, "kafka:kept", "connected")?;
        kafka.stop()?;
        let published = Running::start(load(node.mqtt(), "device-", "k/{client}", CLIENTS, 50)).join()?;
        ensure!(published.iter().all(|client| client.acknowledged.len() == 50), "{published:?}");
        let disabled = node.ctl(&["bridges", "disable", "kept"], "")?.successful()?;
        ensure!(disabled.stdout.contains("500 records wait in its disk buffer"), "{}", disabled.stdout);
        let books = node.ledger("kafka:kept")?;
        ensure!((books.matched, books.queuing, books.imbalance()) == (500, 500, 0), "{books:?}");
        ensure!(books.queuing_bytes > 500 * 100, "{books:?}");
        let refused = node.ctl(&["bridges", "delete", "kept"], "")?;
        ensure!(!refused.status.success() && refused.stderr.contains("holds 500 records"), "{}", refused.stderr);
        kafka.start_again()?;
        node.ctl(&["bridges", "enable", "kept"], "")?.successful()?;
        let verdict = oracle.judge("device-", &published)?;
        ensure!(verdict.is_perfect() && verdict.arrived == 500, "{verdict}");
        let books = node.settled("kafka:kept", PATIENCE)?;
        ensure!((books.matched, books.success) == (500, 500), "{books:?}");
        Ok(())
    }

    /// With a disk buffer the successor takes over the directory; publishers notice nothing.
    fn a_bridge_with_a_disk_buffer_changes_under_load(target) {
        let kafka = target.shared()?;
        let topic = unique("stored");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let here = kafka.bootstrap();
        let elsewhere = here.replace("127.0.0.1", "localhost");
        let bridge = |bootstrap: &str, more: &str| {
            producer("stored", bootstrap, "st/#", &topic, &format!("{QUICK}\n{more}"))
        };
        let node = Node::start(&bridge(&here, DISK))?;
        let load = steady(&node, "device-", "st/{client}", QoS::ExactlyOnce);
        let lz4 = format!("{DISK}, compression = lz4");
        let linger = format!("{DISK}, max_linger_time = 3ms");
        // Into memory, and back to the disk, as well.
        for (bootstrap, settings) in
            [(&here, lz4.as_str()), (&elsewhere, &linger), (&here, "compression = zstd"), (&here, DISK)]
        {
            more(&load)?;
            // What the disk holds goes before what is in memory: until it has, the next change is refused,
            // and nothing has changed.
            let changed = eventually(PATIENCE, || match node.change_bridges(&bridge(bootstrap, settings)) {
                Err(error) if format!("{error:#}").contains("is not sent yet; change it again") => Err(error),
                changed => Ok(changed),
            });
            changed??;
            node.check_books()?;
            node.ctl(&["bridges", "restart", "stored"], "")?.successful()?;
        }
        more(&load)?;
        let (published, total) = end(load)?;
        let books = node.settled("kafka:stored", PATIENCE)?;
        ensure!((books.matched, books.success) == (total, total), "{total}: {books:?}");
        let verdict = oracle.judge("device-", &published)?;
        say(&format!("disk buffer, changed 8 times on {target}: {verdict}"));
        ensure!(verdict.is_perfect() && verdict.arrived == total, "{verdict}");
        Ok(())
    }

    /// What was acknowledged from the disk and goes by force is counted.
    fn a_disk_buffer_that_is_deleted_by_force_stays_in_the_books(target) {
        let mut kafka = target.own()?;
        let topic = unique("forced");
        kafka.create_topic(&topic, 1)?;
        let node = Node::start(&producer("forced", &kafka.bootstrap(), "f/#", &topic, &format!("{QUICK}\n{DISK}")))?;
        status(&node, "kafka:forced", "connected")?;
        let before = Running::start(load(node.mqtt(), "before-", "f/{client}", 1, 30)).join()?;
        node.settled("kafka:forced", PATIENCE)?;
        kafka.stop()?;
        let after = Running::start(load(node.mqtt(), "after-", "f/{client}", 1, 120)).join()?;
        ensure!(before[0].acknowledged.len() + after[0].acknowledged.len() == 150, "not all is acknowledged");
        let deleted = node.ctl(&["bridges", "delete", "forced", "--force", "--json"], "")?.successful()?;
        let told: serde_json::Value = serde_json::from_str(&deleted.stdout)?;
        ensure!(told["records"] == 120 && told["dropped"] == 120 && told["failed"] == 0, "{told}");
        let past = node.ledger(PAST)?;
        ensure!(
            (past.matched, past.success, past.dropped_resource_stopped, past.imbalance()) == (150, 30, 120, 0),
            "{past:?}"
        );
        // One of that name begins with nothing.
        let again = producer("forced", &kafka.bootstrap(), "f/#", &topic, &format!("{QUICK}\n{DISK}"));
        node.ctl(&["bridges", "create", "-"], &again)?.successful()?;
        let books = node.ledger("kafka:forced")?;
        ensure!((books.matched, books.queuing) == (0, 0), "{books:?}");
        Ok(())
    }
}
