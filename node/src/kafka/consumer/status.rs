//! How a consumer is doing, in words for people.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::group::Standing;
use crate::kafka::client::ResponseError;

/// How a consumer is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerStatus {
    /// It is in its group and reads every partition that it was assigned.
    Connected,
    /// It is on its way; nothing needs to be done.
    Connecting {
        /// Obstacle that it waits for.
        reason: String,
    },
    /// Something keeps it from reading; it keeps trying.
    Disconnected {
        /// Obstacle.
        reason: String,
    },
}

/// A leader that moves, a broker that restarts: what is well again within this time disconnects no bridge.
const GRACE: Duration = Duration::from_secs(5);

/// Status of a partition from its assignment until it is read.
const NEW: &str = "looking for its leader and offset";

#[derive(Debug, PartialEq, Eq)]
struct Fault {
    reason: String,
    since: Instant,
}

/// Collects what the group member and the fetchers have to say.
pub(super) struct StatusBoard {
    said: Mutex<Said>,
    watch: watch::Sender<ConsumerStatus>,
}

struct Said {
    standing: Standing,
    /// Faults by their subject, with the time since when.
    faults: BTreeMap<Arc<str>, Fault>,
    /// Topics that Kafka does not have or does not show us, and the reason.
    missing: BTreeMap<Arc<str>, ResponseError>,
    /// Rises with every assignment: what tasks of an earlier one say no longer counts.
    era: u64,
}

