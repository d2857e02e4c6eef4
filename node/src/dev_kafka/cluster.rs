//! State that all broker listeners of one development Kafka share: brokers, topics, groups, memory limit,
//! data directory.
//!
//! Lock order: `topics` before a partition's `log`, `log` before `store`. No lock is held across an await.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::protocol::StrBytes;
use parking_lot::{Mutex, RwLock};
use tracing::{debug, warn};
use uuid::Uuid;

use super::coordinator::Groups;
use super::faults::Faults;
use super::groups::Limits;
use super::log::PartitionLog;
use super::store::{Meta, Store, TopicMeta};
use super::topics::{MAX_PARTITIONS, Partition, Topic, TopicConfig, Topics, check_name};
use super::{Error, Options, TopicSpec};

/// Producer ids are reserved in the data directory in blocks of this size, as Kafka does.
const PRODUCER_ID_BLOCK: i64 = 1000;

/// The shared state of one development Kafka.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) id: StrBytes,
    pub(super) options: Options,
    /// Addresses of the broker listeners; broker ids count from 1.
    pub(super) brokers: Vec<SocketAddr>,
    pub(super) topics: RwLock<Topics>,
    pub(super) faults: Faults,
    pub(super) groups: Groups,
    /// The broker that coordinates all groups.
    coordinator: AtomicI32,
    next_producer_id: AtomicI64,
    reserved_producer_id: Mutex<i64>,
    /// Bytes of all logs.
    total: AtomicUsize,
    store: Option<Mutex<Store>>,
}

/// The time in milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Why a topic was not created, as code and text.
pub(super) type Refused = (ResponseError, String);

impl Cluster {
    /// Opens the data directory, if there is one, and creates the topics that `options` names and that do not
    /// exist.
    pub(super) fn open(options: Options, brokers: Vec<SocketAddr>) -> Result<Arc<Self>, Error> {
        let storage = |path: &std::path::Path| {
            let path = path.to_owned();
            move |source| Error::Storage { path, source }
        };
        let mut meta = Meta::default();
        let mut store = None;
        let mut offsets = Vec::new();
        if let Some(path) = &options.data_dir {
            let (opened, found, committed) = Store::open(path).map_err(storage(path))?;
            offsets = committed;
            meta = found;
            store = Some(opened);
        }
        if meta.cluster_id.is_empty() {
            meta.cluster_id = Uuid::from_u128(rand::random()).simple().to_string();
        }
        let faults = Faults::new(brokers.len());
        let limits = Limits {
            min_session_timeout: options.group_min_session_timeout,
            max_session_timeout: options.group_max_session_timeout,
            initial_rebalance_delay: options.group_initial_rebalance_delay,
        };
        let cluster = Self {
            id: StrBytes::from_string(meta.cluster_id),
            brokers,
            topics: RwLock::default(),
            faults,
            groups: Groups::new(limits, offsets),
            coordinator: AtomicI32::new(1),
            next_producer_id: AtomicI64::new(meta.next_producer_id),
            reserved_producer_id: Mutex::new(meta.next_producer_id),
            total: AtomicUsize::new(0),
            store: store.map(Mutex::new),
            options,
        };
        for topic in meta.topics {
            let id = topic.id.parse().unwrap_or_else(|_| Uuid::from_u128(rand::random()));
            cluster
                .add_topic(&topic.name, id, topic.partitions, topic.configs.into_iter().collect())
                .map_err(|(_, reason)| Error::Topic { topic: topic.name.clone(), reason })?;
        }
        for spec in &cluster.options.topics {
            let TopicSpec { name, partitions, configs } = spec;
            if cluster.topic(name).is_none() {
                cluster
                    .create_topic(name, *partitions, configs.iter().cloned().collect())
                    .map_err(|(_, reason)| Error::Topic { topic: name.clone(), reason })?;
            }
        }
        cluster.enforce_total();
        Ok(Arc::new(cluster))
    }

