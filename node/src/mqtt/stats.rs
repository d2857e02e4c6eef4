//! The counters of the MQTT front, as types: a name cannot be mistyped.
//!
//! [`Stats`] is shared and atomic; connections add to it once per turn, not once per message.
//! [`StatsSnapshot`] is what others see.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Live counters.
        #[derive(Debug, Default)]
        pub struct Stats { $($(#[$doc])* pub(crate) $name: AtomicU64),* }

        /// Counters at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct StatsSnapshot { $($(#[$doc])* pub $name: u64),* }

        impl Stats {
            /// Reads every counter.
            pub fn snapshot(&self) -> StatsSnapshot {
                StatsSnapshot { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }

        impl StatsSnapshot {
            /// Every counter with its name.
            pub fn by_name(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }

        impl Tally {
            /// Adds everything to the shared counters and starts again at nothing.
            pub(crate) fn flush(&mut self, stats: &Stats) {
                if self.dirty {
                    $(if self.counts.$name != 0 {
                        stats.$name.fetch_add(self.counts.$name, Ordering::Relaxed);
                    })*
                    *self = Self::default();
                }
            }
        }
    };
}

counters! {
    /// Connections open now.
    connections,
    /// Connections accepted since the start.
    connections_accepted,
    /// Connections refused because `max_connections` was reached.
    connections_refused,
    /// Connections that ended without an accepted CONNECT.
    handshakes_failed,
    /// Clients refused because they could not prove who they are.
    authentication_failed,
    /// Clients refused because too many passwords were being checked.
    authentication_busy,
    /// Connections closed because their address is banned.
    connections_banned,
    /// Publications and wills that the rules do not allow.
    denied_publishes,
    /// Subscriptions that the rules do not allow.
    denied_subscribes,
    /// Connections closed because the client was silent for 1.5 times its keep-alive.
    keep_alive_timeouts,
    /// Connections closed for a malformed packet or a protocol error.
    protocol_errors,
    /// Connections whose task panicked.
    connections_panicked,
    /// Errors of `accept`.
    accept_errors,
    /// Times that accepting waited for `max_conn_rate`.
    accepts_delayed,
    /// Openings (PROXY header, TLS, WebSocket) under way now.
    handshakes_open,
    /// Openings closed because `max_handshakes` newer ones were under way.
    handshakes_displaced,
    /// Openings closed because they took too long.
    handshakes_timed_out,
    /// Connections refused because their PROXY protocol header was missing or wrong.
    proxy_headers_refused,
    /// TLS handshakes that failed.
    tls_handshakes_failed,
    /// WebSocket requests that were refused.
    websocket_handshakes_failed,
    /// Times that certificates were read again and put in use.
    certificates_reloaded,
    /// Times that certificates were read again and not used, because something was wrong with them.
    certificates_refused,
    /// Times that a client was not read from because of `messages_rate`.
    paused_messages_rate,
    /// Times that a client was not read from because of `bytes_rate`.
    paused_bytes_rate,
    /// Sessions now, with or without a connection.
    sessions,
    /// Sessions taken over by a newer connection.
    sessions_taken_over,
    /// Sessions that ended because their expiry interval passed.
    sessions_expired,
    /// Sessions resumed.
    sessions_resumed,
    /// Sessions found in the store at the start.
    sessions_restored,
    /// Clients refused because the session of their client identifier is another user's.
    sessions_denied,
    /// Subscriptions now.
    subscriptions,
    /// Retained messages now.
    retained_messages,
    /// Bytes of retained messages now.
    retained_bytes,
    /// Retained messages not kept because the store was full.
    retained_refused,
    /// Bytes read from clients.
    bytes_received,
    /// Bytes written to clients.
    bytes_sent,
    /// PUBLISH packets with QoS 0 received.
    received_qos0,
    /// PUBLISH packets with QoS 1 received.
    received_qos1,
    /// PUBLISH packets with QoS 2 received, repetitions included.
    received_qos2,
    /// Publications that were sent again (QoS 1: with DUP, while the first copy was under way) and not
    /// dispatched again.
    received_duplicates,
    /// Routes worked out: topics that a connection had not published to lately, or whose subscribers changed.
    routes_found,
    /// Deliveries of shared subscriptions that went to another member of their group.
    shared_passed_on,
    /// Publications without a receiver.
    unmatched,
    /// PUBLISH packets with QoS 0 sent.
    sent_qos0,
    /// PUBLISH packets with QoS 1 sent, repetitions included.
    sent_qos1,
    /// PUBLISH packets with QoS 2 sent, repetitions included.
    sent_qos2,
    /// QoS 0 deliveries dropped because the client was too slow for its queue.
    dropped_slow,
    /// QoS 1 and 2 deliveries dropped because the queue of a connected client was full.
    dropped_queue_full,
    /// QoS 0 deliveries dropped because the client was not connected.
    dropped_offline,
    /// QoS 1 and 2 deliveries dropped because the queue of a client that is not connected was full.
    dropped_offline_full,
    /// QoS 0 publications that waited behind others of their client when its connection ended.
    dropped_read_ahead,
    /// Deliveries dropped because the message expired.
    dropped_expired,
    /// Deliveries dropped because the packet is larger than the client takes.
    dropped_too_large,
    /// Deliveries of any QoS dropped because memory was short (`mqtt.max_memory`).
    dropped_memory,
    /// Connections closed because the queue of their session was full (`mqtt.queue_full = disconnect`).
    disconnected_queue_full,
    /// Times that a connected client took nothing for `mqtt.slow_subscriber_timeout` while others waited for
    /// it, and was not waited for any longer.
    slow_subscribers,
    /// Connections refused because memory was short.
    refused_memory,
    /// Connections closed in the middle of a large packet because memory was short.
    disconnected_memory,
    /// Publications refused because their topic name was not valid.
    dropped_invalid_topic,
    /// Publications whose payload is not the text that they are declared as
    /// (`mqtt.payload_format_validation`).
    dropped_invalid_payload,
    /// Publications that a message sink gave up for good.
    failed_in_sink,
    /// Will messages published.
    wills_published,
    /// Will messages given up: too many waited.
    wills_dropped,
    /// Transactions that wrote stored sessions.
    store_commits,
    /// Attempts to write stored sessions that found no room on the disk.
    store_retries,
    /// Bytes that wait to be written to the stored sessions, now.
    store_waiting_bytes,
    /// 1 when stored sessions cannot be written any more, until the node is started again.
    store_failed,
}

impl Stats {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn subtract(gauge: &AtomicU64, count: u64) {
        gauge.fetch_sub(count, Ordering::Relaxed);
    }
}

/// Counts of one turn of one connection, added to the shared [`Stats`] at its end.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: StatsSnapshot,
    dirty: bool,
}

impl Tally {
    /// The counts, to be changed.
    pub(crate) fn counts(&mut self) -> &mut StatsSnapshot {
        self.dirty = true;
        &mut self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_added_once() {
        let stats = Stats::default();
        let mut tally = Tally::default();
        tally.counts().sent_qos1 += 3;
        tally.flush(&stats);
        tally.flush(&stats);
        assert_eq!(stats.snapshot(), StatsSnapshot { sent_qos1: 3, ..StatsSnapshot::default() });
    }
}
