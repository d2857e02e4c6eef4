//! The actor that changes bridges, and what it keeps of each.
//!
//! Invariants:
//! * What is described from outside is checked as a whole, then stored, then done: an error has changed nothing.
//! * A producer bridge keeps its [`Gate`] in the router as long as it is enabled, whether it could be started or
//!   not: no publication passes it by.
//! * A change of a running producer bridge starts the successor first. New messages go to it at once and wait there; it
//!   begins when its predecessor has nothing left. A predecessor that does not run dry in time hands what it has to
//!   the successor where that goes another way, and is waited for where it goes the same way: what it has
//!   sent is known to Kafka under its producer id, and only it can send that again without doubling it.
//! * A disk buffer has one user. Where predecessor and successor have the same one, the gate holds while the first stops and the second
//!   takes over what is on the disk. A predecessor with a disk buffer never hands over: it is waited for.
//! * A bridge that cannot be started, and one whose actor fails, are started again, later and later. A producer bridge keeps what it
//!   holds meanwhile, tickets included.
//! * The manager itself may fail: its successor finds all bridges where it left them ([`Manager::adopt`]). Only the order that it was
//!   at may be done in part.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::time::timeout;

use super::consumer::RunningConsumer;
use super::disk_buffer;
use super::gate::Gate;
use super::loops;
use super::overlay::{Change, Overlay};
use super::producer::RunningProducer;
use super::rates::RateMeter;
use super::service::{Apply, BridgeId, Definition, Deleted, Error, Kind, Place, Row, Status, Surroundings};
use crate::config::BufferMode;
use crate::flow::ledger::Ledger;
use crate::kafka::client::Backoff;
use crate::kafka::consumer::Leave;
use crate::kafka::producer::HandedOver;
use crate::mqtt::SinkId;
use crate::supervision::{Child, Parent, Root};

/// Between attempts to start a bridge: what made it fail is often mended by somebody, and costs little to look at.
const REVIVAL: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// A bridge that has run for so long counts its failures anew; more than the longest wait between two.
const CALM: Duration = Duration::from_mins(2);

/// A predecessor that is not connected gets only this long to run dry.
const SHORT_DRAIN: Duration = Duration::from_secs(2);

enum Running {
    Producer(Arc<RunningProducer>),
    Consumer(RunningConsumer),
}

/// A producer bridge's place in the router.
struct Doorway {
    gate: Arc<Gate>,
    sink: SinkId,
    filter: String,
    holds_acknowledgement: bool,
}

/// One bridge.
pub(super) struct Entry {
    definition: Definition,
    running: Option<Running>,
    doorway: Option<Doorway>,
    /// What ran before a change and still has something to send, oldest first.
    previous: Vec<Arc<RunningProducer>>,
    /// Books of what ran before.
    past: Ledger,
    /// What waits on the disk while it is disabled.
    stored: Ledger,
    /// Why it does not run although it is enabled.
    failure: Option<String>,
    /// Attempts to start it since it last ran without a failure for [`CALM`].
    attempts: u32,
    /// When it failed last.
    failed_at: Option<Instant>,
    rate: RateMeter,
}

/// All bridges.
pub(super) type Entries = Arc<RwLock<BTreeMap<BridgeId, Entry>>>;

/// The closed books of what was disabled or deleted since the node started, by kind.
pub(super) type Retired = Arc<Mutex<BTreeMap<Kind, Ledger>>>;

type Reply<T> = RpcReplyPort<Result<T, Error>>;

/// What can be ordered.
pub(super) enum Order {
    /// See [`super::service::Bridges::put`].
    Put(BridgeId, Definition, Reply<()>),
    /// See [`super::service::Bridges::apply`].
    Apply(Apply, Vec<(BridgeId, Definition)>, Reply<()>),
    /// See [`super::service::Bridges::delete`].
    Delete(BridgeId, bool, Reply<Deleted>),
    /// See [`super::service::Bridges::remove`].
    Remove(BridgeId, Reply<()>),
    /// See [`super::service::Bridges::enable`].
    Enable(BridgeId, bool, Reply<()>),
    /// See [`super::service::Bridges::restart`].
    Restart(BridgeId, Reply<()>),
    /// See [`super::service::Bridges::stop_all`].
    StopAll(Kind, Reply<()>),
    /// A bridge that failed is to run again, if this was its latest attempt.
    Revive(BridgeId, u32),
    /// A predecessor has run dry.
    RanDry(BridgeId),
    /// A panic, for tests.
    #[cfg(test)]
    Panic,
}

