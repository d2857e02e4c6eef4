//! Timestamps that Kafka refuses: whose they are, and whether waiting can help.
//!
//! A topic takes timestamps within a range around the broker's clock (`message.timestamp.before.max.ms`,
//! `message.timestamp.after.max.ms`; an hour ahead at most by default since Kafka 4). A refused timestamp
//! that a template took from a message belongs to that message, which is given up. One that is the time of
//! arrival belongs to this node's clock, and every message would be refused like it: the record waits until
//! the clocks agree. A dead letter gets along without a timestamp.
//!
//! Invariant: a record waits only as long as the clock of this node is out of the range, or for [`PATIENCE`]
//! at most.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use causeway_protocol::kafka::batch::{BatchBuilder, Header, Record};
use parking_lot::Mutex;
use smallvec::SmallVec;

/// How far a timestamp may be ahead of what Kafka takes once this node's clock is right again (after it was
/// set back), and how far from this node's clock where the broker does not tell the range.
const PATIENCE: Duration = Duration::from_hours(24);

/// A timestamp this close to the time of arrival is taken for it.
const ARRIVAL: Duration = Duration::from_secs(5);

/// A record without a timestamp (`RecordBatch.NO_TIMESTAMP`): Kafka takes it whatever the range of the topic
/// is.
pub(super) const NONE: i64 = -1;

/// Where the timestamps of a topic producer's records come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimestampSource {
    /// All are the time of arrival.
    Arrival,
    /// A template takes them from messages; where a message has none it is the time of arrival.
    #[default]
    Messages,
    /// They may be replaced.
    Replaceable,
}

/// Milliseconds since 1970 by this node's clock.
pub(super) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Knowledge about the timestamps of a partition.
#[derive(Debug, Default)]
pub(super) struct Timestamps {
    source: TimestampSource,
    /// The range that the broker named in its last refusal.
    accepted: Mutex<Option<(i64, i64)>>,
}

impl Timestamps {
    pub(super) fn new(source: TimestampSource) -> Self {
        Self { source, accepted: Mutex::default() }
    }

    /// Whether they may be replaced.
    pub(super) fn are_replaceable(&self) -> bool {
        self.source == TimestampSource::Replaceable
    }

    /// Takes down the range from the text of a refusal, where it is there (Kafka 2.4 and newer).
    pub(super) fn note_refusal(&self, text: Option<&str>) {
        *self.accepted.lock() = text.and_then(range);
    }

    /// The time closest to this node's that the broker takes, as far as it has told.
    pub(super) fn acceptable(&self) -> Option<i64> {
        let (min, max) = (*self.accepted.lock())?;
        Some(now_ms().clamp(min, max))
    }

    /// Whether all that is refused in this batch will be taken later. `since`: when its first record came.
    pub(super) fn will_pass(&self, records: &BatchBuilder, since: Option<Instant>) -> bool {
        let (now, accepted) = (now_ms(), *self.accepted.lock());
        let arrived = since.map(|since| now.saturating_sub(millis(since.elapsed())));
        let mut some = false;
        let all = records.records().all(|record| {
            let Ok(record) = record else { return false };
            if accepted.is_some_and(|(min, max)| (min..=max).contains(&record.timestamp)) {
                return true;
            }
            some = true;
            self.is_arrival(record.timestamp, arrived, now) && passes(record.timestamp, now, accepted)
        });
        // Where all are within the range it has moved meanwhile.
        all && (some || accepted.is_some())
    }

    fn is_arrival(&self, timestamp: i64, arrived: Option<i64>, now: i64) -> bool {
        let near = millis(ARRIVAL);
        match self.source {
            TimestampSource::Arrival => true,
            TimestampSource::Messages => arrived.is_some_and(|arrived| {
                (arrived.saturating_sub(near)..=now.saturating_add(near)).contains(&timestamp)
            }),
            TimestampSource::Replaceable => false,
        }
    }

    /// The refusal of a time of arrival in words.
    pub(super) fn describe(&self) -> String {
        let mend = "records wait until the clocks agree; set the clock of this node (or of Kafka) right";
        let Some((min, max)) = *self.accepted.lock() else {
            return format!("Kafka refuses the time of this node as a timestamp: {mend}");
        };
        let now = now_ms();
        let minutes = |beyond: i64| (beyond.saturating_add(30_000) / 60_000).max(1);
        if now > max {
            let beyond = minutes(now.saturating_sub(max));
            return format!(
                "the clock of this node is ahead: {beyond} min beyond the latest timestamp that Kafka takes; {mend}"
            );
        }
        if now < min {
            let beyond = minutes(min.saturating_sub(now));
            return format!(
                "the clock of this node is behind: {beyond} min before the earliest timestamp that Kafka takes; {mend}"
            );
        }
        "records that came while the clock of this node was ahead wait until Kafka takes their timestamps"
            .into()
    }
}

