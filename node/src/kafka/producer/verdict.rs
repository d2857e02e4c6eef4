//! Meaning of a broker's answer for a batch: the table of error codes.
//!
//! Invariant: a verdict says "not appended" only for codes that the broker gives before it appends. Every
//! code that may come after the append, and every code unknown here, leaves the fate of the batch open.
//!
//! The permanent verdicts ([`Verdict::TooLarge`], [`Verdict::BadRecord`], [`Verdict::BadTimestamp`],
//! [`Verdict::BadBatch`]) come from checks that look at size and content alone, before sequences are looked
//! at, so the same bytes got the same answer in an earlier attempt whose answer was lost: the fate is known
//! then too. (A topic whose limits were tightened between the two attempts is the exception that remains.)

use causeway_protocol::mqtt::ReasonCode;

/// Consequence of a broker's answer for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// In the log: success.
    Appended,
    /// Try again later.
    Retry {
        /// This attempt may have been appended all the same.
        in_doubt: bool,
        /// Ask for fresh metadata first: the leader may be another one.
        refresh: bool,
    },
    /// Damaged on the way: a few more tries, then given up (a fault that repeats is not the line's).
    Corrupt,
    /// Larger than the topic takes: halves are tried, a single record is given up.
    TooLarge,
    /// At least one record is not acceptable: halves are tried, so that its neighbours pass.
    BadRecord(ReasonCode),
    /// At least one record has a timestamp that the topic does not take. As a bad record, unless the batch
    /// knows better ([`super::core::Remedy`]).
    BadTimestamp,
    /// The batch as a whole is not acceptable, whatever is in it.
    BadBatch(ReasonCode),
    /// `OUT_OF_ORDER_SEQUENCE_NUMBER`: not appended, the broker expects another sequence.
    OutOfOrder,
    /// `INVALID_PRODUCER_EPOCH`, `PRODUCER_FENCED`: another client used our producer id with a newer epoch.
    Fenced,
    /// `UNKNOWN_PRODUCER_ID`: the broker has forgotten us.
    Forgotten,
}

/// How often a batch that arrives damaged is sent before it is given up.
pub const CORRUPT_ATTEMPTS: u32 = 5;

/// `INVALID_TIMESTAMP`: out of the range that `message.timestamp.before.max.ms` and
/// `message.timestamp.after.max.ms` allow.
pub const INVALID_TIMESTAMP: i16 = 32;

/// The verdict for an error code of a produce response's partition.
///
/// Codes of configuration and permission (29, 31) are waited out: the records stay held and the
/// status tells why, until the permission is granted or the bridge stopped.
pub fn verdict(code: i16) -> Verdict {
    const fn retry(in_doubt: bool, refresh: bool) -> Verdict {
        Verdict::Retry { in_doubt, refresh }
    }
    match code {
        // DUPLICATE_SEQUENCE_NUMBER: appended by an earlier attempt.
        0 | 46 => Verdict::Appended,
        2 => Verdict::Corrupt,
        // UNKNOWN_TOPIC_OR_PARTITION, LEADER_NOT_AVAILABLE, BROKER_NOT_AVAILABLE, REPLICA_NOT_AVAILABLE,
        // LISTENER_NOT_FOUND, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, UNKNOWN_TOPIC_ID,
        // INCONSISTENT_TOPIC_ID
        3 | 5 | 8 | 9 | 72 | 74 | 75 | 100 | 103 => retry(false, true),
        // NOT_LEADER_OR_FOLLOWER comes too when leadership is lost while the append waits for its replicas;
        // KAFKA_STORAGE_ERROR when a disk fails in the middle.
        6 | 56 => retry(true, true),
        // NOT_ENOUGH_REPLICAS, TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED, UNSUPPORTED_VERSION
        // (a broker just being replaced), THROTTLING_QUOTA_EXCEEDED: told before the append.
        19 | 29 | 31 | 35 | 89 => retry(false, false),
        // MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE
        10 | 18 => Verdict::TooLarge,
        INVALID_TIMESTAMP => Verdict::BadTimestamp,
        // INVALID_RECORD (a compacted topic wants a key, for one)
        87 => Verdict::BadRecord(ReasonCode::PayloadFormatInvalid),
        // INVALID_TOPIC_EXCEPTION, INVALID_REQUIRED_ACKS, INVALID_REQUEST, UNSUPPORTED_FOR_MESSAGE_FORMAT,
        // POLICY_VIOLATION, UNSUPPORTED_COMPRESSION_TYPE
        17 | 21 | 42 | 43 | 44 | 76 => Verdict::BadBatch(ReasonCode::ImplementationSpecificError),
        45 => Verdict::OutOfOrder,
        47 | 90 => Verdict::Fenced,
        59 => Verdict::Forgotten,
        // REQUEST_TIMED_OUT (7) and NOT_ENOUGH_REPLICAS_AFTER_APPEND (20) are appended on the leader and not
        // yet where they should be; the rest is unknown here, so nothing is known about the batch.
        _ => retry(true, false),
    }
}

/// The answer that tells the publisher of a single record that it is too large for its topic. 0x95 (packet
/// too large) is not allowed in PUBACK and PUBREC (MQTT-5.0 3.4.2.1); the topic's limit is a quota.
pub const TOO_LARGE: ReasonCode = ReasonCode::QuotaExceeded;

/// The name of an error code in words for a status line.
pub fn describe(code: i16) -> String {
    match code {
        3 => "Kafka does not know the topic or partition".into(),
        5 => "the partition has no leader at the moment".into(),
        6 => "the partition's leader is moving".into(),
        7 => "Kafka's replicas did not answer in time".into(),
        19 | 20 => "fewer replicas are in sync than min.insync.replicas asks for".into(),
        29 => "not authorized to write to the topic".into(),
        31 => "not authorized by the cluster".into(),
        INVALID_TIMESTAMP => "Kafka does not take the timestamp".into(),
        56 => "a broker cannot write to its disk".into(),
        _ => kafka_protocol::ResponseError::try_from_code(code)
            .map_or_else(|| format!("Kafka error {code}"), |known| format!("Kafka error {code}: {known}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_code_leaves_the_fate_open() {
        assert_eq!(verdict(-1), Verdict::Retry { in_doubt: true, refresh: false });
        assert_eq!(verdict(12345), Verdict::Retry { in_doubt: true, refresh: false });
    }

    #[test]
    fn codes_that_may_follow_an_append_are_in_doubt() {
        for code in [6, 7, 20, 56] {
            assert!(matches!(verdict(code), Verdict::Retry { in_doubt: true, .. }), "code {code}");
        }
    }
}
