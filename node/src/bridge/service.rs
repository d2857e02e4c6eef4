//! The bridges of this node: started, changed and stopped at run time through one service.
//!
//! A bridge is described by data ([`Definition`]) and nothing else. Orders go to one actor
//! ([`super::manager`]), which checks and stores them, and to the actor of each bridge ([`super::bridge`]),
//! which carries them out: orders for one bridge one after the other, orders for different bridges side by
//! side. Readers of counters and status ask no actor, so that a slow drain delays none of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::RpcReplyPort;

use super::entry::{Entries, Retired};
use super::loops;
use super::manager::{self, Order};
use super::overlay::Overlay;
use super::rates::{self, Rates};
use super::shared_clients::SharedClients;
use crate::config::{ConnectionConfig, ConsumerBridgeConfig, ProducerBridgeConfig, Secrets};
use crate::flow::Lives;
use crate::flow::ledger::Ledger;
use crate::kafka::producer::{Latency, NodeMemory};
use crate::mqtt::Router;
use crate::supervision::{Child, Root};

/// Which way a bridge carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// MQTT to Kafka.
    Producer,
    /// Kafka to MQTT.
    Consumer,
}

impl Kind {
    /// The type as it stands in configuration and API paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Producer => "kafka",
            Self::Consumer => "kafka_consumer",
        }
    }
}

/// Names a bridge: `kafka:NAME` or `kafka_consumer:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BridgeId {
    /// Which way it carries.
    pub kind: Kind,
    /// Name, unique among its kind.
    pub name: String,
}

impl fmt::Display for BridgeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.name)
    }
}

impl FromStr for BridgeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let kind = |kind: &str| match kind {
            "kafka" | "kafka_producer" => Some(Kind::Producer),
            "kafka_consumer" => Some(Kind::Consumer),
            _ => None,
        };
        text.split_once(':')
            .and_then(|(prefix, name)| Some(Self { kind: kind(prefix)?, name: name.to_owned() }))
            .filter(|id| !id.name.is_empty())
            .ok_or_else(|| Error::BadId(text.to_owned()))
    }
}

/// Definition of a bridge: its configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum Definition {
    /// MQTT to Kafka.
    Producer(Box<ProducerBridgeConfig>),
    /// Kafka to MQTT.
    Consumer(Box<ConsumerBridgeConfig>),
}

impl Definition {
    /// Which way it carries.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Producer(_) => Kind::Producer,
            Self::Consumer(_) => Kind::Consumer,
        }
    }

    /// How it reaches Kafka.
    pub fn connection(&self) -> &ConnectionConfig {
        match self {
            Self::Producer(config) => &config.connection,
            Self::Consumer(config) => &config.connection,
        }
    }

    /// Takes the secrets of `stored` where this one has only their mask.
    pub fn keep_secrets_of(&mut self, stored: &Self) {
        match (self, stored) {
            (Self::Producer(new), Self::Producer(old)) => new.keep_secrets_of(old),
            (Self::Consumer(new), Self::Consumer(old)) => new.keep_secrets_of(old),
            _ => {}
        }
    }

    /// As JSON, which the configuration reads back.
    pub fn canonical_json(&self, secrets: Secrets) -> serde_json::Value {
        match self {
            Self::Producer(config) => config.canonical_json(secrets),
            Self::Consumer(config) => config.canonical_json(secrets),
        }
    }

    /// Whether it is meant to run.
    pub fn enabled(&self) -> bool {
        match self {
            Self::Producer(config) => config.enable,
            Self::Consumer(config) => config.enable,
        }
    }

    pub(super) fn set_enabled(&mut self, on: bool) {
        match self {
            Self::Producer(config) => config.enable = on,
            Self::Consumer(config) => config.enable = on,
        }
    }
}

/// Why something could not be done to a bridge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is no bridge id.
    #[error("{0:?} is not a bridge id; write kafka:NAME for a producer, kafka_consumer:NAME for a consumer")]
    BadId(String),
    /// There is no such bridge.
    #[error("there is no bridge {id}")]
    NotFound {
        /// The id that was asked for.
        id: BridgeId,
    },
    /// The bridge is disabled.
    #[error("bridge {0} is disabled; enable it first")]
    Disabled(BridgeId),
    /// It could not be started.
    #[error("bridge {id} cannot be started: {reason}")]
    Start {
        /// Which one.
        id: BridgeId,
        /// Why.
        reason: String,
    },
    /// Bridges cannot be created or changed as they are described; one line each.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// It holds messages, which would be lost.
    #[error(
        "bridge {id} holds {records} records ({bytes} bytes) that are not in Kafka; they would be lost: wait until they are, or delete it with --force"
    )]
    NotEmpty {
        /// Which one.
        id: BridgeId,
        /// Records that wait or are in flight.
        records: u64,
        /// Bytes of those that wait.
        bytes: u64,
    },
    /// The change could not be stored, so it was not made.
    #[error("nothing was changed: {0}")]
    Store(String),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// The actor that carries out orders failed at this one or one before it.
    #[error(
        "the bridge service failed and is started again, the log says why: see whether the bridge is as wanted now, and repeat the change if not"
    )]
    Interrupted,
}