impl Entry {
    fn new(definition: Definition) -> Self {
        Self {
            definition,
            running: None,
            doorway: None,
            previous: Vec::new(),
            past: Ledger::default(),
            stored: Ledger::default(),
            failure: None,
            attempts: 0,
            failed_at: None,
            rate: RateMeter::since(Instant::now()),
        }
    }

    /// Takes note that an actor failed; true where it is one of this bridge.
    fn note_failure(&mut self, actor: ActorId, reason: &str) -> bool {
        let ours = match &self.running {
            Some(Running::Consumer(consumer)) => consumer.actor_id() == actor,
            Some(Running::Producer(producer)) => producer.note_failure(actor, reason),
            None => false,
        };
        if ours {
            self.end_consumer();
        }
        ours || self.previous.iter().any(|producer| producer.note_failure(actor, reason))
    }

    /// A consumer whose actor is gone does not run any more; its books stay.
    fn end_consumer(&mut self) {
        if let Some(Running::Consumer(consumer)) = &self.running {
            self.past += consumer.ledger().closed();
            self.running = None;
        }
    }

    /// The producer that runs behind its predecessors that are not done, oldest first.
    fn producers(&self) -> impl Iterator<Item = &Arc<RunningProducer>> {
        let running = match &self.running {
            Some(Running::Producer(producer)) => Some(producer),
            _ => None,
        };
        self.previous.iter().chain(running)
    }

    /// The producer that runs.
    #[cfg(test)]
    pub(super) fn producer(&self) -> Arc<RunningProducer> {
        self.producers().last().unwrap().clone()
    }

    /// Makes the group member of a consumer bridge panic.
    #[cfg(test)]
    pub(super) fn panic_member(&self) {
        if let Some(Running::Consumer(consumer)) = &self.running {
            consumer.panic();
        }
    }

    /// Looks at the counters for the rates.
    pub(super) fn sample(&mut self, now: Instant) {
        self.rate.sample(now, self.ledger().matched);
    }

    /// All its books in one.
    fn ledger(&self) -> Ledger {
        let mut ledger = match &self.running {
            Some(Running::Producer(producer)) => producer.ledger(),
            Some(Running::Consumer(consumer)) => consumer.ledger(),
            None => Ledger::default(),
        };
        ledger += self.past;
        ledger += self.stored;
        if let Some(doorway) = &self.doorway {
            ledger += doorway.gate.ledger();
        }
        for previous in &self.previous {
            ledger += previous.ledger();
        }
        ledger
    }

    /// What it is.
    pub(super) fn definition(&self) -> &Definition {
        &self.definition
    }

    /// It as it is now.
    pub(super) fn row(&self, id: &BridgeId) -> Row {
        let (status, mut places) = match (&self.running, &self.failure) {
            (Some(Running::Producer(producer)), Some(failure)) => {
                (Status::Disconnected(failure.clone()), producer.places())
            }
            (Some(Running::Producer(producer)), None) => {
                let status = self.previous.first().map_or_else(|| producer.status(), |first| waiting(first));
                (status, producer.places())
            }
            (Some(Running::Consumer(consumer)), _) => (consumer.status(), consumer.places()),
            (None, Some(failure)) => (Status::Disconnected(failure.clone()), Vec::new()),
            (None, None) => (Status::Stopped, Vec::new()),
        };
        for previous in &self.previous {
            places.extend(previous.places().into_iter().filter(is_busy));
        }
        let ledger = self.ledger();
        let latency = match &self.running {
            Some(Running::Producer(producer)) => Some(producer.latency()),
            _ => None,
        };
        let (enabled, rates) = (self.definition.enabled(), self.rate.rates());
        let oldest = places.iter().filter_map(|place| place.oldest).max();
        let disk_bytes = match &self.running {
            Some(Running::Producer(producer)) => producer.disk_bytes(),
            _ => self.stored.queuing_bytes,
        };
        let waits = match &self.running {
            Some(Running::Consumer(consumer)) => consumer.waits(),
            _ => None,
        };
        Row { id: id.clone(), enabled, status, waits, ledger, disk_bytes, places, rates, latency, oldest }
    }
}

fn is_busy(place: &Place) -> bool {
    place.ledger.queuing + place.ledger.inflight > 0
}

/// The status of a bridge that waits for its predecessor.
fn waiting(predecessor: &RunningProducer) -> Status {
    let what = "what was taken before the change is sent first";
    match predecessor.status() {
        Status::Connected => Status::Connecting(what.to_owned()),
        Status::Connecting(reason) => Status::Connecting(format!("{what}: {reason}")),
        Status::Disconnected(reason) => Status::Disconnected(format!("{what}: {reason}")),
        Status::Stopped => Status::Stopped,
    }
}

