//! The bridges of this node: started, changed and stopped at run time through one service.
//!
//! A bridge is described by data ([`Definition`]) and nothing else. One actor carries out what changes
//! bridges, one thing after the other, so that a restart and a removal never meet half-way; what only
//! reads (the books, the status) goes past it, so that a slow drain blocks nobody who looks. It supervises the
//! consumers: one that panics is started again after [`REVIVAL`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};

use super::consumer::RunningConsumer;
use super::ledger::Ledger;
use super::producer::RunningProducer;
use super::shared_clients::SharedClients;
use crate::config::{ConsumerBridgeConfig, ProducerBridgeConfig};
use crate::kafka::consumer::Leave;
use crate::mqtt::Router;

/// How long a bridge that failed stays down: what made it fail often comes back at once.
const REVIVAL: Duration = Duration::from_secs(1);

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

/// What a bridge is: its configuration.
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

    fn enabled(&self) -> bool {
        match self {
            Self::Producer(config) => config.enable,
            Self::Consumer(config) => config.enable,
        }
    }

    fn set_enabled(&mut self, on: bool) {
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
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
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
    /// Its books.
    pub ledger: Ledger,
    /// The books by partition; they do not hold what waits for the partitions to be known.
    pub places: Vec<Place>,
}

/// The books of one place of a bridge.
#[derive(Debug, Clone)]
pub struct Place {
    /// Kafka topic.
    pub topic: String,
    /// Partition of it.
    pub partition: i32,
    /// Its books.
    pub ledger: Ledger,
}

/// What bridges need of their node.
#[derive(Clone)]
pub struct Surroundings {
    /// Where publications come from and go to.
    pub router: Arc<Router>,
    /// Connections to Kafka.
    pub clients: Arc<SharedClients>,
    /// Name of this node.
    pub node: Arc<str>,
    /// How long a bridge that is stopped may take to finish what it holds.
    pub drain: Duration,
}

enum Running {
    Producer(RunningProducer),
    Consumer(RunningConsumer),
}

struct Entry {
    definition: Definition,
    running: Option<Running>,
    /// Why it does not run although it is enabled.
    failure: Option<String>,
}

type Entries = Arc<RwLock<BTreeMap<BridgeId, Entry>>>;

enum Order {
    Put(BridgeId, Definition, RpcReplyPort<Result<(), Error>>),
    Remove(BridgeId, RpcReplyPort<Result<(), Error>>),
    Enable(BridgeId, bool, RpcReplyPort<Result<(), Error>>),
    Restart(BridgeId, RpcReplyPort<Result<(), Error>>),
    StopAll(Kind, RpcReplyPort<Result<(), Error>>),
    /// A bridge that failed is to run again.
    Revive(BridgeId),
}

/// Handle to the bridges of this node.
#[derive(Clone)]
pub struct Bridges {
    entries: Entries,
    actor: ActorRef<Order>,
}

impl Bridges {
    /// A service without bridges.
    pub async fn start(surroundings: Surroundings) -> Result<Self, ractor::SpawnErr> {
        let entries = Entries::default();
        let manager = Manager { surroundings, entries: entries.clone() };
        let (actor, _) = Actor::spawn(None, manager, ()).await?;
        Ok(Self { entries, actor })
    }

    async fn order(&self, order: impl FnOnce(RpcReplyPort<Result<(), Error>>) -> Order) -> Result<(), Error> {
        // No time limit here: each order ends by itself within the drain time.
        match self.actor.call(order, None).await {
            Ok(ractor::rpc::CallResult::Success(result)) => result,
            _ => Err(Error::Stopping),
        }
    }

    /// Creates a bridge, or replaces it: the old one is drained first.
    pub async fn put(&self, name: &str, definition: Definition) -> Result<(), Error> {
        let id = BridgeId { kind: definition.kind(), name: name.to_owned() };
        self.order(|reply| Order::Put(id, definition, reply)).await
    }

    /// Drains a bridge and forgets it.
    pub async fn remove(&self, id: BridgeId) -> Result<(), Error> {
        self.order(|reply| Order::Remove(id, reply)).await
    }

    /// Enables or disables a bridge; nothing happens where it is so already. Disabling drains it and sets its
    /// counters back.
    pub async fn enable(&self, id: BridgeId, on: bool) -> Result<(), Error> {
        self.order(|reply| Order::Enable(id, on, reply)).await
    }

    /// Drains a bridge and starts it again.
    pub async fn restart(&self, id: BridgeId) -> Result<(), Error> {
        self.order(|reply| Order::Restart(id, reply)).await
    }

    /// Drains and stops all bridges of a kind; the node is about to end.
    pub async fn stop_all(&self, kind: Kind) -> Result<(), Error> {
        self.order(|reply| Order::StopAll(kind, reply)).await
    }

    /// All bridges as they are now.
    pub fn rows(&self) -> Vec<Row> {
        self.entries.read().iter().map(|(id, entry)| entry.row(id)).collect()
    }

    /// One bridge as it is now.
    pub fn row(&self, id: &BridgeId) -> Result<Row, Error> {
        let entries = self.entries.read();
        entries.get(id).map(|entry| entry.row(id)).ok_or_else(|| Error::NotFound { id: id.clone() })
    }
}

impl Entry {
    fn row(&self, id: &BridgeId) -> Row {
        let (status, ledger, places) = match (&self.running, &self.failure) {
            (Some(Running::Producer(producer)), _) => {
                (producer.status(), producer.ledger(), producer.places())
            }
            (Some(Running::Consumer(consumer)), _) => {
                (consumer.status(), consumer.ledger(), consumer.places())
            }
            (None, Some(failure)) => (Status::Disconnected(failure.clone()), Ledger::default(), Vec::new()),
            (None, None) => (Status::Stopped, Ledger::default(), Vec::new()),
        };
        Row { id: id.clone(), enabled: self.definition.enabled(), status, ledger, places }
    }
}

