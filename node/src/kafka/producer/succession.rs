//! From one producer to the one that takes its place: what is held goes along, with its tickets and in order.
//!
//! The successor is started with [`TopicProducerOptions::begin`](super::TopicProducerOptions::begin) shut,
//! takes all new records from then on, and begins when its predecessor has nothing left. A predecessor that
//! cannot send what it has hands it over: each partition's batches, those that were sent without an answer
//! first, then what waited for a partition; all of it goes in front of what the successor has been given
//! meanwhile.
//!
//! A batch that was sent and not answered may be in Kafka already, under the predecessor's producer id: the
//! successor writes it again. [`HandedOver::possibly_twice`] says how many records that were.

use std::sync::Arc;
use std::time::Duration;

use super::dynamic_topics::DynamicTopics;
use super::inbox::{InboxLimits, PartitionInbox};
use super::partition_producer::{ActorSlot, Partition, PartitionMessage};
use super::topic_producer::TopicProducerHandle;
use crate::flow::ledger::Ledger;

/// How long partitions may take to hand over what they have; they are asked again meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether they have.
const LOOK: Duration = Duration::from_millis(20);

/// Extent of a hand-over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandedOver {
    /// Records.
    pub records: u64,
    /// Of these, how many had been sent without an answer.
    pub possibly_twice: u64,
}

impl std::ops::AddAssign for HandedOver {
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.possibly_twice += other.possibly_twice;
    }
}

impl TopicProducerHandle {
    /// Resolves when nothing waits and nothing is in flight.
    pub async fn idle(&self) {
        self.routes.idle().await;
    }

    /// Gives everything held to a successor that has not begun. Nothing may be appended here any more.
    pub async fn hand_over(&self, to: &Self) -> HandedOver {
        self.hand_over_into(&to.routes.staging).await
    }

    async fn hand_over_into(&self, heir: &Arc<PartitionInbox>) -> HandedOver {
        let before = self.routes.ledger();
        // A partition in name only: gathers everything in order.
        let gathered =
            PartitionInbox::new(InboxLimits::new(usize::MAX, usize::MAX), Arc::<ActorSlot>::default());
        let gathering = Arc::new(Partition::new(0, gathered.clone(), Arc::default()));
        let moving = async {
            loop {
                for partition in self.routes.partitions() {
                    partition.actor.tell(PartitionMessage::MoveTo(self.routes.clone(), gathering.clone()));
                }
                while self.routes.partitions().iter().any(|partition| partition.inbox.is_busy()) {
                    tokio::time::sleep(LOOK).await;
                }
                self.routes.rehome_waiting(&self.routes.staging, &gathering);
                if !is_busy(&self.routes.ledger()) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(PATIENCE, moving).await;
        heir.prepend(std::iter::from_fn(|| gathered.surrender()).collect());
        let after = self.routes.ledger();
        let held = |ledger: &Ledger| ledger.queuing + ledger.inflight;
        HandedOver {
            records: held(&before).saturating_sub(held(&after)),
            possibly_twice: before.inflight.saturating_sub(after.inflight),
        }
    }

    /// As [`Self::hand_over`], to a successor of many topics: there it goes on under the name of `topic`.
    pub async fn hand_over_as(&self, topic: &str, to: &DynamicTopics) -> HandedOver {
        let heir = to.staging_of(topic);
        self.hand_over_into(&heir).await
    }
}

impl DynamicTopics {
    /// Resolves when nothing waits and nothing is in flight.
    pub async fn idle(&self) {
        while is_busy(&self.ledger()) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Gives everything held to a successor that has not begun, topic by topic. Nothing may be appended here
    /// any more.
    pub async fn hand_over(&self, to: &Self) -> HandedOver {
        let mut sum = HandedOver::default();
        for topic in self.names() {
            let heir = to.staging_of(&topic);
            sum += self.hand_over_topic(&topic, &heir).await;
        }
        sum
    }

    /// As [`Self::hand_over`], to a successor of one topic.
    pub async fn hand_over_to_one(&self, to: &TopicProducerHandle) -> HandedOver {
        let mut sum = HandedOver::default();
        for topic in self.names() {
            sum += self.hand_over_topic(&topic, &to.routes.staging).await;
        }
        sum
    }

    fn names(&self) -> Vec<Box<str>> {
        self.open.read().keys().cloned().collect()
    }

    async fn hand_over_topic(&self, topic: &str, heir: &Arc<PartitionInbox>) -> HandedOver {
        let Some(open) = self.take(topic) else { return HandedOver::default() };
        let moved = open.producer.hand_over_into(heir).await;
        self.remember(&open.producer.ledger());
        moved
    }

    /// Where records of a topic wait until this producer begins.
    fn staging_of(&self, topic: &str) -> Arc<PartitionInbox> {
        let mut open = self.open.write();
        let open = open.entry(topic.into()).or_insert_with(|| self.new_topic(topic));
        open.producer.routes.staging.clone()
    }
}

fn is_busy(ledger: &Ledger) -> bool {
    ledger.queuing + ledger.inflight > 0
}