/// Whether Kafka will take a time of arrival that it refuses now.
fn passes(timestamp: i64, now: i64, accepted: Option<(i64, i64)>) -> bool {
    let patience = millis(PATIENCE);
    match accepted {
        // The clock is right again.
        Some((min, max)) if (min..=max).contains(&now) => {
            timestamp > max && timestamp.saturating_sub(max) <= patience
        }
        Some(_) => true,
        None => timestamp.abs_diff(now) <= patience.unsigned_abs(),
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// The range at the end of "Timestamp 5 of message with offset 0 is out of range. The timestamp should be
/// within [1, 4]".
fn range(text: &str) -> Option<(i64, i64)> {
    let (_, range) = text.rsplit_once("should be within [")?;
    let (min, rest) = range.split_once(',')?;
    let (max, _) = rest.split_once(']')?;
    let (min, max) = (min.trim().parse().ok()?, max.trim().parse().ok()?);
    (min <= max).then_some((min, max))
}

/// The same records with another timestamp.
pub(super) fn restamped(records: &BatchBuilder, timestamp: i64) -> Option<BatchBuilder> {
    let mut copy = BatchBuilder::with_capacity(records.len());
    for record in records.records() {
        let record = record.ok()?;
        let mut headers: SmallVec<[Header<'_>; 16]> = SmallVec::new();
        for (key, value) in record.headers() {
            headers.push(Header { key: std::str::from_utf8(key).ok()?, value });
        }
        copy.append(&Record { timestamp, key: record.key, value: record.value, headers: &headers });
    }
    Some(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn batch(timestamps: &[i64]) -> BatchBuilder {
        let mut batch = BatchBuilder::new();
        for timestamp in timestamps {
            let headers = [Header { key: "h", value: Some(b"1") }];
            batch.append(&Record { timestamp: *timestamp, key: None, value: Some(b"v"), headers: &headers });
        }
        batch
    }

    fn told(source: TimestampSource, min: i64, max: i64) -> Timestamps {
        let timestamps = Timestamps::new(source);
        timestamps.note_refusal(Some(&format!(
            "Timestamp 5 of message with offset 0 is out of range. The timestamp should be within [{min}, {max}]"
        )));
        timestamps
    }

    #[test]
    fn the_range_is_read_where_the_broker_tells_it_and_not_made_up_where_not() {
        let text =
            "Timestamp 9 of message with offset 3 is out of range. The timestamp should be within [-8, 7]";
        assert_eq!(range(text), Some((-8, 7)));
        for other in
            ["", "should be within [", "should be within [a, 7]", "should be within [9, 7]", "[1, 2]"]
        {
            assert_eq!(range(other), None, "{other}");
        }
    }

    #[test]
    fn a_time_of_arrival_waits_as_long_as_this_nodes_clock_is_out_of_the_range() {
        let now = now_ms();
        let waits = |ahead_of_range: i64, timestamp: i64| {
            let max = now - ahead_of_range;
            let timestamps = told(TimestampSource::Arrival, max - 10 * HOUR, max);
            timestamps.will_pass(&batch(&[timestamp]), None)
        };
        assert!(waits(HOUR, now), "ahead");
        assert!(waits(HOUR, now - 24 * HOUR), "one that waited does so still");
        assert!(waits(-20 * HOUR, now), "behind");
        // The clock is right again.
        assert!(waits(-HOUR, now + 2 * HOUR), "its time will come");
        assert!(!waits(-HOUR, now + 48 * HOUR), "in two days");
        assert!(!waits(-HOUR, now - 12 * HOUR), "it waited for too long, and will never be taken");
        let untold = Timestamps::new(TimestampSource::Arrival);
        assert!(untold.will_pass(&batch(&[now, now + 2 * HOUR]), None));
        assert!(!untold.will_pass(&batch(&[now - 48 * HOUR]), None));
    }

    #[test]
    fn a_timestamp_of_a_message_does_not_wait_unless_it_is_the_time_of_arrival() {
        let now = now_ms();
        let timestamps = told(TimestampSource::Messages, now - 10 * HOUR, now - HOUR);
        let since = Some(Instant::now());
        assert!(timestamps.will_pass(&batch(&[now, now + 1]), since));
        assert!(timestamps.will_pass(&batch(&[now - 2 * HOUR, now]), since), "beside one that is taken");
        assert!(!timestamps.will_pass(&batch(&[now, now + HOUR]), since), "to be told apart first");
        assert!(!timestamps.will_pass(&batch(&[now * 1000]), since));
        assert!(!timestamps.will_pass(&batch(&[now]), None), "it is not known when it came");
        assert!(!told(TimestampSource::Replaceable, 0, 1).will_pass(&batch(&[now]), since));
    }

    #[test]
    fn another_timestamp_leaves_the_records_as_they_are() {
        let copy = restamped(&batch(&[5, 7, 3]), NONE).unwrap();
        let read: Vec<_> = copy.records().flatten().map(|record| record.timestamp).collect();
        assert_eq!(read, [NONE; 3]);
        let record = copy.records().next().unwrap().unwrap();
        assert_eq!((record.value, record.header_count()), (Some(&b"v"[..]), 1));
    }

    #[test]
    fn the_status_says_which_clock_is_off_and_by_how_much() {
        let now = now_ms();
        assert!(told(TimestampSource::Arrival, 0, now - HOUR).describe().contains("ahead: 60 min"));
        assert!(
            told(TimestampSource::Arrival, now + HOUR, now + 2 * HOUR).describe().contains("behind: 60 min")
        );
    }
}