impl StatusBoard {
    pub(super) fn new() -> Self {
        let reason = "starting".to_owned();
        let said = Said {
            standing: Standing::Joining(reason.clone()),
            faults: BTreeMap::new(),
            missing: BTreeMap::new(),
            era: 0,
        };
        let (watch, _) = watch::channel(ConsumerStatus::Connecting { reason });
        Self { said: Mutex::new(said), watch }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<ConsumerStatus> {
        self.watch.subscribe()
    }

    pub(super) fn standing(&self, standing: Standing) {
        let mut said = self.said.lock();
        if said.standing != standing {
            said.standing = standing;
            self.publish(&said);
        }
    }

    /// Something is wrong with `about`. Said again after a while it is serious.
    pub(super) fn fault(&self, era: u64, about: &str, reason: String) {
        self.fault_at(era, about, reason, Instant::now());
    }

    fn fault_at(&self, era: u64, about: &str, reason: String, now: Instant) {
        let mut said = self.said.lock();
        if said.era != era {
            return;
        }
        let since = said.faults.get(about).map(|fault| fault.since);
        if said.faults.get(about).is_none_or(|fault| fault.reason != reason) {
            tracing::warn!(about, reason, "kafka consumer cannot read");
        }
        said.faults.insert(Arc::from(about), Fault { reason, since: since.unwrap_or(now) });
        self.publish_at(&said, now);
    }

    /// A partition was assigned: until it is placed we are not connected.
    pub(super) fn assigned(&self, era: u64, about: &str) {
        let mut said = self.said.lock();
        if said.era == era {
            said.faults.insert(Arc::from(about), Fault { reason: NEW.to_owned(), since: Instant::now() });
            self.publish(&said);
        }
    }

    /// It has its leader and offset. What went wrong before must be proved well by a fetch.
    pub(super) fn placed(&self, era: u64, about: &str) {
        let mut said = self.said.lock();
        if said.era == era && said.faults.get(about).is_some_and(|fault| fault.reason == NEW) {
            said.faults.remove(about);
            self.publish(&said);
        }
    }

    /// `about` is well.
    pub(super) fn well(&self, era: u64, about: &str) {
        let mut said = self.said.lock();
        if said.era == era && said.faults.remove(about).is_some() {
            tracing::info!(about, "kafka consumer reads again");
            self.publish(&said);
        }
    }

    /// Another assignment begins: what was wrong with the last is no longer ours. Returns the era in
    /// which faults count from now on.
    pub(super) fn forget_faults(&self) -> u64 {
        let mut said = self.said.lock();
        said.faults.clear();
        said.era += 1;
        self.publish(&said);
        said.era
    }

    /// Kafka does not have the topic, or does not show it to us.
    pub(super) fn topic_missing(&self, topic: &Arc<str>, code: ResponseError) {
        let mut said = self.said.lock();
        if said.missing.insert(topic.clone(), code) != Some(code) {
            tracing::warn!(topic = &**topic, %code, "kafka does not have the topic, waiting for it");
            self.publish(&said);
        }
    }

    /// It knows it (again).
    pub(super) fn topic_found(&self, topic: &Arc<str>) {
        let mut said = self.said.lock();
        if said.missing.remove(topic).is_some() {
            self.publish(&said);
        }
    }

    fn publish(&self, said: &Said) {
        self.publish_at(said, Instant::now());
    }

    fn publish_at(&self, said: &Said, now: Instant) {
        let oldest = said.faults.iter().min_by_key(|(_, fault)| fault.since);
        let status = match (&said.standing, oldest) {
            (Standing::Out(reason), _) => ConsumerStatus::Disconnected { reason: reason.clone() },
            _ if !said.missing.is_empty() => {
                let text = |(topic, code): (&Arc<str>, &ResponseError)| match code {
                    ResponseError::UnknownTopicOrPartition => format!("Kafka does not know topic {topic}"),
                    code => format!("Kafka answered {code} for topic {topic}"),
                };
                let reason = said.missing.iter().map(text).collect::<Vec<_>>().join(", ");
                ConsumerStatus::Disconnected { reason }
            }
            (Standing::Joining(reason), None) => ConsumerStatus::Connecting { reason: reason.clone() },
            (_, Some((about, fault))) => {
                let more = said.faults.len() - 1;
                let others = if more == 0 { String::new() } else { format!(" (and {more} more)") };
                let reason = format!("{about}: {}{others}", fault.reason);
                if now.duration_since(fault.since) < GRACE {
                    ConsumerStatus::Connecting { reason }
                } else {
                    ConsumerStatus::Disconnected { reason }
                }
            }
            (Standing::Stable, None) => ConsumerStatus::Connected,
        };
        self.watch.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_connected_only_with_its_partitions_and_nothing_wrong() {
        let board = StatusBoard::new();
        let watch = board.subscribe();
        assert!(matches!(*watch.borrow(), ConsumerStatus::Connecting { .. }));
        board.standing(Standing::Stable);
        assert_eq!(*watch.borrow(), ConsumerStatus::Connected);
        let era = board.forget_faults();
        board.assigned(era, "t-0");
        assert!(matches!(*watch.borrow(), ConsumerStatus::Connecting { .. }));
        board.placed(era, "t-0");
        assert_eq!(*watch.borrow(), ConsumerStatus::Connected);
        let now = Instant::now();
        board.fault_at(era, "t-0", "no leader".to_owned(), now);
        board.fault_at(era, "t-1", "no leader".to_owned(), now + Duration::from_secs(1));
        let reason = "t-0: no leader (and 1 more)".to_owned();
        assert_eq!(*watch.borrow(), ConsumerStatus::Connecting { reason: reason.clone() });
        // It lasts: now it is serious.
        board.fault_at(era, "t-0", "no leader".to_owned(), now + GRACE);
        assert_eq!(*watch.borrow(), ConsumerStatus::Disconnected { reason });
        board.well(era, "t-0");
        board.well(era, "t-1");
        assert_eq!(*watch.borrow(), ConsumerStatus::Connected);
        board.topic_missing(&Arc::from("gone"), ResponseError::UnknownTopicOrPartition);
        assert!(
            matches!(&*watch.borrow(), ConsumerStatus::Disconnected { reason } if reason.contains("gone"))
        );
        board.topic_found(&Arc::from("gone"));
        assert_eq!(*watch.borrow(), ConsumerStatus::Connected);
    }

    #[test]
    fn what_a_former_assignment_says_no_longer_counts() {
        let board = StatusBoard::new();
        board.standing(Standing::Stable);
        let before = board.forget_faults();
        board.forget_faults();
        board.fault(before, "t-0", "no leader".to_owned());
        assert_eq!(*board.subscribe().borrow(), ConsumerStatus::Connected);
    }
}