/// Starts the actor.
pub(super) async fn start(
    surroundings: Surroundings,
    entries: Entries,
    retired: Retired,
    overlay: Option<Overlay>,
    ending: Arc<AtomicBool>,
    root: &Root,
) -> Result<Child<Order>, ractor::SpawnErr> {
    // Before there are bridges with files of their own.
    super::hybrid_buffer::remove_leftovers(&surroundings.data_dir);
    let overlay = Arc::new(tokio::sync::Mutex::new(overlay));
    let manager = Manager { surroundings, entries, retired, overlay, parent: Parent::default(), ending };
    let start = move |root| -> Pin<Box<dyn Future<Output = _> + Send>> {
        let manager = manager.clone();
        Box::pin(async move { Ok(Actor::spawn_linked(None, manager, (), root).await?.0) })
    };
    root.supervise("bridge service", start).await
}

/// The actor; all it knows outlives it.
#[derive(Clone)]
struct Manager {
    surroundings: Surroundings,
    entries: Entries,
    retired: Retired,
    /// Where changes are stored. Taken for as long as an order takes.
    overlay: Arc<tokio::sync::Mutex<Option<Overlay>>>,
    /// The manager that there is: the supervisor of the actors of producer bridges.
    parent: Parent,
    /// The node is about to end: nobody releases publications any more.
    ending: Arc<AtomicBool>,
}

impl Manager {
    /// Keeps the books of what is disabled or deleted.
    fn retire(&self, kind: Kind, books: Ledger) {
        *self.retired.lock().entry(kind).or_default() += books.closed();
    }

    /// Gives a producer bridge its place in the router, with the gate as it is; takes it away from one that has no
    /// source.
    fn place(&self, entry: &mut Entry) {
        let router = &self.surroundings.router;
        let wanted = match &entry.definition {
            Definition::Producer(config) => {
                config.local_topic.as_ref().map(|filter| (filter, config.ack_wait))
            }
            Definition::Consumer(_) => None,
        };
        let Some((filter, holds_acknowledgement)) = wanted else { return self.take_away(entry) };
        match &mut entry.doorway {
            None => {
                let gate = Gate::new(holds_acknowledgement);
                let sink = router.add_sink(filter, gate.clone());
                entry.doorway = Some(Doorway { gate, sink, filter: filter.clone(), holds_acknowledgement });
            }
            Some(doorway) => {
                if doorway.filter == *filter && doorway.holds_acknowledgement == holds_acknowledgement {
                    return;
                }
                doorway.gate.set_holds_acknowledgement(holds_acknowledgement);
                doorway.sink = router.replace_sink(doorway.sink, filter, doorway.gate.clone());
                doorway.filter.clone_from(filter);
                doorway.holds_acknowledgement = holds_acknowledgement;
            }
        }
    }

    fn take_away(&self, entry: &mut Entry) {
        if let Some(doorway) = entry.doorway.take() {
            self.surroundings.router.remove_sink(doorway.sink);
            doorway.gate.remove();
            entry.past += doorway.gate.ledger();
        }
    }

    /// Stops what runs: nothing reaches the bridge any more, what it holds is sent within `drain`, the rest is given up.
    /// Answers its last books.
    async fn stop(&self, id: &BridgeId, leave: Leave, drain: Duration) -> Ledger {
        let (running, previous) = {
            let mut entries = self.entries.write();
            let Some(entry) = entries.get_mut(id) else { return Ledger::default() };
            entry.failure = None;
            entry.attempts = 0;
            self.take_away(entry);
            (entry.running.take(), std::mem::take(&mut entry.previous))
        };
        let mut last = Ledger::default();
        if running.is_some() {
            tracing::info!(bridge = %id, "bridge stopped");
        }
        let ending = self.ending.load(Ordering::Relaxed);
        for producer in &previous {
            producer.begin();
            if !ending {
                producer.forget_publications();
            }
            producer.stop(drain).await;
            last += producer.ledger();
        }
        match running {
            Some(Running::Producer(producer)) => {
                producer.begin();
                if !ending {
                    producer.forget_publications();
                }
                producer.stop(drain).await;
                last += producer.ledger();
            }
            Some(Running::Consumer(consumer)) => last += consumer.stop(leave).await,
            None => {}
        }
        let mut entries = self.entries.write();
        if let Some(entry) = entries.get_mut(id) {
            last += std::mem::take(&mut entry.past);
        }
        last
    }