/// How a bridge is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It works.
    Connected,
    /// It is on its way, or on its way back.
    Connecting(String),
    /// It does not work, and will try again.
    Disconnected(String),
    /// It is disabled.
    Stopped,
}

/// One bridge as it is now.
#[derive(Debug, Clone)]
pub struct Row {
    /// Which one.
    pub id: BridgeId,
    /// Whether it is meant to run.
    pub enabled: bool,
    /// How it is doing.
    pub status: Status,
    /// Whom it waits for although it is connected, in words.
    pub waits: Option<String>,
    /// Its books.
    pub ledger: Ledger,
    /// Bytes of the files of its disk buffer; 0 without.
    pub disk_bytes: u64,
    /// The books by partition; they do not hold what waits for the partitions to be known.
    pub places: Vec<BridgePartition>,
    /// Messages matched a second.
    pub rates: Rates,
    /// Of a producer that runs: how long batches took from their first record to Kafka's answer.
    pub latency: Option<Latency>,
    /// How long the oldest record has been waiting for its turn to be sent.
    pub oldest: Option<Duration>,
}

/// The books of one place of a bridge.
#[derive(Debug, Clone)]
pub struct BridgePartition {
    /// Kafka topic.
    pub topic: String,
    /// Partition of it.
    pub partition: i32,
    /// Its books.
    pub ledger: Ledger,
    /// How long its oldest record has been waiting for its turn to be sent.
    pub oldest: Option<Duration>,
}

/// Records that went with a bridge that was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Records that it held.
    pub records: u64,
    /// Bytes of those that waited.
    pub bytes: u64,
    /// Records dropped (`dropped.resource_stopped`): no publisher waited for their outcome.
    pub dropped: u64,
    /// Records that failed: their publishers are told.
    pub failed: u64,
}

/// Meaning of described bridges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apply {
    /// They must be new.
    Create,
    /// They must be there.
    Change,
}

/// Parts of the node that bridges need.
#[derive(Clone)]
pub struct BridgeContext {
    /// Where publications come from and go to.
    pub router: Arc<Router>,
    /// Connections to Kafka.
    pub clients: Arc<SharedClients>,
    /// Name of this node.
    pub node: Arc<str>,
    /// Where the node keeps its files; disk buffers lie in a folder of it.
    pub data_dir: Arc<std::path::Path>,
    /// This life of the node, and the one before where stored sessions are as it left them.
    pub lives: Lives,
    /// Memory that all producer bridges together may hold.
    pub memory: Arc<NodeMemory>,
    /// How long a bridge that is stopped may take to finish what it holds.
    pub drain: Duration,
}

/// How long an order waits for a successor of the actor that failed, which is started at once.
const SUCCESSION: Duration = Duration::from_secs(5);

/// Handle to the bridges of this node.
#[derive(Clone)]
pub struct Bridges {
    entries: Entries,
    retired: Retired,
    memory: Arc<NodeMemory>,
    manager: Child<Order>,
    ending: Arc<AtomicBool>,
}

impl Bridges {
    /// A service without bridges that remembers nothing beyond its end.
    pub async fn start(surroundings: BridgeContext) -> Result<Self, ractor::SpawnErr> {
        Self::start_with(surroundings, None).await
    }

    /// A service without bridges; changes are stored in `overlay` before they are made.
    pub async fn start_with(
        surroundings: BridgeContext,
        overlay: Option<Overlay>,
    ) -> Result<Self, ractor::SpawnErr> {
        Self::start_under(surroundings, overlay, &Root::start().await?).await
    }

    /// As [`Self::start_with`], under the supervisor of the node.
    pub async fn start_under(
        surroundings: BridgeContext,
        overlay: Option<Overlay>,
        root: &Root,
    ) -> Result<Self, ractor::SpawnErr> {
        let entries = Entries::default();
        let retired = Retired::default();
        let memory = surroundings.memory.clone();
        let ending = Arc::<AtomicBool>::default();
        let manager =
            manager::start(surroundings, entries.clone(), retired.clone(), overlay, ending.clone(), root)
                .await?;
        tokio::spawn(rates::keep(Arc::downgrade(&entries)));
        Ok(Self { entries, retired, memory, manager, ending })
    }

    /// Memory that all producer bridges share.
    pub fn memory(&self) -> &NodeMemory {
        &self.memory
    }

