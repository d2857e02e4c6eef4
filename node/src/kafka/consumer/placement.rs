//! Finding the way to a partition: who leads it, and where to begin.
//!
//! Partitions come here when they are assigned and whenever a fetcher could not go on with them. Each
//! leaves with an offset to the fetcher of its leader. What cannot be placed yet is tried again with
//! backoff; the client's metadata floor bounds how often Kafka is asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::context::Context;
use super::fetcher::{Roster, fetch};
use super::partition::Partition;
use super::topics::{Learned, Start};
use super::{OffsetReset, TopicPartition};
use crate::kafka::client::{Error, PartitionView, TopicView};

/// Partitions without a fetcher.
#[derive(Default)]
pub(super) struct Placement {
    /// True where what the cache says of the leader has been tried and did not serve.
    unplaced: Mutex<BTreeMap<TopicPartition, (Arc<Partition>, bool)>>,
    wake: Notify,
}

impl Placement {
    /// Looks for a way to `partition`; with `afresh` after asking Kafka again.
    pub(super) fn seek(&self, partition: Arc<Partition>, afresh: bool) {
        self.unplaced.lock().insert(partition.name.clone(), (partition, afresh));
        self.wake.notify_one();
    }

    fn snapshot(&self) -> Vec<(Arc<Partition>, bool)> {
        self.unplaced.lock().values().cloned().collect()
    }

    fn done(&self, name: &TopicPartition) {
        self.unplaced.lock().remove(name);
    }

    fn stale(&self, name: &TopicPartition) {
        if let Some((_, afresh)) = self.unplaced.lock().get_mut(name) {
            *afresh = true;
        }
    }
}

/// Places partitions for ever; ended by aborting its task, which ends its fetchers.
pub(super) async fn place(context: Arc<Context>) {
    let mut fetchers: HashMap<i32, Arc<Roster>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut failures = 0u32;
    loop {
        let unplaced = context.placement.snapshot();
        if unplaced.is_empty() {
            failures = 0;
            context.placement.wake.notified().await;
            continue;
        }
        let afresh: BTreeSet<&str> = unplaced
            .iter()
            .filter(|(_, afresh)| *afresh)
            .map(|(partition, _)| &*partition.name.topic)
            .collect();
        let topics: BTreeSet<&str> = unplaced.iter().map(|(partition, _)| &*partition.name.topic).collect();
        let views = topics.into_iter().map(|topic| view(&context, topic, afresh.contains(topic)));
        let views: HashMap<String, Result<Arc<TopicView>, Error>> =
            join_all(views).await.into_iter().collect();
        let attempts = unplaced.iter().map(|(partition, _)| {
            let view = views.get(&*partition.name.topic);
            prepare(&context, partition, view)
        });
        let mut unsuccessful = false;
        for ((partition, _), result) in unplaced.iter().zip(join_all(attempts).await) {
            match result {
                Ok(known) => {
                    context.placement.done(&partition.name);
                    let roster = fetchers.entry(known.leader).or_insert_with(|| {
                        let roster = Arc::new(Roster::default());
                        tasks.spawn(fetch(context.clone(), known.leader, roster.clone()));
                        roster
                    });
                    context.status.placed(&partition.name.to_string());
                    roster.add(partition.clone(), known.leader_epoch);
                }
                Err(reason) => {
                    unsuccessful = true;
                    context.placement.stale(&partition.name);
                    context.status.fault(&partition.name.to_string(), reason);
                }
            }
        }
        if unsuccessful {
            failures = failures.saturating_add(1);
            tokio::time::sleep(context.options.retry_backoff.jittered(failures)).await;
        }
    }
}

async fn view(context: &Context, topic: &str, afresh: bool) -> (String, Result<Arc<TopicView>, Error>) {
    let cached = context.client.cached(topic).filter(|view| !afresh && view.error.is_none());
    let view = if let Some(view) = cached {
        Ok(view)
    } else {
        let create = context.client.options().allow_auto_topic_creation;
        context.client.refresh(topic, create).await
    };
    (topic.to_owned(), view)
}

/// Makes sure that a partition has a leader and an offset.
async fn prepare(
    context: &Context,
    partition: &Partition,
    view: Option<&Result<Arc<TopicView>, Error>>,
) -> Result<PartitionView, String> {
    let name = &partition.name;
    let view = match view {
        Some(Ok(view)) => view,
        Some(Err(error)) => return Err(error.to_string()),
        None => return Err("its topic was not looked up".to_owned()),
    };
    let (learned, topic_id) = {
        let mut topics = context.topics.lock();
        (topics.learn(view), topics.topic_id(&name.topic))
    };
    if learned == Learned::Outdated {
        return Err(
            "the topic was made again, and the broker that answered does not know that yet".to_owned()
        );
    }
    if partition.belongs_to(topic_id) {
        tracing::warn!(
            partition = %name,
            "the topic was deleted and made again: the new one is read from its beginning"
        );
    }
    if let Some(code) = view.error {
        return Err(format!("Kafka answered {code} for topic {:?}", name.topic));
    }
    let index = usize::try_from(name.partition).ok();
    let known = index.and_then(|index| view.partitions.get(index)).copied();
    let known = known.ok_or_else(|| format!("topic {:?} has no partition {}", name.topic, name.partition))?;
    if known.leader < 0 {
        let code = known.error.map_or_else(String::new, |code| format!(" ({code})"));
        return Err(format!("it has no leader{code}"));
    }
    if let Some(start) = partition.needs_offset() {
        let policy = match start {
            Start::Beginning => OffsetReset::Earliest,
            Start::At(_) | Start::Policy => context.options.offset_reset,
        };
        let listed = context.client.list_offset(&name.topic, name.partition, policy.into(), true).await;
        let offset = listed.map_err(|error| error.to_string())?.offset;
        tracing::info!(
            partition = %name,
            offset,
            ?policy,
            new = start == Start::Beginning,
            "starting without a committed offset"
        );
        partition.begin_at(offset.max(0));
    }
    Ok(known)
}
