//! The state of one bridge, which outlives the actors that change it and which readers look at without asking
//! them.
//!
//! Invariants:
//! * Only the actor of the bridge ([`super::bridge`]) changes an entry; the lock is never held across an
//!   await.
//! * What is being stopped stays in the entry until its last counters are taken: an actor that fails in a
//!   stop leaves its successor the rest of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use ractor::{ActorId, ActorRef, ActorStatus};

use super::bridge::Message;
use super::consumer::RunningConsumer;
use super::gate::Gate;
use super::producer::RunningProducer;
use super::rates::RateMeter;
use super::service::{BridgeId, BridgePartition, Definition, Kind, Row, Status};
use crate::flow::ledger::Ledger;
use crate::mqtt::{Router, SinkId};
use crate::supervision::Parent;

/// Time without a failure after which a bridge counts its failures from the start; more than the longest wait
/// between two attempts.
const CALM: Duration = Duration::from_mins(2);

/// A bridge as the manager and readers hold it.
pub(super) struct Handle {
    id: BridgeId,
    entry: RwLock<Entry>,
    /// The actor that there is: the supervisor of the bridge's Kafka actors.
    parent: Parent,
    actor: Mutex<Option<ActorRef<Message>>>,
}

/// All bridges.
pub(super) type Entries = Arc<RwLock<BTreeMap<BridgeId, Arc<Handle>>>>;

/// The closed ledgers of what was disabled or deleted since the node started, by kind.
pub(super) type Retired = Arc<Mutex<BTreeMap<Kind, Ledger>>>;

impl Handle {
    /// A bridge without an actor.
    pub(super) fn new(id: BridgeId, definition: Definition) -> Arc<Self> {
        Arc::new(Self {
            id,
            entry: RwLock::new(Entry::new(definition)),
            parent: Parent::default(),
            actor: Mutex::default(),
        })
    }

    /// The id of the bridge.
    pub(super) fn id(&self) -> &BridgeId {
        &self.id
    }

    /// The state, for the actor of the bridge.
    pub(super) fn entry(&self) -> &RwLock<Entry> {
        &self.entry
    }

    /// The supervisor of the bridge's Kafka actors.
    pub(super) fn parent(&self) -> &Parent {
        &self.parent
    }

    /// The latest actor.
    pub(super) fn actor(&self) -> Option<ActorRef<Message>> {
        self.actor.lock().clone()
    }

    /// The actor, unless it is gone.
    pub(super) fn live_actor(&self) -> Option<ActorRef<Message>> {
        self.actor().filter(|actor| actor.get_status() <= ActorStatus::Upgrading)
    }

    /// Names the actor that works from now on.
    pub(super) fn set_actor(&self, actor: ActorRef<Message>) {
        *self.actor.lock() = Some(actor);
    }

    /// The definition that the bridge follows.
    pub(super) fn definition(&self) -> Definition {
        self.entry.read().definition.clone()
    }

    /// The bridge as it is now.
    pub(super) fn row(&self) -> Row {
        self.entry.read().row(&self.id)
    }

    /// Reads the counters for the rates.
    pub(super) fn sample(&self, now: Instant) {
        self.entry.write().sample(now);
    }

    /// Notes that the actor of the bridge failed. Returns the number of the attempt that is to follow.
    pub(super) fn note_panic(&self, reason: &str) -> u32 {
        let mut entry = self.entry.write();
        entry.end_consumer();
        entry.failure = Some(format!("failed and is started again: {reason}"));
        entry.next_attempt()
    }

    /// The attempt that is due, where the bridge has failed.
    pub(super) fn attempt(&self) -> Option<u32> {
        let entry = self.entry.read();
        entry.failure.is_some().then_some(entry.attempts)
    }

    /// The producer that runs.
    #[cfg(test)]
    pub(super) fn producer(&self) -> Arc<RunningProducer> {
        self.entry.read().producers().last().unwrap().clone()
    }

    /// Makes the group member of a consumer bridge panic.
    #[cfg(test)]
    pub(super) fn panic_member(&self) {
        self.entry.read().panic_member();
    }

    /// Makes the actor of the bridge panic.
    #[cfg(test)]
    pub(super) fn panic(&self) {
        self.actor().unwrap().send_message(Message::Panic).unwrap();
    }
}

/// Carrier of the messages.
pub(super) enum Running {
    Producer(Arc<RunningProducer>),
    Consumer(RunningConsumer),
}

/// Registration of a producer bridge in the router.
pub(super) struct Registration {
    pub(super) gate: Arc<Gate>,
    pub(super) sink: SinkId,
    pub(super) filter: String,
    pub(super) holds_acknowledgement: bool,
}