    async fn order<T: Send + 'static>(
        &self,
        order: impl FnOnce(RpcReplyPort<Result<T, Error>>) -> Order,
    ) -> Result<T, Error> {
        // No time limit here: each order ends by itself within the drain time.
        let manager = self.manager.live_actor(SUCCESSION).await;
        match manager.call(order, None).await {
            Ok(ractor::rpc::CallResult::Success(result)) => result,
            _ if self.ending.load(Ordering::Relaxed) => Err(Error::Stopping),
            _ => Err(Error::Interrupted),
        }
    }

    /// Creates a bridge, or puts it in the place of another one, which loses nothing that it holds. Not
    /// stored.
    pub async fn put(&self, name: &str, definition: Definition) -> Result<(), Error> {
        let id = BridgeId { kind: definition.kind(), name: name.to_owned() };
        self.order(|reply| Order::Put(id, definition, reply)).await
    }

    /// Creates or changes bridges, all or none: everything is checked and stored before anything changes.
    /// Secrets that are masked are those stored.
    pub async fn apply(&self, how: Apply, bridges: Vec<(String, Definition)>) -> Result<(), Error> {
        let named = bridges
            .into_iter()
            .map(|(name, definition)| (BridgeId { kind: definition.kind(), name }, definition))
            .collect();
        self.order(|reply| Order::Apply(how, named, reply)).await
    }

    /// Drains a bridge and forgets it. One that then still holds messages stays as it was, unless `force`.
    pub async fn delete(&self, id: BridgeId, force: bool) -> Result<Deleted, Error> {
        self.order(|reply| Order::Delete(id, force, reply)).await
    }

    /// Drains a bridge for a bounded time and forgets it. Not stored.
    pub async fn remove(&self, id: BridgeId) -> Result<(), Error> {
        self.order(|reply| Order::Remove(id, reply)).await
    }

    /// Enables or disables a bridge; nothing happens where it is so already. Disabling drains it and sets its
    /// counters back: what they were goes to [`Self::retired`].
    pub async fn enable(&self, id: BridgeId, on: bool) -> Result<(), Error> {
        self.order(|reply| Order::Enable(id, on, reply)).await
    }

    /// Starts a bridge anew; it loses nothing that it holds.
    pub async fn restart(&self, id: BridgeId) -> Result<(), Error> {
        self.order(|reply| Order::Restart(id, reply)).await
    }

    /// Drains and stops all bridges of a kind; the node is about to end.
    pub async fn stop_all(&self, kind: Kind) -> Result<(), Error> {
        self.ending.store(true, Ordering::Relaxed);
        let stopped = self.order(|reply| Order::StopAll(kind, reply)).await;
        match stopped {
            // By the successor of the actor that failed.
            Err(Error::Stopping) => self.order(|reply| Order::StopAll(kind, reply)).await,
            stopped => stopped,
        }
    }

    /// Makes the actor panic, or its successor where it has one.
    #[cfg(test)]
    pub(crate) async fn panic(&self) {
        let actor = self.manager.live_actor(SUCCESSION).await;
        let _ = actor.send_message(Order::Panic);
        let _ = actor.wait(None).await;
    }

    /// The actor and the entries, for tests of their failures.
    #[cfg(test)]
    pub(super) fn insides(&self) -> (ractor::ActorRef<Order>, Entries) {
        (self.manager.actor(), self.entries.clone())
    }

    /// All bridges as they are now.
    pub fn rows(&self) -> Vec<Row> {
        self.entries.read().values().map(|handle| handle.row()).collect()
    }

    /// One bridge as it is now.
    pub fn row(&self, id: &BridgeId) -> Result<Row, Error> {
        let entries = self.entries.read();
        entries.get(id).map(|handle| handle.row()).ok_or_else(|| Error::NotFound { id: id.clone() })
    }

    /// Counts of disabled and deleted bridges, by kind, since the service was started: with it the
    /// sum of all books never goes back.
    pub fn retired(&self) -> Vec<(Kind, Ledger)> {
        self.retired.lock().iter().map(|(kind, ledger)| (*kind, *ledger)).collect()
    }

    /// Loops that some messages may go round through these bridges, one line each.
    pub fn possible_loops(&self, ids: &[BridgeId]) -> Vec<String> {
        let entries = self.entries.read();
        let all: Vec<_> = entries.iter().map(|(id, handle)| (id, handle.definition())).collect();
        let all = all.iter().map(|(id, definition)| (*id, definition));
        let loops = loops::through(&ids.iter().collect::<Vec<_>>(), all).into_iter();
        loops.filter(|found| !found.certain).map(|found| found.message).collect()
    }

    /// Definition of a bridge.
    pub fn definition(&self, id: &BridgeId) -> Result<Definition, Error> {
        let entries = self.entries.read();
        let handle = entries.get(id).ok_or_else(|| Error::NotFound { id: id.clone() })?;
        Ok(handle.definition())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_ids_read_back_and_others_are_explained() {
        for text in ["kafka:out", "kafka_consumer:my.bridge-1"] {
            assert_eq!(text.parse::<BridgeId>().unwrap().to_string(), text);
        }
        assert_eq!("kafka_producer:x".parse::<BridgeId>().unwrap().to_string(), "kafka:x");
        for text in ["", "kafka", "kafka:", "mqtt:x", ":x"] {
            assert!(text.parse::<BridgeId>().unwrap_err().to_string().contains("kafka:NAME"), "{text}");
        }
    }
}
