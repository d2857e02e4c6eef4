//! Topics and their partitions: names, ids, configuration, leaders, and who waits for a partition to grow.
//!
//! Invariants: a name and an id stand for the same topic; partitions are never taken away from a living
//! topic; a leader's epoch rises with each move. A waiter is woken by every append to a partition it watches,
//! at once, and takes itself off the list when it is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kafka_protocol::ResponseError;
use kafka_protocol::protocol::StrBytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use uuid::Uuid;

use super::log::PartitionLog;

/// Longest topic name that Kafka takes.
const MAX_NAME: usize = 249;
/// Partitions of one topic at most, so that one request cannot take all memory.
pub(super) const MAX_PARTITIONS: i32 = 10_000;

/// A topic configuration that the broker knows: its name, default, type number of DescribeConfigs, and
/// whether it has an effect here.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConfigKey {
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    pub(super) kind: i8,
}

const STRING: i8 = 2;
const INT: i8 = 3;
const LONG: i8 = 5;
const LIST: i8 = 7;

/// Those with an effect first; the others are kept and shown, since tools set them.
pub(super) const CONFIG_KEYS: &[ConfigKey] = &[
    ConfigKey { name: "max.message.bytes", default: "", kind: INT },
    ConfigKey { name: "message.timestamp.type", default: "CreateTime", kind: STRING },
    ConfigKey { name: "message.timestamp.before.max.ms", default: "9223372036854775807", kind: LONG },
    ConfigKey { name: "message.timestamp.after.max.ms", default: "3600000", kind: LONG },
    ConfigKey { name: "retention.bytes", default: "-1", kind: LONG },
    ConfigKey { name: "cleanup.policy", default: "delete", kind: LIST },
    ConfigKey { name: "compression.type", default: "producer", kind: STRING },
    ConfigKey { name: "min.insync.replicas", default: "1", kind: INT },
    ConfigKey { name: "retention.ms", default: "604800000", kind: LONG },
    ConfigKey { name: "segment.bytes", default: "1073741824", kind: INT },
    ConfigKey { name: "segment.ms", default: "604800000", kind: LONG },
    ConfigKey { name: "delete.retention.ms", default: "86400000", kind: LONG },
];

/// Settings of one topic: those given, and what they mean.
#[derive(Debug, Clone)]
pub(super) struct TopicConfig {
    /// As given when the topic was created or altered.
    pub(super) given: BTreeMap<String, String>,
    /// Largest batch taken, in bytes (`max.message.bytes`).
    pub(super) max_message_bytes: usize,
    /// Whether the broker's time replaces the producer's (`message.timestamp.type`).
    pub(super) log_append_time: bool,
    /// Milliseconds by which timestamps may be before and after the broker's time
    /// (`message.timestamp.before.max.ms`, `message.timestamp.after.max.ms`).
    pub(super) timestamp_range: (i64, i64),
    /// Bytes kept per partition (`retention.bytes`), `None` without limit of its own.
    pub(super) retention_bytes: Option<usize>,
}

impl TopicConfig {
    /// Reads settings; the error names the setting and what it may be.
    pub(super) fn new(given: BTreeMap<String, String>, max_message_bytes: usize) -> Result<Self, String> {
        let mut config = Self {
            max_message_bytes,
            log_append_time: false,
            timestamp_range: (i64::MAX, 3_600_000),
            retention_bytes: None,
            given: BTreeMap::new(),
        };
        for (name, value) in &given {
            let Some(key) = CONFIG_KEYS.iter().find(|key| key.name == name) else {
                return Err(format!("Unknown topic config name: {name}"));
            };
            let number = value.parse::<i64>();
            if matches!(key.kind, INT | LONG) && number.is_err() {
                return Err(format!("Invalid value {value} for configuration {name}: not a number"));
            }
            match (name.as_str(), value.as_str(), number.unwrap_or(-1)) {
                ("max.message.bytes", _, bytes) => {
                    config.max_message_bytes = usize::try_from(bytes).map_err(|_| {
                        format!("Invalid value {value} for configuration {name}: must be at least 0")
                    })?;
                }
                ("message.timestamp.type", "CreateTime", _) => config.log_append_time = false,
                ("message.timestamp.type", "LogAppendTime", _) => config.log_append_time = true,
                ("message.timestamp.type", _, _) => {
                    return Err(format!(
                        "Invalid value {value} for configuration {name}: must be CreateTime or LogAppendTime"
                    ));
                }
                ("cleanup.policy", policy, _) if policy != "delete" => {
                    return Err(format!(
                        "Invalid value {value} for configuration {name}: this development Kafka knows only delete"
                    ));
                }
                ("compression.type", codec, _) if codec != "producer" => {
                    return Err(format!(
                        "Invalid value {value} for configuration {name}: this development Kafka knows only producer"
                    ));
                }
                ("message.timestamp.before.max.ms" | "message.timestamp.after.max.ms", _, ..0) => {
                    return Err(format!(
                        "Invalid value {value} for configuration {name}: must be at least 0"
                    ));
                }
                ("message.timestamp.before.max.ms", _, most) => config.timestamp_range.0 = most,
                ("message.timestamp.after.max.ms", _, most) => config.timestamp_range.1 = most,
                ("retention.bytes", _, bytes) => config.retention_bytes = usize::try_from(bytes).ok(),
                _ => {}
            }
        }
        config.given = given;
        Ok(config)
    }
}

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) index: i32,
    pub(super) log: Mutex<PartitionLog>,
    leader: Mutex<Leader>,
    /// Bytes in the log, readable without its lock.
    pub(super) size: AtomicUsize,
    waiters: Mutex<Vec<Arc<Notify>>>,
}