/// One bridge.
pub(super) struct Entry {
    pub(super) definition: Definition,
    pub(super) running: Option<Running>,
    pub(super) registration: Option<Registration>,
    /// Predecessors that still have something to send, oldest first.
    pub(super) previous: Vec<Arc<RunningProducer>>,
    /// Producers that are being stopped, oldest first.
    pub(super) stopping: Vec<Arc<RunningProducer>>,
    /// Counters of what ran before.
    pub(super) past: Ledger,
    /// Counts of what waits on the disk while it is disabled.
    pub(super) stored: Ledger,
    /// Why it does not run although it is enabled.
    pub(super) failure: Option<String>,
    /// Attempts to start it since it last ran without a failure for [`CALM`].
    pub(super) attempts: u32,
    /// When it failed last.
    failed_at: Option<Instant>,
    rate: RateMeter,
}

impl Entry {
    fn new(definition: Definition) -> Self {
        Self {
            definition,
            running: None,
            registration: None,
            previous: Vec::new(),
            stopping: Vec::new(),
            past: Ledger::default(),
            stored: Ledger::default(),
            failure: None,
            attempts: 0,
            failed_at: None,
            rate: RateMeter::since(Instant::now()),
        }
    }

    /// Registers a producer bridge in the router, with the gate as it is; takes the registration away from
    /// one that has no source.
    pub(super) fn register(&mut self, router: &Router) {
        let wanted = match &self.definition {
            Definition::Producer(config) => {
                config.local_topic.as_ref().map(|filter| (filter, config.ack_wait))
            }
            Definition::Consumer(_) => None,
        };
        let Some((filter, holds_acknowledgement)) = wanted else { return self.unregister(router) };
        match &mut self.registration {
            None => {
                let gate = Gate::new(holds_acknowledgement);
                let sink = router.add_sink(filter, gate.clone());
                self.registration =
                    Some(Registration { gate, sink, filter: filter.clone(), holds_acknowledgement });
            }
            Some(registration) => {
                if registration.filter == *filter
                    && registration.holds_acknowledgement == holds_acknowledgement
                {
                    return;
                }
                registration.gate.set_holds_acknowledgement(holds_acknowledgement);
                registration.sink = router.replace_sink(registration.sink, filter, registration.gate.clone());
                registration.filter.clone_from(filter);
                registration.holds_acknowledgement = holds_acknowledgement;
            }
        }
    }

    /// Takes the registration away; the counters of the gate stay.
    pub(super) fn unregister(&mut self, router: &Router) {
        if let Some(registration) = self.registration.take() {
            router.remove_sink(registration.sink);
            registration.gate.remove();
            self.past += registration.gate.ledger();
        }
    }

    /// Counts a failure. Returns the number of the attempt that is to follow.
    pub(super) fn next_attempt(&mut self) -> u32 {
        let now = Instant::now();
        let is_calm = self.failed_at.replace(now).is_none_or(|last| now.duration_since(last) > CALM);
        self.attempts = if is_calm { 1 } else { self.attempts.saturating_add(1) };
        self.attempts
    }

    /// Takes note that an actor failed; true where it is one of this bridge.
    pub(super) fn note_failure(&mut self, actor: ActorId, reason: &str) -> bool {
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

    /// A consumer whose actor is gone does not run any more; its counters stay.
    pub(super) fn end_consumer(&mut self) {
        if let Some(Running::Consumer(consumer)) = &self.running {
            self.past += consumer.ledger().closed();
            self.running = None;
        }
    }

    /// The producer that runs behind its predecessors that are not done, oldest first.
    pub(super) fn producers(&self) -> impl Iterator<Item = &Arc<RunningProducer>> {
        let running = match &self.running {
            Some(Running::Producer(producer)) => Some(producer),
            _ => None,
        };
        self.previous.iter().chain(running)
    }

    /// Makes the group member of a consumer bridge panic.
    #[cfg(test)]
    fn panic_member(&self) {
        if let Some(Running::Consumer(consumer)) = &self.running {
            consumer.panic();
        }
    }

    /// Looks at the counters for the rates.
    fn sample(&mut self, now: Instant) {
        self.rate.sample(now, self.ledger().matched);
    }

    /// Sum of all its ledgers.
    fn ledger(&self) -> Ledger {
        let mut ledger = match &self.running {
            Some(Running::Producer(producer)) => producer.ledger(),
            Some(Running::Consumer(consumer)) => consumer.ledger(),
            None => Ledger::default(),
        };
        ledger += self.past;
        ledger += self.stored;
        if let Some(registration) = &self.registration {
            ledger += registration.gate.ledger();
        }
        for previous in self.previous.iter().chain(&self.stopping) {
            ledger += previous.ledger();
        }
        ledger
    }

    /// It as it is now.
    fn row(&self, id: &BridgeId) -> Row {
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

fn is_busy(place: &BridgePartition) -> bool {
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