    /// The topic called `name`.
    pub(super) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().by_name.get(name.as_bytes()).cloned()
    }

    /// The topic by name, or by id when the name is empty (as newer request versions have it).
    pub(super) fn topic_by(&self, name: &str, id: Uuid) -> Option<Arc<Topic>> {
        if id.is_nil() { self.topic(name) } else { self.topics.read().by_id.get(&id).cloned() }
    }

    /// Creates a topic and keeps it in the data directory.
    pub(super) fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: BTreeMap<String, String>,
    ) -> Result<Arc<Topic>, Refused> {
        let topic = self.add_topic(name, Uuid::from_u128(rand::random()), partitions, configs)?;
        debug!(topic = name, partitions, "created topic");
        self.save()?;
        Ok(topic)
    }

    /// Checks what `create_topic` would say.
    pub(super) fn check_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: BTreeMap<String, String>,
    ) -> Result<TopicConfig, Refused> {
        check_name(name).map_err(|error| (error, format!("Topic name is illegal: '{name}'")))?;
        if self.topic(name).is_some() {
            return Err((ResponseError::TopicAlreadyExists, format!("Topic '{name}' already exists.")));
        }
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            let reason =
                format!("Number of partitions must be between 1 and {MAX_PARTITIONS}, not {partitions}.");
            return Err((ResponseError::InvalidPartitions, reason));
        }
        TopicConfig::new(configs, self.options.max_message_bytes)
            .map_err(|reason| (ResponseError::InvalidConfig, reason))
    }

    fn add_topic(
        &self,
        name: &str,
        id: Uuid,
        partitions: i32,
        configs: BTreeMap<String, String>,
    ) -> Result<Arc<Topic>, Refused> {
        let config = self.check_topic(name, partitions, configs)?;
        let topic = Arc::new(Topic {
            name: StrBytes::from_string(name.to_owned()),
            id,
            config: RwLock::new(config),
            partitions: RwLock::default(),
        });
        let mut topics = self.topics.write();
        if topics.by_name.contains_key(name.as_bytes()) {
            return Err((ResponseError::TopicAlreadyExists, format!("Topic '{name}' already exists.")));
        }
        self.add_partitions(&topic, partitions)?;
        topics.insert(topic.clone());
        Ok(topic)
    }

    fn add_partitions(&self, topic: &Topic, count: i32) -> Result<(), Refused> {
        let mut partitions = topic.partitions.write();
        for index in partitions.len() as i32..count {
            let opened = match &self.store {
                Some(store) => Some(store.lock().partition(&topic.name, index).map_err(storage_refused)?),
                None => None,
            };
            let log = PartitionLog::open(opened);
            self.total.fetch_add(log.bytes(), Ordering::Relaxed);
            if let Some(id) = log.highest_producer_id() {
                self.next_producer_id.fetch_max(id + 1, Ordering::Relaxed);
            }
            let broker = index % self.brokers.len().max(1) as i32 + 1;
            partitions.push(Arc::new(Partition::new(index, broker, log)));
        }
        Ok(())
    }

    /// Grows a topic to `count` partitions.
    pub(super) fn grow_topic(&self, topic: &Topic, count: i32) -> Result<(), Refused> {
        self.add_partitions(topic, count)?;
        self.save()
    }

    /// Deletes a topic with its records.
    pub(super) fn delete_topic(&self, name: &StrBytes) -> Result<(), Refused> {
        let Some(topic) = self.topics.write().remove(name) else {
            return Err((ResponseError::UnknownTopicOrPartition, format!("Topic '{name}' does not exist.")));
        };
        for partition in topic.all() {
            self.total.fetch_sub(partition.size.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            partition.wake();
            if let Some(store) = &self.store {
                store.lock().delete_partition(name, partition.index).map_err(storage_refused)?;
            }
        }
        self.save()
    }

    /// Writes topics and the producer id reservation to the data directory.
    pub(super) fn save(&self) -> Result<(), Refused> {
        let Some(store) = &self.store else { return Ok(()) };
        let mut meta = Meta {
            cluster_id: self.id.to_string(),
            next_producer_id: *self.reserved_producer_id.lock(),
            topics: Vec::new(),
        };
        for (name, topic) in &self.topics.read().by_name {
            let configs = topic.config.read().given.clone().into_iter().collect();
            let partitions = topic.partitions.read().len() as i32;
            meta.topics.push(TopicMeta {
                name: name.to_string(),
                id: topic.id.to_string(),
                partitions,
                configs,
            });
        }
        store.lock().write_meta(&meta).map_err(storage_refused)
    }

    /// A producer id that was never handed out before.
    pub(super) fn new_producer_id(&self) -> Result<i64, Refused> {
        let id = self.next_producer_id.fetch_add(1, Ordering::Relaxed);
        let reserve = {
            let mut reserved = self.reserved_producer_id.lock();
            let used_up = id >= *reserved;
            if used_up {
                *reserved = id + PRODUCER_ID_BLOCK;
            }
            used_up
        };
        if reserve {
            self.save()?;
        }
        Ok(id)
    }

    /// The data directory, when there is one.
    pub(super) fn store(&self) -> Option<&Mutex<Store>> {
        self.store.as_ref()
    }

    /// The broker that coordinates all groups.
    pub(super) fn coordinator(&self) -> i32 {
        self.coordinator.load(Ordering::Relaxed)
    }

    /// Makes another broker the coordinator.
    pub(super) fn move_coordinator(&self, broker: i32) {
        self.coordinator.store(broker, Ordering::Relaxed);
    }

    /// Notes that a log dropped and gained bytes, and drops old batches when all together exceed the limit.
    pub(super) fn resized(&self, dropped: usize, gained: usize) {
        let total = self.total.fetch_add(gained, Ordering::Relaxed) + gained;
        self.total.fetch_sub(dropped, Ordering::Relaxed);
        if total > self.options.retention_bytes {
            self.enforce_total();
        }
    }

    /// Trims the largest partition, a sixteenth of the limit at a time, until the limit holds.
    fn enforce_total(&self) {
        let limit = self.options.retention_bytes;
        while self.total.load(Ordering::Relaxed) > limit {
            let topics = self.topics.read();
            let all = topics.by_name.values().flat_map(|topic| topic.all());
            let Some(largest) = all.max_by_key(|partition| partition.size.load(Ordering::Relaxed)) else {
                return;
            };
            let mut log = largest.log.lock();
            let keep = log.bytes().saturating_sub((limit / 16).max(1));
            let dropped = log.trim(keep);
            largest.note_size(&log);
            self.total.fetch_sub(dropped, Ordering::Relaxed);
            if dropped == 0 {
                warn!(limit, "the memory limit holds less than one batch per partition");
                return;
            }
        }
    }

    /// All batches of a partition from `offset` on.
    pub(super) fn batches(&self, topic: &str, partition: i32, offset: i64) -> Option<Vec<Bytes>> {
        let partition = self.topic(topic)?.partition(partition)?;
        let limit = super::log::ReadLimit { max_bytes: usize::MAX, at_least_one: true };
        let log = partition.log.lock();
        log.read(offset.max(log.start_offset()), limit).ok()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn storage_refused(error: std::io::Error) -> Refused {
    (ResponseError::KafkaStorageError, format!("cannot write the data directory: {error}"))
}
