//! A small in-memory Kafka for development and tests. **Not for production**: one copy of the data, no fsync,
//! no access control beside a SASL password check, and it drops the oldest records when its memory limit is
//! reached.
//!
//! It speaks Kafka's wire protocol to real clients: producers (with idempotence), consumers, consumer groups,
//! console tools. Records are opaque batches that are stored and answered as they came. One process can be
//! several brokers, which share everything, so that leaders can move; [`Faults`] makes it misbehave on
//! command.
//!
//! ```text
//! server.rs     listeners and connections          log.rs             one partition: batches, offsets, times
//! api/          requests and answers               producer_state.rs  idempotent producers of a partition
//! cluster.rs    what the brokers share             batch.rs           the batch header
//! topics.rs     topics, leaders, who waits         store.rs           the data directory
//! faults.rs     faults on command                  groups/            the group state machine
//! coordinator.rs  its timers and waiting requests   sasl.rs, tls.rs    PLAIN and SCRAM, certificates
//! ```
//!
//! It does not have: transactions, replication, log compaction, access control lists, quotas, KIP-848 groups,
//! share groups. A request is decoded by generated code that believes array lengths: do not put it where
//! strangers can reach it.

mod api;
mod batch;
mod cluster;
mod coordinator;
mod faults;
pub(crate) mod groups;
mod log;
mod producer_state;
mod run;
mod sasl;
mod server;
mod store;
mod tls;
mod topics;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;
use tracing::info;

pub use faults::{Error as FaultError, Faults, Match};
pub use groups::CommittedOffset;
pub use kafka_protocol::messages::ApiKey;
pub use producer_state::Producer;
pub use run::{Args, RunError, run};
pub use sasl::Sasl;
pub use tls::Tls;

use api::Context;
use cluster::Cluster;

/// A topic that exists from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name, as Kafka allows it.
    pub name: String,
    /// Its number of partitions, at least 1.
    pub partitions: i32,
    /// Its configuration, for instance `message.timestamp.type`.
    pub configs: Vec<(String, String)>,
}

impl TopicSpec {
    /// A topic with default configuration.
    pub fn new(name: impl Into<String>, partitions: i32) -> Self {
        Self { name: name.into(), partitions, configs: Vec::new() }
    }

    /// Sets one configuration key.
    pub fn config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.configs.push((name.into(), value.into()));
        self
    }
}

/// How to start a development Kafka.
#[derive(Debug, Clone)]
pub struct Options {
    /// One broker per address; port 0 takes a free one. Default: one broker on a free port of 127.0.0.1.
    pub bind: Vec<SocketAddr>,
    /// Directory that keeps topics, records and committed offsets over restarts. Default: none, all in
    /// memory.
    pub data_dir: Option<PathBuf>,
    /// Topics that exist from the start.
    pub topics: Vec<TopicSpec>,
    /// Whether asking for the metadata of an unknown topic creates it, when the client allows it. Default:
    /// yes.
    pub auto_create: bool,
    /// Partitions of topics that are created without a number. Default: 1.
    pub default_partitions: i32,
    /// Largest batch in bytes, unless `max.message.bytes` of the topic says otherwise. Default: Kafka's
    /// 1,048,588.
    pub max_message_bytes: usize,
    /// Bytes of records kept in all; beyond it the oldest of the largest partition go. Default: 1 GiB.
    pub retention_bytes: usize,
    /// Who may connect; with it every connection has to authenticate. Default: anybody.
    pub sasl: Option<Sasl>,
    /// With it all listeners speak TLS. Default: they do not.
    pub tls: Option<Tls>,
    /// Shortest session timeout that a group member may ask for. Default: Kafka's 6 s.
    pub group_min_session_timeout: Duration,
    /// Longest session timeout that a group member may ask for. Default: Kafka's 30 min.
    pub group_max_session_timeout: Duration,
    /// How long the first join of an empty group waits for other members. Default: none, where Kafka has 3 s.
    pub group_initial_rebalance_delay: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            data_dir: None,
            topics: Vec::new(),
            auto_create: true,
            default_partitions: 1,
            max_message_bytes: 1_048_588,
            retention_bytes: 1 << 30,
            sasl: None,
            tls: None,
            group_min_session_timeout: Duration::from_secs(6),
            group_max_session_timeout: Duration::from_mins(30),
            group_initial_rebalance_delay: Duration::ZERO,
        }
    }
}

