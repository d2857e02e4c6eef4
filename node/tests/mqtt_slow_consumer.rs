//! The node does not grow because somebody does not read. A process of its own: it looks at its size.

#[path = "node/mqtt_front/mod.rs"]
mod mqtt_front;

use causeway::flow::mailbox::Capacity;
use causeway_protocol::mqtt::{Packet, QoS, Version};
use mqtt_front::*;
use tokio::io::AsyncWriteExt;

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<usize> = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    pages.map_or_else(|| panic!("this test needs a /proc"), |pages| pages * 4096)
}

/// 600 MB for eight subscribers of which none reads, with queues of 1 MB: both QoS levels, at full speed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_that_do_not_read_cost_no_more_than_their_queues() {
    let broker = broker_with(|options| {
        options.session_queue = Capacity { bytes: 1 << 20, items: 10_000 };
    })
    .await;
    let mut subscribers = Vec::new();
    for number in 0..8 {
        let mut subscriber = broker.client(Version::V5, &format!("s{number}")).await;
        let qos = if number % 2 == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        subscriber.subscribe("t", qos).await;
        subscribers.push(subscriber);
    }
    let mut publisher = broker.client(Version::V5, "p").await;
    let mut packet = bytes::BytesMut::new();
    for identifier in 1..=200 {
        Packet::Publish(publish("t", &[7; 1500], QoS::AtLeastOnce, identifier))
            .encode(Version::V5, &mut packet)
            .expect("a legal packet");
    }
    let before = resident();
    let mut most = 0;
    for _ in 0..2000 {
        publisher.socket.write_all(&packet).await.expect("the broker reads");
        for _ in 0..200 {
            assert!(matches!(publisher.next().await, Seen::Ack("PUBACK", ..)));
        }
        most = most.max(resident());
    }
    broker.until(|stats| stats.received_qos1 == 400_000).await;
    let stats = broker.front.stats();
    assert!(stats.dropped_slow > 1_000_000 && stats.dropped_queue_full > 1_000_000, "{stats:?}");
    let grown = most.saturating_sub(before);
    println!("grown by {grown} bytes");
    // Queues, buffers on the way out, and what the allocator keeps.
    assert!(grown < 48 << 20, "grown by {grown} bytes");
    drop(subscribers);
    broker.until(|stats| stats.connections == 1).await;
    // What was counted for them is given back.
    publisher.nothing().await;
    assert!(broker.router.memory_used() < 1 << 20, "{}", broker.router.memory_used());
}
