//! Metadata of the cluster: brokers, topics, leaders, and the cache of it.

use std::collections::HashMap;
use std::sync::Arc;

use kafka_protocol::messages::metadata_response::{MetadataResponse, MetadataResponseTopic};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Address, ResponseError};

/// A broker as the cluster advertises it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its id.
    pub id: i32,
    /// Where it wants to be called.
    pub address: Address,
}

/// One partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionView {
    /// Broker id of the leader; -1 while there is none.
    pub leader: i32,
    /// Rises with every election; -1 where the broker does not tell.
    pub leader_epoch: i32,
    /// The partition's own error, such as LEADER_NOT_AVAILABLE.
    pub error: Option<ResponseError>,
}

/// One topic at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicView {
    /// Name.
    pub name: Arc<str>,
    /// Id of this incarnation (KIP-516); zero before Kafka 2.8. A topic made anew has another.
    pub topic_id: [u8; 16],
    /// The topic's own error, such as UNKNOWN_TOPIC_OR_PARTITION.
    pub error: Option<ResponseError>,
    /// Partitions; the index is the partition's number.
    pub partitions: Vec<PartitionView>,
    /// When a broker said so.
    pub as_of: Instant,
}

impl TopicView {
    /// The view of an answer. Partition numbers are 0 to n-1 in Kafka; `None` where they are not.
    pub(super) fn of(answer: &MetadataResponseTopic, now: Instant) -> Option<Self> {
        let name = answer.name.as_ref()?;
        let absent =
            PartitionView { leader: -1, leader_epoch: -1, error: Some(ResponseError::LeaderNotAvailable) };
        let mut partitions = vec![absent; answer.partitions.len()];
        for partition in &answer.partitions {
            let index = usize::try_from(partition.partition_index).ok()?;
            *partitions.get_mut(index)? = PartitionView {
                leader: partition.leader_id.0,
                leader_epoch: partition.leader_epoch,
                error: ResponseError::try_from_code(partition.error_code),
            };
        }
        Some(Self {
            name: Arc::from(name.0.as_str()),
            topic_id: answer.topic_id.into_bytes(),
            error: ResponseError::try_from_code(answer.error_code),
            partitions,
            as_of: now,
        })
    }

    /// Takes over from `older` what is newer there: a broker that lags behind must not take a partition
    /// back to a former leader (KIP-320).
    fn over(mut self, older: &Self) -> Self {
        if self.topic_id == older.topic_id {
            for (new, old) in self.partitions.iter_mut().zip(&older.partitions) {
                if new.leader_epoch >= 0 && new.leader_epoch < old.leader_epoch && old.error.is_none() {
                    *new = *old;
                }
            }
        }
        self
    }
}

/// A topic that is watched: always holds the newest view.
pub type TopicWatch = watch::Receiver<Option<Arc<TopicView>>>;

/// The cache: brokers' addresses and one watched view a topic.
#[derive(Default)]
pub(super) struct MetadataCache {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    brokers: HashMap<i32, Address>,
    topics: HashMap<Arc<str>, watch::Sender<Option<Arc<TopicView>>>>,
}

impl MetadataCache {
    pub(super) fn broker(&self, id: i32) -> Option<Address> {
        self.inner.lock().brokers.get(&id).cloned()
    }

    pub(super) fn brokers(&self) -> Vec<Broker> {
        let inner = self.inner.lock();
        inner.brokers.iter().map(|(id, address)| Broker { id: *id, address: address.clone() }).collect()
    }

    /// Notes a broker that another answer named (FindCoordinator).
    pub(super) fn note_broker(&self, id: i32, address: Address) {
        self.inner.lock().brokers.insert(id, address);
    }

    pub(super) fn watch(&self, topic: &str) -> TopicWatch {
        let mut inner = self.inner.lock();
        if let Some(sender) = inner.topics.get(topic) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        inner.topics.insert(Arc::from(topic), sender);
        receiver
    }

    pub(super) fn view(&self, topic: &str) -> Option<Arc<TopicView>> {
        self.inner.lock().topics.get(topic).and_then(|sender| sender.borrow().clone())
    }