impl Options {
    /// Several brokers, each on a free port of 127.0.0.1.
    pub fn brokers(count: usize) -> Self {
        Self { bind: vec![SocketAddr::from(([127, 0, 0, 1], 0)); count], ..Self::default() }
    }

    /// Adds a topic.
    pub fn topic(mut self, topic: TopicSpec) -> Self {
        self.topics.push(topic);
        self
    }
}

/// Why a development Kafka did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process listens there.
    #[error("the address {address} is in use by another process")]
    PortInUse {
        /// The address that was to be bound.
        address: SocketAddr,
    },
    /// The address cannot be bound for another reason.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address that was to be bound.
        address: SocketAddr,
        /// Error of the system.
        source: std::io::Error,
    },
    /// No address at all.
    #[error("no address to listen on: at least one is needed")]
    NoAddress,
    /// The certificate or key cannot be used.
    #[error("cannot speak TLS: {0}")]
    Tls(String),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {source}")]
    Storage {
        /// The directory.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A topic cannot be deleted.
    #[error("cannot delete topic {topic:?}: {reason}")]
    Deletion {
        /// Its name.
        topic: String,
        /// Fault and remedy.
        reason: String,
    },
    /// A topic cannot be created.
    #[error("cannot create topic {topic:?}: {reason}")]
    Topic {
        /// Its name.
        topic: String,
        /// Fault and remedy.
        reason: String,
    },
}

/// A running development Kafka. It stops when it is dropped.
#[derive(Debug)]
pub struct DevKafka {
    cluster: Arc<Cluster>,
    tasks: server::Tasks,
    timers: AbortHandle,
}

impl DevKafka {
    /// Binds all addresses and serves from then on.
    pub async fn start(options: Options) -> Result<Self, Error> {
        if options.bind.is_empty() {
            return Err(Error::NoAddress);
        }
        let tls = options.tls.as_ref().map(Tls::acceptor).transpose().map_err(Error::Tls)?;
        let bound = server::bind(&options.bind).await?;
        let addresses = bound.iter().map(|(_, address)| *address).collect();
        let cluster = Cluster::open(options, addresses)?;
        let mut tasks = server::Tasks::default();
        for (broker, (listener, address)) in (1..).zip(bound) {
            info!(broker, %address, "development Kafka listens");
            tasks.0.spawn(server::listen(
                listener,
                address,
                tls.clone(),
                Context::new(cluster.clone(), broker),
            ));
        }
        let timers = cluster.clone();
        let timers = tasks.0.spawn(async move { timers.groups.run_timers().await });
        Ok(Self { cluster, tasks, timers })
    }

    /// All brokers as `host:port,host:port`.
    pub fn bootstrap(&self) -> String {
        let addresses: Vec<_> = self.cluster.brokers.iter().map(ToString::to_string).collect();
        addresses.join(",")
    }