    /// Starts a bridge that is enabled and does not run.
    async fn start(&self, id: &BridgeId, myself: &ActorRef<Order>) -> Result<(), Error> {
        let definition = {
            let mut entries = self.entries.write();
            match entries.get_mut(id) {
                Some(entry) if entry.definition.enabled() && entry.running.is_none() => {
                    entry.stored = Ledger::default();
                    self.place(entry);
                    entry.definition.clone()
                }
                _ => return Ok(()),
            }
        };
        let started = match definition {
            Definition::Producer(config) => {
                RunningProducer::start(&id.name, &config, &self.surroundings, &self.parent)
                    .map(|producer| Running::Producer(Arc::new(producer)))
            }
            Definition::Consumer(config) => {
                let supervisor = myself.get_cell();
                RunningConsumer::start(&id.name, &config, &self.surroundings, supervisor)
                    .await
                    .map(Running::Consumer)
            }
        };
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return Ok(()) };
        match started {
            Ok(running) => {
                tracing::info!(bridge = %id, "bridge started");
                if let Running::Producer(producer) = &running {
                    producer.begin();
                    if let Some(doorway) = &entry.doorway {
                        doorway.gate.lead_to(producer.sink());
                    }
                }
                entry.running = Some(running);
                entry.failure = None;
                Ok(())
            }
            Err(reason) => {
                tracing::error!(bridge = %id, %reason, "bridge cannot be started");
                entry.failure = Some(format!("cannot be started, which is tried again: {reason}"));
                revive_later(id, entry, myself);
                Err(Error::Start { id: id.clone(), reason })
            }
        }
    }

    fn known(&self, id: &BridgeId) -> Result<(), Error> {
        if self.entries.read().contains_key(id) { Ok(()) } else { Err(Error::NotFound { id: id.clone() }) }
    }

    async fn put(&self, id: BridgeId, definition: Definition, myself: &ActorRef<Order>) -> Result<(), Error> {
        let (known, runs) = match self.entries.read().get(&id) {
            Some(entry) => (true, entry.running.is_some()),
            None => (false, false),
        };
        let enabled = definition.enabled();
        if runs && enabled && definition.kind() == Kind::Producer {
            return self.succeed(&id, definition, myself).await;
        }
        // The gate of one that could not be started goes on holding what its publishers wait for.
        if known && (runs || !enabled) {
            let leave = if enabled { Leave::Restart } else { Leave::Final };
            let last = self.stop(&id, leave, self.surroundings.drain).await;
            match self.entries.write().get_mut(&id) {
                Some(entry) if enabled => entry.past = last.closed(),
                _ => self.retire(id.kind, last),
            }
        }
        {
            let mut entries = self.entries.write();
            let entry = entries.entry(id.clone()).or_insert_with(|| Entry::new(definition.clone()));
            entry.definition = definition;
        }
        self.look_into_store(&id);
        self.start(&id, myself).await
    }

    /// Notes what a disabled bridge has on the disk.
    fn look_into_store(&self, id: &BridgeId) {
        let is_disabled = |entry: &Entry| !entry.definition.enabled() && entry.running.is_none();
        if id.kind != Kind::Producer || !self.entries.read().get(id).is_some_and(is_disabled) {
            return;
        }
        let (records, bytes) = disk_buffer::left(&self.surroundings.data_dir, &id.name);
        if let Some(entry) = self.entries.write().get_mut(id) {
            entry.stored =
                Ledger { matched: records, queuing: records, queuing_bytes: bytes, ..Ledger::default() };
        }
    }

    /// Whether a producer that runs, or a predecessor of it, has the bridge's disk buffer.
    fn is_stored(&self, id: &BridgeId) -> bool {
        let entries = self.entries.read();
        entries.get(id).is_some_and(|entry| {
            let running = matches!(&entry.running, Some(Running::Producer(producer)) if producer.is_stored());
            running || entry.previous.iter().any(|producer| producer.is_stored())
        })
    }

    /// As [`Self::succeed`], for one that goes on with the disk buffer of the one that runs.
    async fn take_over(
        &self,
        id: &BridgeId,
        definition: Definition,
        myself: &ActorRef<Order>,
    ) -> Result<(), Error> {
        let (producers, gate) = {
            let entries = self.entries.read();
            let Some(Entry { running: Some(Running::Producer(running)), previous, doorway, .. }) =
                entries.get(id)
            else {
                return Ok(());
            };
            let producers: Vec<_> = previous.iter().chain([running]).cloned().collect();
            (producers, doorway.as_ref().map(|doorway| doorway.gate.clone()))
        };
        let refuse = |reason: &str| {
            if let (Some(gate), Some(last)) = (&gate, producers.last()) {
                gate.lead_to(last.sink());
            }
            Err(Error::Start { id: id.clone(), reason: reason.to_owned() })
        };
        if let Some(trouble) = producers.iter().find_map(|producer| producer.buffer_trouble()) {
            return refuse(&format!("{trouble}; change it again when that is mended"));
        }
        if let Some(gate) = &gate {
            gate.hold();
        }
        let connected = producers.iter().all(|producer| producer.status() == Status::Connected);
        let patience = if connected { self.surroundings.drain } else { Duration::ZERO };
        let _ = timeout(patience, run_dry(&producers)).await;
        if producers.iter().any(|producer| producer.is_busy() && !producer.is_stored()) {
            return refuse(
                "what was taken before the last change is not sent yet; change it again when it is",
            );
        }
        let leads_to = |definition: &Definition| match definition {
            Definition::Producer(config) => config.kafka.topic.clone(),
            Definition::Consumer(_) => String::new(),
        };
        let other_topic = producers.iter().any(|producer| !producer.is_for(&leads_to(&definition)));
        if other_topic && producers.iter().any(|producer| producer.is_busy()) {
            return refuse(
                "its disk buffer holds records for the topic it has now; change the topic again when they are sent",
            );
        }
        for producer in &producers {
            producer.forget_publications();
            producer.stop(Duration::ZERO).await;
        }
        {
            let mut entries = self.entries.write();
            let Some(entry) = entries.get_mut(id) else { return Ok(()) };
            entry.running = None;
            entry.previous.clear();
            for producer in &producers {
                entry.past += producer.ledger();
            }
            entry.definition = definition;
        }
        drop(producers);
        self.start(id, myself).await
    }

    /// Puts another producer in the place of the one that runs.
    async fn succeed(
        &self,
        id: &BridgeId,
        definition: Definition,
        myself: &ActorRef<Order>,
    ) -> Result<(), Error> {
        let Definition::Producer(config) = &definition else { return Ok(()) };
        if config.kafka.buffer.mode == BufferMode::Disk && self.is_stored(id) {
            return self.take_over(id, definition, myself).await;
        }
        let new = RunningProducer::start(&id.name, config, &self.surroundings, &self.parent)
            .map_err(|reason| Error::Start { id: id.clone(), reason })?;
        let new = Arc::new(new);
        let previous = {
            let mut entries = self.entries.write();
            let Some(entry) = entries.get_mut(id) else { return Ok(()) };
            entry.definition = definition;
            // Of the predecessor, which is revived when it is asked to run dry.
            entry.failure = None;
            let old = entry.running.replace(Running::Producer(new.clone()));
            if let Some(Running::Producer(old)) = old {
                entry.previous.push(old);
            }
            self.place(entry);
            if let Some(doorway) = &entry.doorway {
                doorway.gate.lead_to(new.sink());
            }
            entry.previous.clone()
        };
        let connected = previous.iter().all(|producer| producer.status() == Status::Connected);
        let patience = self.surroundings.drain.min(if connected { Duration::MAX } else { SHORT_DRAIN });
        if timeout(patience, run_dry(&previous)).await.is_err() {
            if previous.iter().all(|producer| producer.is_stored() || producer.leads_where(&new)) {
                settle_later(id, previous, myself);
                return Ok(());
            }
            let mut moved = HandedOver::default();
            // Each goes in front of what is there: the oldest last.
            for producer in previous.iter().rev() {
                moved += producer.hand_over(&new).await;
            }
            tracing::warn!(
                bridge = %id,
                records = moved.records,
                possibly_twice = moved.possibly_twice,
                "what could not be sent before the change goes where the bridge leads now"
            );
        }
        self.settle(id, true).await;
        Ok(())
    }

    /// Ends predecessors that have nothing left (or cannot be waited for any longer), and lets the successor begin.
    async fn settle(&self, id: &BridgeId, at_once: bool) {
        let previous = {
            let mut entries = self.entries.write();
            let Some(entry) = entries.get_mut(id) else { return };
            if entry.previous.is_empty() || (!at_once && entry.previous.iter().any(|old| old.is_busy())) {
                return;
            }
            entry.previous.clone()
        };
        for producer in &previous {
            producer.forget_publications();
            producer.stop(Duration::ZERO).await;
        }
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return };
        for producer in entry.previous.drain(..) {
            entry.past += producer.ledger();
        }
        if let Some(Running::Producer(producer)) = &entry.running {
            producer.begin();
            tracing::info!(bridge = %id, "bridge changed");
        }
    }

    async fn remove(&self, id: &BridgeId, drain: Duration) -> Result<Ledger, Error> {
        self.known(id)?;
        let last = self.stop(id, Leave::Final, drain).await;
        self.entries.write().remove(id);
        self.retire(id.kind, last);
        Ok(last)
    }

    async fn delete(
        &self,
        id: &BridgeId,
        force: bool,
        overlay: &mut Option<Overlay>,
    ) -> Result<Deleted, Error> {
        self.known(id)?;
        // From here on nothing comes in, so that what is counted stays counted.
        let (gate, producers) = {
            let entries = self.entries.read();
            let Some(entry) = entries.get(id) else { return Err(Error::NotFound { id: id.clone() }) };
            let running = match &entry.running {
                Some(Running::Producer(producer)) => Some(producer.clone()),
                _ => None,
            };
            let producers: Vec<_> = entry.previous.iter().cloned().chain(running).collect();
            (entry.doorway.as_ref().map(|doorway| doorway.gate.clone()), producers)
        };
        if let Some(gate) = &gate {
            gate.hold();
        }
        let reopen = || {
            if let (Some(gate), Some(last)) = (&gate, producers.last()) {
                gate.lead_to(last.sink());
            }
        };
        let connected = producers.iter().all(|producer| producer.status() == Status::Connected);
        if connected && timeout(self.surroundings.drain, run_dry(&producers)).await.is_ok() {
            tracing::debug!(bridge = %id, "nothing is left of a bridge that is deleted");
        }
        let mut held = Ledger::default();
        for producer in &producers {
            held += producer.ledger();
        }
        let data_dir = &self.surroundings.data_dir;
        let mut records = held.queuing + held.inflight;
        if producers.is_empty() && id.kind == Kind::Producer {
            let (stored, bytes) = disk_buffer::left(data_dir, &id.name);
            records += stored;
            held.queuing_bytes += bytes;
        }
        let is_stored = producers.is_empty() || producers.iter().any(|producer| producer.is_stored());
        if records > 0 && !force {
            reopen();
            return Err(Error::NotEmpty { id: id.clone(), records, bytes: held.queuing_bytes });
        }
        if let Some(overlay) = overlay
            && let Err(error) = overlay.store(&[(id.clone(), Change::Deleted)])
        {
            reopen();
            return Err(Error::Store(error.to_string()));
        }
        drop(producers);
        let last = self.remove(id, Duration::ZERO).await?;
        let removed = match overlay {
            Some(overlay) => overlay.remove_buffers().map_err(|error| error.to_string()),
            None if id.kind == Kind::Producer => {
                disk_buffer::delete(data_dir, &id.name).map_err(|error| error.to_string())
            }
            None => Ok(()),
        };
        if let Err(error) = removed {
            tracing::error!(bridge = %id, error, "its disk buffer is removed at the next start");
        }
        let dropped = last.dropped().saturating_sub(held.dropped()).min(records);
        let failed = last.failed.saturating_sub(held.failed).min(records);
        if is_stored {
            // A stop leaves what is on the disk out of the books.
            let gone = records.saturating_sub(failed + dropped);
            self.retire(
                id.kind,
                Ledger { matched: gone, dropped_resource_stopped: gone, ..Ledger::default() },
            );
        }
        let deleted = Deleted {
            records,
            bytes: held.queuing_bytes,
            // Publishers of what was on the disk have their answer.
            dropped: if is_stored { records - failed } else { dropped },
            failed,
        };
        if records > 0 {
            tracing::warn!(bridge = %id, ?deleted, "bridge deleted with what it held");
        } else {
            tracing::info!(bridge = %id, "bridge deleted");
        }
        Ok(deleted)
    }

    /// Everything that speaks against these bridges, one line each.
    fn objections(&self, how: Apply, bridges: &[(BridgeId, Definition)]) -> Vec<String> {
        let entries = self.entries.read();
        let mut wrong = Vec::new();
        for (id, definition) in bridges {
            match (how, entries.contains_key(id)) {
                (Apply::Create, true) => {
                    wrong.push(format!("there is a bridge {id} already; change it, or take another name"));
                }
                (Apply::Change, false) => {
                    wrong.push(format!(
                        "there is no bridge {id}; create it, or take the name of one there is"
                    ));
                }
                _ => {}
            }
            if let Err(error) = definition.connection().client_options("check", None) {
                wrong.push(format!("bridges.{}.{}: {error}", id.kind.name(), id.name));
            }
            if let Definition::Consumer(config) = definition {
                let group = config.group_id(&id.name);
                let others = entries.iter().map(|(id, entry)| (id, &entry.definition));
                let of_text = bridges.iter().map(|(id, definition)| (id, definition));
                let taken =
                    others.filter(|(other, _)| !bridges.iter().any(|(id, _)| id == *other)).chain(of_text);
                for (other, definition) in taken {
                    if other != id
                        && let Definition::Consumer(theirs) = definition
                        && theirs.group_id(&other.name) == group
                        && theirs.connection.bootstrap_hosts == config.connection.bootstrap_hosts
                    {
                        wrong.push(format!(
                            "bridges.{}.{}.kafka.group_id: {other} is in the group {group:?} already; give each consumer bridge a group of its own",
                            id.kind.name(),
                            id.name
                        ));
                    }
                }
            }
        }
        wrong.extend(loops::objections(bridges, entries.iter().map(|(id, entry)| (id, &entry.definition))));
        wrong
    }

    async fn apply(
        &self,
        how: Apply,
        mut bridges: Vec<(BridgeId, Definition)>,
        overlay: &mut Option<Overlay>,
        myself: &ActorRef<Order>,
    ) -> Result<(), Error> {
        for (id, definition) in &mut bridges {
            if let Some(stored) = self.entries.read().get(id) {
                definition.keep_secrets_of(&stored.definition);
            }
        }
        let wrong = self.objections(how, &bridges);
        if !wrong.is_empty() {
            return Err(Error::Refused(wrong));
        }
        store(overlay, bridges.iter().map(|(id, definition)| (id.clone(), definition.clone())))?;
        let mut first = Ok(());
        let unchanged = |id: &BridgeId, definition: &Definition| {
            self.entries.read().get(id).is_some_and(|entry| entry.definition == *definition)
        };
        // At the same time: one that drains slowly keeps none of the others.
        let puts = bridges
            .into_iter()
            .filter(|(id, definition)| !unchanged(id, definition))
            .map(|(id, definition)| self.put(id, definition, myself));
        for done in futures_util::future::join_all(puts).await {
            first = first.and(done);
        }
        first
    }

    async fn enable(
        &self,
        id: &BridgeId,
        on: bool,
        overlay: &mut Option<Overlay>,
        myself: &ActorRef<Order>,
    ) -> Result<(), Error> {
        self.known(id)?;
        let Some(mut definition) = self.entries.read().get(id).map(|entry| entry.definition.clone()) else {
            return Ok(());
        };
        if definition.enabled() != on {
            definition.set_enabled(on);
            let changed = [(id.clone(), definition.clone())];
            let wrong = {
                let entries = self.entries.read();
                loops::objections(&changed, entries.iter().map(|(id, entry)| (id, &entry.definition)))
            };
            if !wrong.is_empty() {
                return Err(Error::Refused(wrong));
            }
            store(overlay, std::iter::once((id.clone(), definition.clone())))?;
        }
        if let Some(entry) = self.entries.write().get_mut(id) {
            entry.definition = definition;
        }
        if on {
            self.start(id, myself).await
        } else {
            let last = self.stop(id, Leave::Final, self.surroundings.drain).await;
            self.retire(id.kind, last);
            self.look_into_store(id);
            Ok(())
        }
    }

    async fn restart(&self, id: &BridgeId, myself: &ActorRef<Order>) -> Result<(), Error> {
        self.known(id)?;
        let definition = self.entries.read().get(id).map(|entry| entry.definition.clone());
        match definition.filter(Definition::enabled) {
            Some(definition) => self.put(id.clone(), definition, myself).await,
            None => Err(Error::Disabled(id.clone())),
        }
    }

    /// An actor is gone although it was not stopped: its bridge does not run any more, or sends nothing.
    fn failed(&self, actor: ActorId, reason: &str, myself: &ActorRef<Order>) {
        let mut entries = self.entries.write();
        let found = entries.iter_mut().find_map(|(id, entry)| {
            let is_its = entry.note_failure(actor, reason);
            is_its.then_some((id, entry))
        });
        let Some((id, entry)) = found else { return };
        tracing::error!(bridge = %id, reason, "bridge failed, it is started again");
        entry.failure = Some(format!("failed and is started again: {reason}"));
        revive_later(id, entry, myself);
    }

    /// Starts again what failed, if this was the latest attempt and nothing else was done meanwhile.
    async fn revive(&self, id: &BridgeId, attempt: u32, myself: &ActorRef<Order>) {
        {
            let mut entries = self.entries.write();
            let Some(entry) = entries.get_mut(id) else { return };
            if entry.failure.is_none() || entry.attempts != attempt {
                return;
            }
            if matches!(entry.running, Some(Running::Producer(_))) {
                entry.failure = None;
                entry.producers().for_each(|producer| producer.revive());
                return;
            }
        }
        // One that cannot be started says why in its status.
        let _ = self.start(id, myself).await;
    }

    /// Goes on with the bridges of a manager that failed. Its children ended with it: the actors of producer bridges get successors,
    /// consumer bridges are started again from their last commit.
    async fn adopt(&self, myself: &ActorRef<Order>) {
        let ids: Vec<_> = self.entries.read().keys().cloned().collect();
        let ending = self.ending.load(Ordering::Relaxed);
        for id in ids {
            let (stopped, previous) = {
                let mut entries = self.entries.write();
                let Some(entry) = entries.get_mut(&id) else { continue };
                entry.end_consumer();
                entry.producers().for_each(|producer| producer.revive_orphans());
                let stopped = match entry.running.take() {
                    // It was about to be replaced.
                    Some(Running::Producer(producer)) if producer.is_stopped() => Some(producer),
                    running => {
                        entry.running = running;
                        None
                    }
                };
                if let (Some(Running::Producer(producer)), Some(doorway)) = (&entry.running, &entry.doorway) {
                    doorway.gate.lead_to(producer.sink());
                }
                (stopped, entry.previous.clone())
            };
            if let Some(producer) = stopped {
                producer.stop(Duration::ZERO).await;
                if let Some(entry) = self.entries.write().get_mut(&id) {
                    entry.past += producer.ledger();
                }
            }
            if !ending {
                let _ = self.start(&id, myself).await;
            }
            if !previous.is_empty() {
                settle_later(&id, previous, myself);
            } else if let Some(Entry { running: Some(Running::Producer(producer)), .. }) =
                self.entries.read().get(&id)
            {
                producer.begin();
            }
        }
    }

    async fn stop_all(&self, kind: Kind) {
        self.ending.store(true, Ordering::Relaxed);
        let ids: Vec<_> = self.entries.read().keys().filter(|id| id.kind == kind).cloned().collect();
        let drain = self.surroundings.drain;
        futures_util::future::join_all(ids.iter().map(|id| self.stop(id, Leave::Restart, drain))).await;
    }
}

