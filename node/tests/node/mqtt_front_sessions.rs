//! Sessions, wills and the ways a connection ends.

use std::time::{Duration, Instant};

use crate::mqtt_front::*;
use causeway_protocol::mqtt::{AckKind, Connect, Packet, QoS, ReasonCode, Version, Will};
use tokio::io::AsyncWriteExt;

async fn returning(broker: &Broker, version: Version, client_id: &str) -> (Client, bool) {
    let mut client = Client::open(broker.address, version).await;
    let (reason, present) = client.connect(&persistent(version, client_id)).await;
    assert_eq!(reason, ReasonCode::Success);
    (client, present)
}

#[tokio::test]
async fn a_session_is_resumed_with_what_was_not_acknowledged_and_what_came_meanwhile() {
    for version in [Version::V311, Version::V5] {
        let broker = broker().await;
        let (mut subscriber, present) = returning(&broker, version, "s").await;
        assert!(!present);
        subscriber.subscribe("t", QoS::ExactlyOnce).await;
        let mut publisher = broker.client(version, "p").await;
        publisher.publish("t", b"1", QoS::AtLeastOnce, 1).await;
        publisher.publish("t", b"2", QoS::ExactlyOnce, 2).await;
        let Seen::Publish { identifier: first, dup: false, .. } = subscriber.next().await else {
            panic!("1")
        };
        let Seen::Publish { identifier: second, dup: false, .. } = subscriber.next().await else {
            panic!("2")
        };
        subscriber.ack(AckKind::PubRec, second).await;
        assert_eq!(subscriber.next().await, Seen::Ack("PUBREL", second, ReasonCode::Success));
        drop(subscriber);
        broker.until(|stats| stats.connections == 1).await;
        publisher.publish("t", b"3", QoS::AtLeastOnce, 3).await;
        publisher.publish("t", b"-", QoS::AtMostOnce, 0).await;
        publisher.nothing_but_acks().await;

        let (mut subscriber, present) = returning(&broker, version, "s").await;
        assert!(present);
        let Seen::Publish { identifier, dup: true, payload, .. } = subscriber.next().await else {
            panic!("1")
        };
        assert_eq!((identifier, payload.as_slice()), (first, b"1".as_slice()));
        assert_eq!(subscriber.next().await, Seen::Ack("PUBREL", second, ReasonCode::Success));
        let Seen::Publish { dup: false, payload, .. } = subscriber.next().await else { panic!("3") };
        assert_eq!(payload, b"3");
        subscriber.nothing().await;
        assert_eq!(broker.front.stats().dropped_offline, 1);
    }
}

#[tokio::test]
async fn a_clean_start_forgets_the_session() {
    let broker = broker().await;
    let (mut client, _) = returning(&broker, Version::V5, "c").await;
    client.subscribe("t", QoS::AtLeastOnce).await;
    client.disconnect(ReasonCode::Success).await;
    assert_eq!(client.next().await, Seen::Closed);
    broker.until(|stats| stats.connections == 0).await;
    assert_eq!((broker.front.stats().sessions, broker.front.stats().subscriptions), (1, 1));
    let mut client = Client::open(broker.address, Version::V5).await;
    assert_eq!(client.connect(&connect(Version::V5, "c")).await, (ReasonCode::Success, false));
    assert_eq!((broker.front.stats().sessions, broker.front.stats().subscriptions), (1, 0));
}