/// The actor that changes bridges.
struct Manager {
    surroundings: Surroundings,
    entries: Entries,
}

impl Manager {
    async fn stop(&self, id: &BridgeId, leave: Leave) {
        let running = self.entries.write().get_mut(id).and_then(|entry| {
            entry.failure = None;
            entry.running.take()
        });
        match running {
            Some(Running::Producer(producer)) => producer.stop(&self.surroundings).await,
            Some(Running::Consumer(consumer)) => consumer.stop(leave).await,
            None => return,
        }
        tracing::info!(bridge = %id, "bridge stopped");
    }

    /// Starts a bridge that is enabled and does not run.
    async fn start(&self, id: &BridgeId, myself: ActorCell) -> Result<(), Error> {
        let definition = match self.entries.read().get(id) {
            Some(entry) if entry.definition.enabled() && entry.running.is_none() => entry.definition.clone(),
            _ => return Ok(()),
        };
        let started = match definition {
            Definition::Producer(config) => {
                RunningProducer::start(&id.name, &config, &self.surroundings).map(Running::Producer)
            }
            Definition::Consumer(config) => {
                RunningConsumer::start(&id.name, &config, &self.surroundings, myself)
                    .await
                    .map(Running::Consumer)
            }
        };
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return Ok(()) };
        match started {
            Ok(running) => {
                tracing::info!(bridge = %id, "bridge started");
                entry.running = Some(running);
                entry.failure = None;
                Ok(())
            }
            Err(reason) => {
                tracing::error!(bridge = %id, %reason, "bridge cannot be started");
                entry.failure = Some(reason.clone());
                Err(Error::Start { id: id.clone(), reason })
            }
        }
    }

    fn known(&self, id: &BridgeId) -> Result<(), Error> {
        if self.entries.read().contains_key(id) { Ok(()) } else { Err(Error::NotFound { id: id.clone() }) }
    }

    async fn put(&self, id: BridgeId, definition: Definition, myself: ActorCell) -> Result<(), Error> {
        self.stop(&id, Leave::Restart).await;
        self.entries.write().insert(id.clone(), Entry { definition, running: None, failure: None });
        self.start(&id, myself).await
    }

    async fn remove(&self, id: &BridgeId) -> Result<(), Error> {
        self.known(id)?;
        self.stop(id, Leave::Final).await;
        self.entries.write().remove(id);
        Ok(())
    }

    async fn enable(&self, id: &BridgeId, on: bool, myself: ActorCell) -> Result<(), Error> {
        self.known(id)?;
        if let Some(entry) = self.entries.write().get_mut(id) {
            entry.definition.set_enabled(on);
            entry.failure = None;
        }
        if on {
            self.start(id, myself).await
        } else {
            self.stop(id, Leave::Final).await;
            Ok(())
        }
    }

    async fn restart(&self, id: &BridgeId, myself: ActorCell) -> Result<(), Error> {
        self.known(id)?;
        if !self.entries.read().get(id).is_some_and(|entry| entry.definition.enabled()) {
            return Err(Error::Disabled(id.clone()));
        }
        self.stop(id, Leave::Restart).await;
        self.start(id, myself).await
    }

    /// A consumer's actor is gone although nobody stopped it: its bridge does not run any more.
    fn failed(&self, actor: &ActorCell, reason: &str) -> Option<BridgeId> {
        let mut entries = self.entries.write();
        let (id, entry) = entries.iter_mut().find(|(_, entry)| {
            matches!(&entry.running, Some(Running::Consumer(consumer)) if consumer.actor_id() == actor.get_id())
        })?;
        tracing::error!(bridge = %id, reason, "bridge failed, it is started again");
        entry.running = None;
        entry.failure = Some(format!("failed and is started again: {reason}"));
        Some(id.clone())
    }

    async fn stop_all(&self, kind: Kind) {
        let ids: Vec<_> = self.entries.read().keys().filter(|id| id.kind == kind).cloned().collect();
        futures_util::future::join_all(ids.iter().map(|id| self.stop(id, Leave::Restart))).await;
    }
}

impl Actor for Manager {
    type Msg = Order;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Order>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Order>,
        order: Order,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let cell = myself.get_cell();
        let (result, reply) = match order {
            Order::Put(id, definition, reply) => (self.put(id, definition, cell).await, reply),
            Order::Remove(id, reply) => (self.remove(&id).await, reply),
            Order::Enable(id, on, reply) => (self.enable(&id, on, cell).await, reply),
            Order::Restart(id, reply) => (self.restart(&id, cell).await, reply),
            Order::StopAll(kind, reply) => {
                self.stop_all(kind).await;
                (Ok(()), reply)
            }
            Order::Revive(id) => {
                // Unless it was stopped meanwhile. One that cannot be started says why in its status.
                if self.entries.read().get(&id).is_some_and(|entry| entry.failure.is_some()) {
                    let _ = self.start(&id, cell).await;
                }
                return Ok(());
            }
        };
        // Whoever asked may have stopped waiting.
        let _ = reply.send(result);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Order>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        // One that was stopped is gone from the entries already, or about to be.
        if let SupervisionEvent::ActorFailed(actor, reason) = event
            && let Some(id) = self.failed(&actor, &reason.to_string())
        {
            myself.send_after(REVIVAL, move || Order::Revive(id));
        }
        Ok(())
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