/// Waits for predecessors to run dry.
fn settle_later(id: &BridgeId, previous: Vec<Arc<RunningProducer>>, myself: &ActorRef<Order>) {
    let (id, myself) = (id.clone(), myself.clone());
    tokio::spawn(async move {
        run_dry(&previous).await;
        let _ = myself.send_message(Order::RanDry(id));
    });
}

fn revive_later(id: &BridgeId, entry: &mut Entry, myself: &ActorRef<Order>) {
    let now = Instant::now();
    let is_calm = entry.failed_at.replace(now).is_none_or(|last| now.duration_since(last) > CALM);
    entry.attempts = if is_calm { 1 } else { entry.attempts.saturating_add(1) };
    let (id, attempt) = (id.clone(), entry.attempts);
    myself.send_after(REVIVAL.jittered(attempt), move || Order::Revive(id, attempt));
}

/// Remembers what bridges are now.
fn store(
    overlay: &mut Option<Overlay>,
    bridges: impl Iterator<Item = (BridgeId, Definition)>,
) -> Result<(), Error> {
    let Some(overlay) = overlay else { return Ok(()) };
    let changes: Vec<_> =
        bridges.map(|(id, definition)| (id, Change::Defined(Box::new(definition)))).collect();
    overlay.store(&changes).map_err(|error| Error::Store(error.to_string()))
}