#[tokio::test]
async fn the_newer_connection_takes_the_session_over() {
    let broker = broker().await;
    let mut watcher = broker.client(Version::V5, "w").await;
    watcher.subscribe("will", QoS::AtMostOnce).await;
    let mut first = Client::open(broker.address, Version::V5).await;
    first.connect(&Connect { will: Some(will("will", b"gone")), ..persistent(Version::V5, "c") }).await;
    first.subscribe("t", QoS::AtLeastOnce).await;
    let (mut second, present) = returning(&broker, Version::V5, "c").await;
    assert!(present);
    assert_eq!(first.next().await, Seen::Disconnect(ReasonCode::SessionTakenOver));
    assert_eq!(first.next().await, Seen::Closed);
    assert_eq!(watcher.next().await, published("will", b"gone"));
    second.publish("t", b"x", QoS::AtMostOnce, 0).await;
    assert_eq!(second.next().await, published("t", b"x"));
    let (mut third, present) = returning(&broker, Version::V311, "c").await;
    assert!(present);
    assert_eq!(second.next().await, Seen::Disconnect(ReasonCode::SessionTakenOver));
    third.nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_fight_for_one_session_and_one_wins() {
    let broker = broker().await;
    let fighters: Vec<_> = (0..40)
        .map(|number| {
            let address = broker.address;
            tokio::spawn(async move {
                let mut client = Client::open(address, Version::V5).await;
                let start =
                    if number % 2 == 0 { persistent(Version::V5, "c") } else { connect(Version::V5, "c") };
                client.send(&Packet::Connect(Box::new(start))).await;
                let mut last = Seen::Closed;
                loop {
                    match tokio::time::timeout(Duration::from_millis(800), client.try_next()).await {
                        Ok(Seen::Closed) => return (None, last),
                        Ok(seen) => last = seen,
                        Err(_) => return (Some(client), last),
                    }
                }
            })
        })
        .collect();
    let mut winners = Vec::new();
    for fighter in fighters {
        let (client, last) = fighter.await.expect("no panic");
        match client {
            Some(client) => winners.push(client),
            None => assert!(
                matches!(
                    last,
                    Seen::Disconnect(ReasonCode::SessionTakenOver)
                        | Seen::ConnAck(ReasonCode::ServerBusy, false)
                ),
                "{last:?}"
            ),
        }
    }
    assert_eq!(winners.len(), 1);
    winners[0].nothing().await;
    let stats = broker.front.stats();
    assert_eq!((stats.sessions, stats.connections, stats.connections_panicked), (1, 1, 0));
}

#[tokio::test]
async fn a_will_is_published_unless_the_client_says_goodbye() {
    let broker = broker().await;
    let mut watcher = broker.client(Version::V5, "w").await;
    watcher.subscribe("will", QoS::AtMostOnce).await;
    let with_will = |version| Connect { will: Some(will("will", b"gone")), ..connect(version, "c") };
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut client = Client::open(broker.address, version).await;
        client.connect(&with_will(version)).await;
        drop(client);
        assert_eq!(watcher.next().await, published("will", b"gone"));
        let mut client = Client::open(broker.address, version).await;
        client.connect(&with_will(version)).await;
        client.disconnect(ReasonCode::Success).await;
        assert_eq!(client.next().await, Seen::Closed);
    }
    watcher.nothing().await;
    let mut client = Client::open(broker.address, Version::V5).await;
    client.connect(&with_will(Version::V5)).await;
    client.disconnect(ReasonCode::DisconnectWithWill).await;
    assert_eq!(watcher.next().await, published("will", b"gone"));
    assert_eq!(broker.front.stats().wills_published, 4);
}

#[tokio::test]
async fn a_delayed_will_waits_for_the_client() {
    let broker = broker().await;
    let mut watcher = broker.client(Version::V5, "w").await;
    watcher.subscribe("will", QoS::AtMostOnce).await;
    let delayed = || {
        let will = Will { delay_interval: 1, ..will("will", b"gone") };
        Connect { will: Some(will), ..persistent(Version::V5, "c") }
    };
    let mut client = Client::open(broker.address, Version::V5).await;
    client.connect(&delayed()).await;
    drop(client);
    broker.until(|stats| stats.connections == 1).await;
    let mut client = Client::open(broker.address, Version::V5).await;
    client.connect(&delayed()).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    watcher.nothing().await;
    let left = Instant::now();
    drop(client);
    assert_eq!(watcher.next().await, published("will", b"gone"));
    assert!(left.elapsed() >= Duration::from_millis(900), "{:?}", left.elapsed());
}

#[tokio::test]
async fn a_session_expires_when_its_time_is_over() {
    let broker = broker().await;
    let mut client = Client::open(broker.address, Version::V5).await;
    client.connect(&Connect { session_expiry_interval: 1, ..persistent(Version::V5, "c") }).await;
    client.subscribe("t", QoS::AtLeastOnce).await;
    drop(client);
    broker.until(|stats| stats.connections == 0).await;
    assert_eq!(broker.front.stats().sessions, 1);
    broker.until(|stats| stats.sessions == 0 && stats.subscriptions == 0).await;
    assert_eq!(broker.front.stats().sessions_expired, 1);
}

#[tokio::test]
async fn a_silent_client_is_cut_off_after_one_and_a_half_keep_alives() {
    let broker = broker().await;
    let mut silent = Client::open(broker.address, Version::V5).await;
    silent.connect(&Connect { keep_alive: 1, ..connect(Version::V5, "silent") }).await;
    let mut alive = Client::open(broker.address, Version::V5).await;
    alive.connect(&Connect { keep_alive: 1, ..connect(Version::V5, "alive") }).await;
    let start = Instant::now();
    let ping = async {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            alive.nothing().await;
        }
    };
    let (seen, ()) = tokio::join!(silent.next(), ping);
    assert_eq!(seen, Seen::Disconnect(ReasonCode::KeepAliveTimeout));
    assert!(start.elapsed() >= Duration::from_millis(1400));
    assert_eq!(broker.front.stats().keep_alive_timeouts, 1);
    alive.nothing().await;
}

#[tokio::test]
async fn a_connection_without_connect_is_closed() {
    let broker = broker_with(|options| options.connect_timeout = Duration::from_millis(200)).await;
    let mut idle = Client::open(broker.address, Version::V5).await;
    assert_eq!(idle.next().await, Seen::Closed);
    let mut noise = Client::open(broker.address, Version::V5).await;
    noise.socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("an open connection");
    assert_eq!(noise.next().await, Seen::Closed);
    broker.until(|stats| stats.connections == 0 && stats.handshakes_failed == 2).await;
}