    /// The addresses of the brokers; the one with id 1 comes first.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.cluster.brokers
    }

    /// The handle that makes it misbehave.
    pub fn faults(&self) -> Faults {
        self.cluster.faults.clone()
    }

    /// Closes all connections and stops. Records in memory are gone.
    pub async fn stop(self) {
        self.cluster.faults.stop();
        self.timers.abort();
        self.tasks.finish().await;
    }

    /// Creates a topic; see [`TopicSpec`].
    pub fn create_topic(&self, spec: &TopicSpec) -> Result<(), Error> {
        let created =
            self.cluster.create_topic(&spec.name, spec.partitions, spec.configs.iter().cloned().collect());
        created.map(|_| ()).map_err(|(_, reason)| Error::Topic { topic: spec.name.clone(), reason })
    }

    /// Deletes a topic with all that is in it.
    pub fn delete_topic(&self, topic: &str) -> Result<(), Error> {
        let deleted = self.cluster.delete_topic(&topic.to_owned().into());
        deleted.map_err(|(_, reason)| Error::Deletion { topic: topic.to_owned(), reason })
    }

    /// Makes another broker the leader of a partition, under the next leader epoch.
    pub fn move_leader(&self, topic: &str, partition: i32, to_broker: i32) -> Result<(), FaultError> {
        self.cluster.faults.switch(to_broker).ok_or(FaultError::Broker(to_broker))?;
        let found = self.cluster.topic(topic).and_then(|topic| topic.partition(partition));
        let missing = || FaultError::Partition { topic: topic.to_owned(), partition };
        found.ok_or_else(missing)?.move_leader(to_broker);
        Ok(())
    }

    /// The broker that leads a partition and its leader epoch.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<(i32, i32)> {
        let leader = self.cluster.topic(topic)?.partition(partition)?.leader();
        Some((leader.broker, leader.epoch))
    }

    /// The partition's batches as they are stored, from the one that holds `offset` on; `None` when there is
    /// no such partition or offset.
    pub fn batches(&self, topic: &str, partition: i32, offset: i64) -> Option<Vec<Bytes>> {
        self.cluster.batches(topic, partition, offset)
    }

    /// Offset that the partition's next record gets.
    pub fn high_watermark(&self, topic: &str, partition: i32) -> Option<i64> {
        let partition = self.cluster.topic(topic)?.partition(partition)?;
        let next = partition.log.lock().next_offset();
        Some(next)
    }

    /// Offset of the partition's oldest record.
    pub fn log_start_offset(&self, topic: &str, partition: i32) -> Option<i64> {
        let partition = self.cluster.topic(topic)?.partition(partition)?;
        let start = partition.log.lock().start_offset();
        Some(start)
    }

    /// The idempotent producers that a partition knows, by producer id.
    pub fn producers(&self, topic: &str, partition: i32) -> Option<Vec<(i64, Producer)>> {
        let partition = self.cluster.topic(topic)?.partition(partition)?;
        let producers = partition.log.lock().producers();
        Some(producers)
    }

    /// Makes a partition forget a producer id, as Kafka does a day after its last write; answers whether it
    /// was known.
    pub fn forget_producer(&self, topic: &str, partition: i32, producer_id: i64) -> bool {
        let found = self.cluster.topic(topic).and_then(|topic| topic.partition(partition));
        found.is_some_and(|partition| partition.log.lock().forget_producer(producer_id))
    }

    /// Makes another broker the coordinator of all groups.
    pub fn move_coordinator(&self, to_broker: i32) -> Result<(), FaultError> {
        self.cluster.faults.switch(to_broker).ok_or(FaultError::Broker(to_broker))?;
        self.cluster.move_coordinator(to_broker);
        Ok(())
    }

    /// State of a consumer group with Kafka's names, such as `Stable`, and the ids of its members; `None`
    /// when there is no such group.
    pub fn group(&self, group: &str) -> Option<(&'static str, Vec<String>)> {
        self.cluster.groups.with(|coordinator, _| {
            let found = coordinator.groups().get(group)?;
            Some((found.state.name(), found.members().keys().cloned().collect()))
        })
    }

    /// Offset that a group committed for a partition.
    pub fn committed_offset(&self, group: &str, topic: &str, partition: i32) -> Option<CommittedOffset> {
        self.cluster.groups.with(|coordinator, _| {
            coordinator.groups().get(group)?.offsets().get(&(topic.to_owned(), partition)).cloned()
        })
    }
}