/// Lets them send what they hold, the oldest first.
async fn run_dry(producers: &[Arc<RunningProducer>]) {
    for producer in producers {
        producer.begin();
        producer.idle().await;
    }
}

impl Actor for Manager {
    type Msg = Order;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<Order>, (): ()) -> Result<(), ActorProcessingErr> {
        self.parent.set(myself.get_cell());
        Ok(())
    }

    /// Under the eyes of the root already.
    async fn post_start(&self, myself: ActorRef<Order>, (): &mut ()) -> Result<(), ActorProcessingErr> {
        self.adopt(&myself).await;
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Order>,
        order: Order,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let overlay = &mut *self.overlay.lock().await;
        let (result, reply) = match order {
            Order::Put(id, definition, reply) => (self.put(id, definition, &myself).await, reply),
            Order::Apply(how, bridges, reply) => (self.apply(how, bridges, overlay, &myself).await, reply),
            Order::Remove(id, reply) => (self.remove(&id, self.surroundings.drain).await.map(drop), reply),
            Order::Enable(id, on, reply) => (self.enable(&id, on, overlay, &myself).await, reply),
            Order::Restart(id, reply) => (self.restart(&id, &myself).await, reply),
            Order::Delete(id, force, reply) => {
                let _ = reply.send(self.delete(&id, force, overlay).await);
                return Ok(());
            }
            Order::StopAll(kind, reply) => {
                self.stop_all(kind).await;
                (Ok(()), reply)
            }
            Order::Revive(id, attempt) => {
                self.revive(&id, attempt, &myself).await;
                return Ok(());
            }
            #[cfg(test)]
            Order::Panic => std::panic::resume_unwind(Box::new("on purpose")),
            Order::RanDry(id) => {
                self.settle(&id, false).await;
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
        if let SupervisionEvent::ActorFailed(actor, reason) = event {
            self.failed(actor.get_id(), &reason.to_string(), &myself);
        }
        Ok(())
    }
}