#[tokio::test]
async fn clients_without_an_id_get_one_where_that_makes_sense() {
    let broker = broker().await;
    let mut client = Client::open(broker.address, Version::V5).await;
    client.connect(&connect(Version::V5, "")).await;
    assert!(client.assigned.as_ref().is_some_and(|id| id.starts_with("causeway-")));
    assert_eq!(client.receive_maximum, Some(1024));
    let mut client = Client::open(broker.address, Version::V311).await;
    assert_eq!(client.connect(&connect(Version::V311, "")).await.0, ReasonCode::Success);
    let mut client = Client::open(broker.address, Version::V311).await;
    let nameless = persistent(Version::V311, "");
    assert_eq!(client.connect(&nameless).await.0, ReasonCode::ClientIdentifierNotValid);
    assert_eq!(client.next().await, Seen::Closed);
}

#[tokio::test]
async fn an_illegal_packet_is_answered_with_its_reason() {
    let broker = broker().await;
    let mut client = broker.client(Version::V5, "c").await;
    client.socket.write_all(&[0x36, 2, 0, 0]).await.expect("an open connection");
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::MalformedPacket));
    assert_eq!(client.next().await, Seen::Closed);
    let mut client = broker.client(Version::V5, "c").await;
    client.send(&Packet::Connect(Box::new(connect(Version::V5, "c")))).await;
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::ProtocolError));
    let mut client = broker.client(Version::V311, "c").await;
    client.socket.write_all(&[0x36, 2, 0, 0]).await.expect("an open connection");
    assert_eq!(client.next().await, Seen::Closed);
    let mut client = Client::open(broker.address, Version::V5).await;
    let method = Connect { authentication_method: Some("x"), ..connect(Version::V5, "c") };
    assert_eq!(client.connect(&method).await.0, ReasonCode::BadAuthenticationMethod);
    assert_eq!(broker.front.stats().protocol_errors, 3);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    use causeway::mqtt::{Front, ListenerOptions, Options, RetainedLimits, Router};
    let broker = broker().await;
    let options =
        Options { listeners: vec![ListenerOptions::new("second", broker.address)], ..Options::default() };
    let error =
        Front::start(options, Router::new(RetainedLimits::default())).await.err().expect("a taken port");
    let text = error.to_string();
    assert!(text.contains(&broker.address.to_string()) && text.contains("something else listens"), "{text}");
}

#[tokio::test]
async fn connections_are_bounded() {
    let broker = broker_with(|options| options.listeners[0].max_connections = 2).await;
    let first = broker.client(Version::V5, "1").await;
    let _second = broker.client(Version::V5, "2").await;
    let mut third = Client::open(broker.address, Version::V5).await;
    assert_eq!(third.next().await, Seen::Closed);
    drop(first);
    broker.until(|stats| stats.connections == 1).await;
    broker.client(Version::V5, "3").await;
    assert_eq!(broker.front.stats().connections_refused, 1);
}

#[tokio::test]
async fn a_client_that_reads_nothing_loses_only_its_own_qos_0() {
    let broker = broker_with(|options| options.session_queue.bytes = 1 << 20).await;
    let mut slow = broker.client(Version::V311, "slow").await;
    slow.subscribe("t", QoS::AtMostOnce).await;
    let mut publisher = broker.client(Version::V311, "p").await;
    let body = vec![0; 10_000];
    for _ in 0..3000 {
        publisher.publish("t", &body, QoS::AtMostOnce, 0).await;
    }
    publisher.nothing().await;
    let stats = broker.front.stats();
    assert!(stats.dropped_slow > 500, "{}", stats.dropped_slow);
    let mut received = 0;
    while received < 3000 - stats.dropped_slow {
        assert!(matches!(slow.next().await, Seen::Publish { .. }));
        received += 1;
    }
    slow.nothing().await;
    assert_eq!(broker.front.stats().dropped_slow, stats.dropped_slow);
}

/// A client that publishes, leaves and comes back at once is often heard again before its first connection
/// was read to the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_before_a_takeover_is_not_lost() {
    const MESSAGES: usize = 4000;
    let broker = broker().await;
    let mut subscriber = broker.client(Version::V5, "s").await;
    subscriber.subscribe("t", QoS::AtMostOnce).await;
    for round in 0..5 {
        let mut packets = Vec::new();
        for number in 0..MESSAGES {
            let payload = format!("{round}-{number:0>100}");
            packets.extend_from_slice(&[0x30, payload.len() as u8 + 4, 0, 1, b't', 0]);
            packets.extend_from_slice(payload.as_bytes());
        }
        packets.extend_from_slice(&[0xe0, 0]);
        let connect = persistent(Version::V5, "p");
        let with_will = Connect { will: Some(will("t", b"will")), ..connect.clone() };
        let mut first = Client::open(broker.address, Version::V5).await;
        first.connect(&with_will).await;
        first.socket.write_all(&packets).await.unwrap();
        let mut second = Client::open(broker.address, Version::V5).await;
        second.connect(&connect).await;
        for number in 0..MESSAGES {
            let Seen::Publish { payload, .. } = subscriber.next().await else { panic!("a publication") };
            assert_eq!(String::from_utf8(payload).unwrap(), format!("{round}-{number:0>100}"));
        }
        subscriber.nothing().await;
    }
}
