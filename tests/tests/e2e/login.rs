//! Bridges that have to log in.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway_tests::kafka::SASL_USER;
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load};
use causeway_tests::{eventually, need, on_every_kafka, unique};

use crate::sections::producer;

const SOON: Duration = Duration::from_secs(30);

fn with_password(bridge: &str, password: &str) -> String {
    let (user, _) = SASL_USER;
    let login =
        format!("authentication {{ mechanism = plain, username = {user}, password = \"{password}\" }}");
    bridge.replace("local_topic", &format!("{login}\n          local_topic"))
}

fn status(node: &Node) -> Result<(String, String)> {
    let stats = node.stats()?;
    let bridge = stats["bridges"].get(0).with_context(|| format!("no bridge in {stats}"))?;
    let text = |field: &str| bridge[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason")))
}

on_every_kafka! {
    /// L1. With the right password messages arrive; with a wrong one the status says why, and messages wait
    /// until the right one is set at run time.
    fn a_bridge_logs_in_with_sasl_plain(target) {
        let topic = unique("login");
        let (_kafka, bootstrap) = target.with_login(&topic)?;
        let oracle = Oracle::watch_as(&bootstrap, SASL_USER, &topic)?;
        let bridge = producer("login", &bootstrap, "l/#", &topic, "reconnect_delay = 200ms");

        let node = Node::start(&with_password(&bridge, "wrong"))?;
        eventually(SOON, || {
            let (status, reason) = status(&node)?;
            need(status == "disconnected" && reason.to_lowercase().contains("authentication"), || {
                format!("with a wrong password the bridge is {status:?} because of {reason:?}")
            })
        })?;
        // What is published meanwhile waits for the right password.
        let early = Running::start(load(node.mqtt(), "early-", "l/{client}", 3, 50));
        eventually(SOON, || {
            let books = node.ledger("kafka:login")?;
            need(books.queuing == 150, || format!("not all waits: {books:?}"))
        })?;
        ensure!(early.acknowledged() == 0, "{} are acknowledged without a login", early.acknowledged());
        node.change_bridges(&with_password(&bridge, SASL_USER.1))?;
        let early = early.join()?;
        ensure!(early.iter().all(|client| client.acknowledged.len() == 50), "{early:?}");
        let published = Running::start(load(node.mqtt(), "device-", "l/{client}", 3, 100)).join()?;
        ensure!(published.iter().all(|client| client.acknowledged.len() == 100), "{published:?}");
        assert_eq!(status(&node)?.0, "connected");
        let books = node.settled("kafka:login", SOON)?;
        ensure!((books.matched, books.success) == (450, 450), "{books:?}");
        let records = oracle.records()?;
        let keys: HashSet<_> = records.iter().map(|(_, record)| (&record.record.key, &record.record.value)).collect();
        ensure!((records.len(), keys.len()) == (450, 450), "{} records, {} of them different", records.len(), keys.len());
        Ok(())
    }
}
