//! The handle of a running consumer: its status, its partitions, its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use ractor::ActorRef;
use tokio::sync::watch;

use super::TopicPartition;
use super::group::Event;
use super::member::Message;
use super::partition::Partition;
use super::status::{ConsumerStatus, StatusBoard};

/// State that the actor and its handle share.
pub(super) struct Shared {
    pub status: Arc<StatusBoard>,
    pub partitions: Mutex<Vec<Arc<Partition>>>,
    pub stopped: watch::Sender<bool>,
}

/// One partition at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionSnapshot {
    /// Which one.
    pub partition: TopicPartition,
    /// Offset committed last; `None` before the first commit of this assignment.
    pub committed: Option<i64>,
    /// Offset that the next commit would name.
    pub position: i64,
    /// The partition's end as Kafka last told.
    pub high_watermark: Option<i64>,
    /// Records between position and end.
    pub lag: Option<i64>,
    /// Records offered and unfinished.
    pub outstanding: usize,
    /// Batches that could not be read and were passed over, each logged as an error.
    pub unreadable_batches: u64,
}

/// Whether the group is told that we go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// For good: the partitions go to others at once.
    Final,
    /// To come back soon: a static member keeps its partitions for `session_timeout`. A dynamic one
    /// leaves as well: that it came back could not be known.
    Restart,
}

/// A running consumer. Dropping it ends the consumer without draining or leaving.
pub struct ConsumerHandle {
    pub(super) actor: ActorRef<Message>,
    pub(super) shared: Arc<Shared>,
    /// How long a stop may take.
    pub(super) patience: Duration,
    pub(super) is_static: bool,
}

impl ConsumerHandle {
    /// The actor, as its supervisor hears of it.
    pub fn actor_id(&self) -> ractor::ActorId {
        self.actor.get_id()
    }

    /// Makes the actor panic.
    #[cfg(test)]
    pub(crate) fn panic(&self) {
        let _ = self.actor.cast(Message::Panic);
    }

    /// How it is doing now.
    pub fn status(&self) -> ConsumerStatus {
        self.shared.status.subscribe().borrow().clone()
    }

    /// Every change of [`Self::status`].
    pub fn watch_status(&self) -> watch::Receiver<ConsumerStatus> {
        self.shared.status.subscribe()
    }

    /// The partitions that are ours now.
    pub fn partitions(&self) -> Vec<PartitionSnapshot> {
        let known = |value: i64| (value >= 0).then_some(value);
        let partitions = self.shared.partitions.lock();
        let snapshot = |partition: &Arc<Partition>| {
            let position = partition.position();
            let high_watermark = known(partition.high_watermark.load(Ordering::Acquire));
            PartitionSnapshot {
                partition: partition.name.clone(),
                committed: known(partition.committed.load(Ordering::Acquire)),
                position,
                high_watermark,
                lag: high_watermark.map(|end| (end - position).max(0)),
                outstanding: partition.outstanding(),
                unreadable_batches: partition.unreadable.load(Ordering::Relaxed),
            }
        };
        partitions.iter().map(snapshot).collect()
    }

    /// Stops reading, waits (bounded) for what is out, commits, leaves as told. Returns when all that is
    /// done.
    pub async fn stop(self, leave: Leave) {
        let mut stopped = self.shared.stopped.subscribe();
        let leave = leave == Leave::Final || !self.is_static;
        if self.actor.cast(Message::Event(Event::Stop { leave })).is_ok() {
            let end = stopped.wait_for(|stopped| *stopped);
            if tokio::time::timeout(self.patience, end).await.is_err() {
                tracing::warn!("a kafka consumer did not stop in time and is ended");
            }
        }
    }
}

impl Drop for ConsumerHandle {
    fn drop(&mut self) {
        self.actor.kill();
    }
}