/// Who leads a partition, and for the how manieth time it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leader {
    pub(super) broker: i32,
    pub(super) epoch: i32,
}

impl Partition {
    pub(super) fn new(index: i32, broker: i32, log: PartitionLog) -> Self {
        let size = AtomicUsize::new(log.bytes());
        let leader = Mutex::new(Leader { broker, epoch: 0 });
        Self { index, log: Mutex::new(log), leader, size, waiters: Mutex::default() }
    }

    pub(super) fn leader(&self) -> Leader {
        *self.leader.lock()
    }

    /// Makes `broker` the leader under a new epoch, and wakes who fetches from the old one.
    pub(super) fn move_leader(&self, broker: i32) {
        {
            let mut leader = self.leader.lock();
            leader.broker = broker;
            leader.epoch += 1;
        }
        self.wake();
    }

    /// Wakes all who wait for this partition.
    pub(super) fn wake(&self) {
        for waiter in self.waiters.lock().drain(..) {
            waiter.notify_one();
        }
    }

    /// Has `waiter` woken by the next change.
    pub(super) fn watch(&self, waiter: &Arc<Notify>) {
        let mut waiters = self.waiters.lock();
        if !waiters.iter().any(|known| Arc::ptr_eq(known, waiter)) {
            waiters.push(waiter.clone());
        }
    }

    /// Takes `waiter` off the list.
    pub(super) fn unwatch(&self, waiter: &Arc<Notify>) {
        self.waiters.lock().retain(|known| !Arc::ptr_eq(known, waiter));
    }

    /// Keeps `size` in step with the log, which the caller has locked.
    pub(super) fn note_size(&self, log: &PartitionLog) {
        self.size.store(log.bytes(), Ordering::Relaxed);
    }
}

/// One topic.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: StrBytes,
    pub(super) id: Uuid,
    pub(super) config: RwLock<TopicConfig>,
    pub(super) partitions: RwLock<Vec<Arc<Partition>>>,
}

impl Topic {
    /// The partition with this index.
    pub(super) fn partition(&self, index: i32) -> Option<Arc<Partition>> {
        self.partitions.read().get(usize::try_from(index).ok()?).cloned()
    }

    /// All partitions, in order.
    pub(super) fn all(&self) -> Vec<Arc<Partition>> {
        self.partitions.read().clone()
    }
}

/// All topics, by name and by id.
#[derive(Debug, Default)]
pub(super) struct Topics {
    pub(super) by_name: BTreeMap<StrBytes, Arc<Topic>>,
    pub(super) by_id: BTreeMap<Uuid, Arc<Topic>>,
}

impl Topics {
    pub(super) fn insert(&mut self, topic: Arc<Topic>) {
        self.by_id.insert(topic.id, topic.clone());
        self.by_name.insert(topic.name.clone(), topic);
    }

    pub(super) fn remove(&mut self, name: &StrBytes) -> Option<Arc<Topic>> {
        let topic = self.by_name.remove(name)?;
        self.by_id.remove(&topic.id);
        Some(topic)
    }
}

/// Checks a new topic's name as Kafka does.
pub(super) fn check_name(name: &str) -> Result<(), ResponseError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let ok =
        !name.is_empty() && name.len() <= MAX_NAME && name != "." && name != ".." && name.chars().all(legal);
    if ok { Ok(()) } else { Err(ResponseError::InvalidTopicException) }
}