    /// Takes an answer in and returns the new views in its order; an error text where it cannot be true.
    pub(super) fn update(
        &self,
        answer: &MetadataResponse,
        now: Instant,
    ) -> Result<Vec<Arc<TopicView>>, &'static str> {
        let mut brokers = HashMap::with_capacity(answer.brokers.len());
        for broker in &answer.brokers {
            let port = u16::try_from(broker.port).map_err(|_| "a port is out of range")?;
            brokers.insert(broker.node_id.0, Address::new(&*broker.host, port));
        }
        let mut views = Vec::with_capacity(answer.topics.len());
        for topic in &answer.topics {
            views.push(TopicView::of(topic, now).ok_or("a topic's partitions are not numbered from 0")?);
        }
        let mut inner = self.inner.lock();
        if !brokers.is_empty() {
            inner.brokers = brokers;
        }
        let mut published = Vec::with_capacity(views.len());
        for view in views {
            let sender = inner.topics.entry(view.name.clone()).or_insert_with(|| watch::channel(None).0);
            let older = sender.borrow().clone();
            let view = Arc::new(match &older {
                Some(older) => view.over(older),
                None => view,
            });
            sender.send_replace(Some(view.clone()));
            published.push(view);
        }
        Ok(published)
    }

    /// Forgets topics that are neither watched nor were asked for since `before`.
    pub(super) fn forget_unwatched(&self, before: Instant) {
        self.inner.lock().topics.retain(|_, sender| {
            sender.receiver_count() > 0 || sender.borrow().as_ref().is_some_and(|view| view.as_of >= before)
        });
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::TopicName;
    use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponsePartition};
    use kafka_protocol::protocol::StrBytes;

    use super::*;

    fn answer(partitions: &[(i32, i32, i32)]) -> MetadataResponse {
        let partitions = partitions.iter().map(|(index, leader, epoch)| {
            MetadataResponsePartition::default()
                .with_partition_index(*index)
                .with_leader_id((*leader).into())
                .with_leader_epoch(*epoch)
        });
        MetadataResponse::default()
            .with_brokers(vec![
                MetadataResponseBroker::default()
                    .with_node_id(1.into())
                    .with_host(StrBytes::from_static_str("a"))
                    .with_port(9092),
            ])
            .with_topics(vec![
                MetadataResponseTopic::default()
                    .with_name(Some(TopicName(StrBytes::from_static_str("t"))))
                    .with_partitions(partitions.collect()),
            ])
    }

    #[test]
    fn a_broker_that_lags_behind_does_not_take_a_partition_back() {
        let cache = MetadataCache::default();
        let now = Instant::now();
        cache.update(&answer(&[(1, 7, 3), (0, 6, 2)]), now).unwrap();
        let views = cache.update(&answer(&[(0, 5, 1), (1, 8, 4)]), now).unwrap();
        let leaders: Vec<_> = views[0].partitions.iter().map(|p| (p.leader, p.leader_epoch)).collect();
        assert_eq!(leaders, [(6, 2), (8, 4)]);
    }

    #[test]
    fn partitions_that_are_not_numbered_from_zero_are_refused() {
        let cache = MetadataCache::default();
        assert!(cache.update(&answer(&[(0, 1, 1), (i32::MAX, 1, 1)]), Instant::now()).is_err());
        assert!(cache.update(&answer(&[(-1, 1, 1)]), Instant::now()).is_err());
        assert!(cache.view("t").is_none());
    }

    #[test]
    fn a_watcher_sees_the_newest_view() {
        let cache = MetadataCache::default();
        let watch = cache.watch("t");
        assert!(watch.borrow().is_none());
        cache.update(&answer(&[(0, 1, 1)]), Instant::now()).unwrap();
        assert_eq!(watch.borrow().as_ref().unwrap().partitions.len(), 1);
        assert_eq!(cache.broker(1), Some(Address::new("a", 9092)));
    }

    #[test]
    fn topics_that_nobody_watches_are_forgotten() {
        let cache = MetadataCache::default();
        let now = Instant::now();
        cache.update(&answer(&[(0, 1, 1)]), now).unwrap();
        let watch = cache.watch("kept");
        cache.forget_unwatched(now + std::time::Duration::from_secs(1));
        assert!(cache.view("t").is_none());
        assert_eq!(cache.inner.lock().topics.len(), 1);
        drop(watch);
    }
}
