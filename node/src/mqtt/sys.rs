//! The `$SYS` topics: what this node says about itself (`sys_topics` in the configuration,
//! `docs/sys-topics.md`).
//!
//! They are published with QoS 0 by the node alone. The last value of each is kept for those who subscribe
//! later, apart from the retained messages: they are not counted, not bounded and not stored with them.
//! Clients cannot publish here; `#` and `+/...` do not match (MQTT-4.7.2-1).

use std::{fmt::Write as _, sync::Arc, time::Duration};

use causeway_protocol::mqtt::{PublishProperties, QoS, Version};
use tokio::time::Instant;

use super::{clock, shared::Shared, stats::StatsSnapshot};
use crate::flow::{Message, Origin};

/// Beginning of all these topics.
pub(crate) const PREFIX: &str = "$SYS/";

/// Beginning of a topic that no message from outside may be published to; none where the topic is open.
///
/// `$SYS/` is the node's own. `$share/` begins shared subscriptions (MQTT-5.0 4.8.2): no subscription reaches
/// such a topic.
pub(crate) fn reserved_prefix(topic: &str) -> Option<&'static str> {
    [PREFIX, "$share/"].into_iter().find(|prefix| topic.starts_with(prefix))
}

/// Which events of clients are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SysEvents {
    /// `.../clients/CLIENT/connected`.
    pub client_connected: bool,
    /// `.../clients/CLIENT/disconnected`.
    pub client_disconnected: bool,
}

/// An event of a client that may be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Connected,
    Disconnected,
}

/// Publishes everything every `interval`. Never returns.
pub(crate) async fn run(shared: Arc<Shared>, interval: Duration) {
    let started = Instant::now();
    let origin = Arc::new(Origin { client_id: "$SYS".into(), username: None, peer: None });
    loop {
        for (topic, value) in values(&shared, started.elapsed()) {
            let topic = format!("{PREFIX}brokers/{}/{topic}", shared.options.node);
            publish(&shared, &origin, &topic, value.as_bytes(), true);
        }
        tokio::time::sleep(interval).await;
    }
}

/// Publishes an event, if that is wanted.
pub(crate) fn client_event(shared: &Shared, origin: &Arc<Origin>, version: Version, event: Event) {
    let wanted = shared.options.sys_events;
    let (wanted, name, at) = match event {
        Event::Connected => (wanted.client_connected, "connected", "connected_at"),
        Event::Disconnected => (wanted.client_disconnected, "disconnected", "disconnected_at"),
    };
    if !wanted {
        return;
    }
    let level = escaped(&origin.client_id);
    let topic = format!("{PREFIX}brokers/{}/clients/{level}/{name}", shared.options.node);
    let payload = serde_json::json!({
        "clientid": &*origin.client_id,
        "username": origin.username.as_deref(),
        "ipaddress": origin.peer.map(|peer| peer.ip().to_string()),
        "proto_ver": match version { Version::V31 => 3, Version::V311 => 4, Version::V5 => 5 },
        at: clock::unix_millis(),
    });
    publish(shared, origin, &topic, payload.to_string().as_bytes(), false);
}

/// A client identifier as one level of a topic name.
fn escaped(client_id: &str) -> String {
    let mut level = String::with_capacity(client_id.len());
    for c in client_id.chars() {
        if matches!(c, '%' | '/' | '+' | '#') {
            // Writing to a String cannot fail.
            let _ = write!(level, "%{:02X}", c as u32);
        } else {
            level.push(c);
        }
    }
    level
}

fn publish(shared: &Shared, origin: &Arc<Origin>, topic: &str, payload: &[u8], keep: bool) {
    let message = Message {
        origin,
        topic,
        payload,
        qos: QoS::AtMostOnce,
        retain: keep,
        dup: false,
        properties: &PublishProperties::default(),
        received_at: clock::unix_millis(),
        hops: 0,
    };
    shared.router.publish_sys(&message, keep);
}

/// Topics behind the node's name, with their values.
fn values(shared: &Shared, uptime: Duration) -> Vec<(&'static str, String)> {
    let stats = shared.stats.snapshot();
    let mut values = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("sysdescr", "Causeway, MQTT devices and Apache Kafka".to_owned()),
        ("uptime", uptime.as_secs().to_string()),
        ("datetime", date_time(clock::unix_millis())),
        ("stats/memory/bytes", shared.router.memory_used().to_string()),
        ("stats/memory/max", shared.options.max_memory.to_string()),
    ];
    values.extend(numbers(&stats).map(|(topic, number)| (topic, number.to_string())));
    values
}

fn numbers(stats: &StatsSnapshot) -> impl Iterator<Item = (&'static str, u64)> {
    let received = stats.received_qos0 + stats.received_qos1 + stats.received_qos2;
    let sent = stats.sent_qos0 + stats.sent_qos1 + stats.sent_qos2;
    let dropped = [
        ("metrics/messages/dropped/slow", stats.dropped_slow),
        ("metrics/messages/dropped/queue_full", stats.dropped_queue_full),
        ("metrics/messages/dropped/offline", stats.dropped_offline),
        ("metrics/messages/dropped/offline_full", stats.dropped_offline_full),
        ("metrics/messages/dropped/memory", stats.dropped_memory),
        ("metrics/messages/dropped/expired", stats.dropped_expired),
        ("metrics/messages/dropped/too_large", stats.dropped_too_large),
    ];
    let all = [
        ("stats/connections/count", stats.connections),
        ("stats/sessions/count", stats.sessions),
        ("stats/subscriptions/count", stats.subscriptions),
        ("stats/retained/count", stats.retained_messages),
        ("stats/retained/bytes", stats.retained_bytes),
        ("metrics/bytes/received", stats.bytes_received),
        ("metrics/bytes/sent", stats.bytes_sent),
        ("metrics/messages/received", received),
        ("metrics/messages/sent", sent),
        ("metrics/messages/qos0/received", stats.received_qos0),
        ("metrics/messages/qos1/received", stats.received_qos1),
        ("metrics/messages/qos2/received", stats.received_qos2),
        ("metrics/messages/qos0/sent", stats.sent_qos0),
        ("metrics/messages/qos1/sent", stats.sent_qos1),
        ("metrics/messages/qos2/sent", stats.sent_qos2),
        ("metrics/messages/unmatched", stats.unmatched),
        ("metrics/messages/dropped", dropped.iter().map(|(_, count)| count).sum()),
        ("metrics/connections/accepted", stats.connections_accepted),
        ("metrics/connections/refused", stats.connections_refused + stats.refused_memory),
        ("metrics/sessions/resumed", stats.sessions_resumed),
        ("metrics/sessions/taken_over", stats.sessions_taken_over),
        ("metrics/sessions/expired", stats.sessions_expired),
    ];
    all.into_iter().chain(dropped)
}

/// A moment as RFC 3339 writes it, in UTC.
fn date_time(unix_millis: i64) -> String {
    let seconds = unix_millis.max(0) / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their leap day at the end; eras of 400 of them all have the same length.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day + 2) / 153;
    let day = day - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_210_096, "2024-02-29T12:34:56Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date_time(seconds * 1000), text);
        }
    }

    #[test]
    fn a_client_identifier_is_one_level() {
        assert_eq!(escaped("a/b+c#d%e é"), "a%2Fb%2Bc%23d%25e é");
    }
}
