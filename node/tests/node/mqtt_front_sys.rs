//! The `$SYS` topics over the wire.

use std::{collections::BTreeMap, time::Duration};

use crate::mqtt_front::*;
use causeway::mqtt::SysEvents;
use causeway_protocol::mqtt::{Connect, QoS, ReasonCode, Version};

/// As many as `docs/sys-topics.md` lists.
const TOPICS: usize = 35;

async fn broker_that_tells() -> Broker {
    broker_with(|options| {
        options.node = String::from("n1");
        options.sys_interval = Duration::from_millis(200);
        options.sys_events = SysEvents { client_connected: true, client_disconnected: true };
    })
    .await
}

/// The next messages, until `count` topics are known; with the retain flag of the last.
async fn collect(client: &mut Client, count: usize) -> BTreeMap<String, (String, bool)> {
    let mut values = BTreeMap::new();
    while values.len() < count {
        match client.next().await {
            Seen::Publish { topic, payload, retain, qos: QoS::AtMostOnce, .. } => {
                values.insert(topic, (String::from_utf8_lossy(&payload).into_owned(), retain));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    values
}

#[tokio::test]
async fn the_figures_are_there_at_once_and_again_and_again() {
    let broker = broker_with(|options| {
        options.node = String::from("n1");
        options.sys_interval = Duration::from_millis(200);
    })
    .await;
    let mut watcher = broker.client(Version::V311, "w").await;
    watcher.subscribe("$SYS/#", QoS::ExactlyOnce).await;
    let first = collect(&mut watcher, TOPICS).await;
    assert_eq!(first["$SYS/brokers/n1/version"].0, env!("CARGO_PKG_VERSION"));
    let mut publisher = broker.client(Version::V5, "p").await;
    publisher.publish("t", b"x", QoS::AtLeastOnce, 1).await;
    publisher.next().await;
    let counted = async {
        loop {
            let values = collect(&mut watcher, TOPICS).await;
            assert!(values.values().any(|(_, retain)| !retain), "live messages are not marked as retained");
            let number = |topic: &str| values[&format!("$SYS/brokers/n1/{topic}")].0.parse::<u64>();
            if number("metrics/messages/qos1/received") == Ok(1) {
                assert_eq!(number("metrics/messages/received"), Ok(1));
                assert_eq!(number("metrics/messages/unmatched"), Ok(1));
                assert_eq!(number("stats/connections/count"), Ok(2));
                assert_eq!(number("stats/subscriptions/count"), Ok(1));
                assert_eq!(number("stats/retained/count"), Ok(0), "its own are not counted");
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("the figures follow");
}

#[tokio::test]
async fn wildcards_at_the_front_do_not_match_and_clients_cannot_publish_there() {
    let broker = broker_that_tells().await;
    let mut all = broker.client(Version::V5, "all").await;
    all.subscribe("#", QoS::AtMostOnce).await;
    all.subscribe("+/brokers/#", QoS::AtMostOnce).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    all.nothing().await;
    let mut watcher = broker.client(Version::V5, "w").await;
    watcher.subscribe("$SYS/x", QoS::AtMostOnce).await;
    let mut client = broker.client(Version::V5, "c").await;
    client.publish("$SYS/x", b"forged", QoS::AtLeastOnce, 1).await;
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::NotAuthorized));
    client.publish("$SYS/x", b"forged", QoS::AtMostOnce, 0).await;
    client.nothing().await;
    let mut old = broker.client(Version::V311, "o").await;
    old.publish("$SYS/x", b"forged", QoS::AtLeastOnce, 1).await;
    assert_eq!(old.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
    watcher.nothing().await;
    let mut willing = Client::open(broker.address, Version::V5).await;
    let will = Connect { will: Some(will("$SYS/x", b"")), ..connect(Version::V5, "x") };
    assert_eq!(willing.connect(&will).await.0, ReasonCode::NotAuthorized);
}

#[tokio::test]
async fn clients_that_come_and_go_are_told_of_where_that_is_wanted() {
    let broker = broker_that_tells().await;
    let mut watcher = broker.client(Version::V5, "w").await;
    watcher.subscribe("$SYS/brokers/n1/clients/#", QoS::AtMostOnce).await;
    let client = broker.client(Version::V311, "a/b").await;
    drop(client);
    for event in ["connected", "disconnected"] {
        let Seen::Publish { topic, payload, retain: false, .. } = watcher.next().await else {
            panic!("an event")
        };
        assert_eq!(topic, format!("$SYS/brokers/n1/clients/a%2Fb/{event}"));
        let payload: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
        assert_eq!((&payload["clientid"], &payload["proto_ver"]), (&"a/b".into(), &4.into()));
        assert_eq!(payload["ipaddress"], "127.0.0.1");
        assert!(payload[format!("{event}_at")].as_i64().is_some_and(|at| at > 1_600_000_000_000));
    }
}

#[tokio::test]
async fn nothing_is_said_where_the_interval_is_zero() {
    let broker = broker_with(|options| options.sys_interval = Duration::ZERO).await;
    let mut watcher = broker.client(Version::V5, "w").await;
    watcher.subscribe("$SYS/#", QoS::AtMostOnce).await;
    let _client = broker.client(Version::V5, "c").await;
    watcher.nothing().await;
}
