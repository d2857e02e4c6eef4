//! The actor of one bridge: starts, changes and stops it, one message after the other.
//!
//! Invariants:
//! * A producer bridge keeps its [`Gate`] in the router as long as it is enabled, whether it could be started
//!   or not: no publication passes it by.
//! * A change of a running producer bridge starts the successor first. New messages go to it at once and wait
//!   there; it begins when its predecessor has nothing left. A predecessor that does not run dry in time
//!   hands what it has to the successor where that goes another way, and is waited for where it goes the same
//!   way: what it has sent is known to Kafka under its producer id, and only it can send that again without
//!   doubling it.
//! * A disk buffer has one user. Where predecessor and successor have the same one, the gate holds while the
//!   first stops and the second takes over what is on the disk. A predecessor with a disk buffer never hands
//!   over: it is waited for.
//! * A bridge that cannot be started, and one whose Kafka actor fails, are started again, later and later. A
//!   producer bridge keeps what it holds meanwhile, tickets included.
//! * All state is in the [`Handle`]: an actor that fails leaves its successor everything ([`Bridge::adopt`]).
//!   Only the message that it was at may be done in part.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent};
use tokio::time::timeout;

use super::consumer::RunningConsumer;
use super::disk_buffer;
use super::entry::{Entries, Entry, Handle, Retired, Running};
use super::gate::Gate;
use super::overlay::Overlay;
use super::producer::RunningProducer;
use super::service::{BridgeContext, BridgeId, Definition, Deleted, Error, Kind, Status};
use crate::config::BufferMode;
use crate::flow::ledger::Ledger;
use crate::kafka::client::Backoff;
use crate::kafka::consumer::Leave;
use crate::kafka::producer::HandedOver;

/// Wait between attempts to start a bridge: an attempt costs little, and the cause is often mended from
/// outside.
pub(super) const REVIVAL: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// Time that a predecessor without a connection gets to run dry.
const SHORT_DRAIN: Duration = Duration::from_secs(2);

type Reply<T> = RpcReplyPort<Result<T, Error>>;

/// Messages to the actor of a bridge.
pub(super) enum Message {
    /// The bridge is to follow this definition; the first one of a new bridge creates it.
    Desired { definition: Definition, is_new: bool, reply: Reply<()> },
    /// The bridge, whose definition differs in `enable` at most, is to run or not.
    Enable(Definition, Reply<()>),
    /// See [`super::service::Bridges::restart`].
    Restart(Reply<()>),
    /// See [`super::service::Bridges::delete`].
    Delete { force: bool, reply: Reply<Deleted> },
    /// See [`super::service::Bridges::remove`].
    Remove(Reply<()>),
    /// The node is about to end.
    Stop(Leave, Reply<()>),
    /// What failed is to run again, if this was its latest attempt.
    Revive(u32),
    /// A predecessor has run dry.
    RanDry,
    /// A panic, for tests.
    #[cfg(test)]
    Panic,
}

/// State that all bridges of a node share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) surroundings: BridgeContext,
    pub(super) entries: Entries,
    pub(super) retired: Retired,
    /// Store of changes. Locked for one change at a time, never while a bridge drains.
    pub(super) overlay: Arc<tokio::sync::Mutex<Option<Overlay>>>,
    /// The node is about to end: publications are not released any more.
    pub(super) ending: Arc<AtomicBool>,
}

/// The actor of one bridge.
pub(super) struct Bridge {
    pub(super) shared: Shared,
    pub(super) handle: Arc<Handle>,
}

/// Starts the actor of a bridge, linked to `manager`. It goes on with what an earlier actor of the bridge
/// left.
pub(super) async fn start(shared: &Shared, handle: &Arc<Handle>, manager: ActorCell) -> Result<(), SpawnErr> {
    let predecessor = handle.actor();
    let bridge = Bridge { shared: shared.clone(), handle: handle.clone() };
    let (actor, _) = Actor::spawn_linked(None, bridge, predecessor, manager).await?;
    handle.set_actor(actor);
    Ok(())
}

impl Bridge {
    pub(super) fn id(&self) -> &BridgeId {
        self.handle.id()
    }

    pub(super) fn surroundings(&self) -> &BridgeContext {
        &self.shared.surroundings
    }

    /// Keeps the ledger of what is disabled or deleted.
    pub(super) fn retire(&self, ledger: Ledger) {
        *self.shared.retired.lock().entry(self.id().kind).or_default() += ledger.closed();
    }

    /// Stops what runs: nothing reaches the bridge any more, what it holds is sent within `drain`, the rest
    /// is given up. Returns its last ledger.
    pub(super) async fn stop(&self, leave: Leave, drain: Duration) -> Ledger {
        let (consumer, was_running) = {
            let mut entry = self.handle.entry().write();
            let entry = &mut *entry;
            entry.failure = None;
            entry.attempts = 0;
            entry.unregister(&self.surroundings().router);
            entry.stopping.append(&mut entry.previous);
            let running = entry.running.take();
            let was_running = running.is_some();
            let consumer = match running {
                Some(Running::Consumer(consumer)) => Some(consumer),
                Some(Running::Producer(producer)) => {
                    entry.stopping.push(producer);
                    None
                }
                None => None,
            };
            (consumer, was_running)
        };
        if was_running {
            tracing::info!(bridge = %self.id(), "bridge stopped");
        }
        self.stop_producers(drain).await;
        let mut last = Ledger::default();
        if let Some(consumer) = consumer {
            last += consumer.stop(leave).await;
        }
        last += std::mem::take(&mut self.handle.entry().write().past);
        last
    }

    /// Ends the producers that are being stopped; their counters go to those of what ran before.
    async fn stop_producers(&self, drain: Duration) {
        let stopping = self.handle.entry().read().stopping.clone();
        let ending = self.shared.ending.load(Ordering::Relaxed);
        for producer in &stopping {
            producer.begin();
            if !ending {
                producer.forget_publications();
            }
            producer.stop(drain).await;
        }
        let mut entry = self.handle.entry().write();
        for producer in std::mem::take(&mut entry.stopping) {
            entry.past += producer.ledger();
        }
    }

    /// Starts a bridge that is enabled and does not run.
    async fn start(&self, myself: &ActorRef<Message>) -> Result<(), Error> {
        let id = self.id();
        let definition = {
            let mut entry = self.handle.entry().write();
            if !entry.definition.enabled() || entry.running.is_some() {
                return Ok(());
            }
            entry.stored = Ledger::default();
            entry.register(&self.surroundings().router);
            entry.definition.clone()
        };
        let started = match definition {
            Definition::Producer(config) => {
                RunningProducer::start(&id.name, &config, self.surroundings(), self.handle.parent())
                    .map(|producer| Running::Producer(Arc::new(producer)))
            }
            Definition::Consumer(config) => {
                RunningConsumer::start(&id.name, &config, self.surroundings(), myself.get_cell())
                    .await
                    .map(Running::Consumer)
            }
        };
        let mut entry = self.handle.entry().write();
        match started {
            Ok(running) => {
                tracing::info!(bridge = %id, "bridge started");
                if let Running::Producer(producer) = &running {
                    producer.begin();
                    if let Some(registration) = &entry.registration {
                        registration.gate.lead_to(producer.sink());
                    }
                }
                entry.running = Some(running);
                entry.failure = None;
                Ok(())
            }
            Err(reason) => {
                tracing::error!(bridge = %id, %reason, "bridge cannot be started");
                entry.failure = Some(format!("cannot be started, which is tried again: {reason}"));
                revive_later(&mut entry, myself);
                Err(Error::Start { id: id.clone(), reason })
            }
        }
    }

    async fn put(
        &self,
        definition: Definition,
        is_new: bool,
        myself: &ActorRef<Message>,
    ) -> Result<(), Error> {
        let runs = self.handle.entry().read().running.is_some();
        let enabled = definition.enabled();
        if runs && enabled && definition.kind() == Kind::Producer {
            return self.succeed(definition, myself).await;
        }
        // The gate of one that could not be started goes on holding what its publishers wait for.
        if !is_new && (runs || !enabled) {
            let leave = if enabled { Leave::Restart } else { Leave::Final };
            let last = self.stop(leave, self.surroundings().drain).await;
            if enabled {
                self.handle.entry().write().past = last.closed();
            } else {
                self.retire(last);
            }
        }
        self.handle.entry().write().definition = definition;
        self.look_into_store();
        self.start(myself).await
    }

    /// Notes what a disabled bridge has on the disk.
    fn look_into_store(&self) {
        let mut entry = self.handle.entry().write();
        if self.id().kind != Kind::Producer || entry.definition.enabled() || entry.running.is_some() {
            return;
        }
        let (records, bytes) = disk_buffer::left(&self.surroundings().data_dir, &self.id().name);
        entry.stored =
            Ledger { matched: records, queuing: records, queuing_bytes: bytes, ..Ledger::default() };
    }

    /// The producers, oldest first, and the gate.
    pub(super) fn parts(&self) -> (Vec<Arc<RunningProducer>>, Option<Arc<Gate>>) {
        let entry = self.handle.entry().read();
        let producers = entry.producers().cloned().collect();
        (producers, entry.registration.as_ref().map(|registration| registration.gate.clone()))
    }

    /// As [`Self::succeed`], for one that goes on with the disk buffer of the one that runs.
    async fn take_over(&self, definition: Definition, myself: &ActorRef<Message>) -> Result<(), Error> {
        let (producers, gate) = self.parts();
        let refuse = |reason: &str| {
            if let (Some(gate), Some(last)) = (&gate, producers.last()) {
                gate.lead_to(last.sink());
            }
            Err(Error::Start { id: self.id().clone(), reason: reason.to_owned() })
        };
        if let Some(trouble) = producers.iter().find_map(|producer| producer.buffer_trouble()) {
            return refuse(&format!("{trouble}; change it again when that is mended"));
        }
        if let Some(gate) = &gate {
            gate.hold();
        }
        let connected = producers.iter().all(|producer| producer.status() == Status::Connected);
        let patience = if connected { self.surroundings().drain } else { Duration::ZERO };
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
            let mut entry = self.handle.entry().write();
            entry.running = None;
            entry.previous.clear();
            for producer in &producers {
                entry.past += producer.ledger();
            }
            entry.definition = definition;
        }
        drop(producers);
        self.start(myself).await
    }

    /// Puts another producer in the place of the one that runs.
    async fn succeed(&self, definition: Definition, myself: &ActorRef<Message>) -> Result<(), Error> {
        let id = self.id();
        let Definition::Producer(config) = &definition else { return Ok(()) };
        let is_stored = self.parts().0.iter().any(|producer| producer.is_stored());
        if config.kafka.buffer.mode == BufferMode::Disk && is_stored {
            return self.take_over(definition, myself).await;
        }
        let new = RunningProducer::start(&id.name, config, self.surroundings(), self.handle.parent())
            .map_err(|reason| Error::Start { id: id.clone(), reason })?;
        let new = Arc::new(new);
        let previous = {
            let mut entry = self.handle.entry().write();
            let entry = &mut *entry;
            entry.definition = definition;
            // Of the predecessor, which is revived when it is asked to run dry.
            entry.failure = None;
            if let Some(Running::Producer(old)) = entry.running.replace(Running::Producer(new.clone())) {
                entry.previous.push(old);
            }
            entry.register(&self.surroundings().router);
            if let Some(registration) = &entry.registration {
                registration.gate.lead_to(new.sink());
            }
            entry.previous.clone()
        };
        let connected = previous.iter().all(|producer| producer.status() == Status::Connected);
        let patience = self.surroundings().drain.min(if connected { Duration::MAX } else { SHORT_DRAIN });
        if timeout(patience, run_dry(&previous)).await.is_err() {
            if previous.iter().all(|producer| producer.is_stored() || producer.leads_where(&new)) {
                settle_later(previous, myself);
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
        self.settle(true).await;
        Ok(())
    }

    /// Ends predecessors that have nothing left (or cannot be waited for any longer), and lets the successor
    /// begin.
    async fn settle(&self, at_once: bool) {
        let previous = self.handle.entry().read().previous.clone();
        if previous.is_empty() || (!at_once && previous.iter().any(|old| old.is_busy())) {
            return;
        }
        for producer in &previous {
            producer.forget_publications();
            producer.stop(Duration::ZERO).await;
        }
        let mut entry = self.handle.entry().write();
        for producer in std::mem::take(&mut entry.previous) {
            entry.past += producer.ledger();
        }
        if let Some(Running::Producer(producer)) = &entry.running {
            producer.begin();
            tracing::info!(bridge = %self.id(), "bridge changed");
        }
    }

    async fn remove(&self, drain: Duration) -> Ledger {
        let last = self.stop(Leave::Final, drain).await;
        self.shared.entries.write().remove(self.id());
        self.retire(last);
        last
    }

    async fn enable(&self, definition: Definition, myself: &ActorRef<Message>) -> Result<(), Error> {
        let on = definition.enabled();
        self.handle.entry().write().definition = definition;
        if on {
            return self.start(myself).await;
        }
        let last = self.stop(Leave::Final, self.surroundings().drain).await;
        self.retire(last);
        self.look_into_store();
        Ok(())
    }

    async fn restart(&self, myself: &ActorRef<Message>) -> Result<(), Error> {
        let definition = self.handle.definition();
        if !definition.enabled() {
            return Err(Error::Disabled(self.id().clone()));
        }
        self.put(definition, false, myself).await
    }

    /// A Kafka actor is gone although it was not stopped: the bridge does not run any more, or sends nothing.
    fn failed(&self, actor: ractor::ActorId, reason: &str, myself: &ActorRef<Message>) {
        let mut entry = self.handle.entry().write();
        if entry.note_failure(actor, reason) {
            tracing::error!(bridge = %self.id(), reason, "bridge failed, it is started again");
            entry.failure = Some(format!("failed and is started again: {reason}"));
            revive_later(&mut entry, myself);
        }
    }

    /// Starts again what failed, if this was the latest attempt and nothing else was done meanwhile.
    async fn revive(&self, attempt: u32, myself: &ActorRef<Message>) {
        {
            let mut entry = self.handle.entry().write();
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
        let _ = self.start(myself).await;
    }

    /// Goes on with the bridge of an actor that failed. Its children ended with it: the Kafka actors of a
    /// producer bridge get successors, a consumer bridge is started again from its last commit.
    async fn adopt(&self, myself: &ActorRef<Message>) {
        let (has_stopping, previous) = {
            let mut entry = self.handle.entry().write();
            let entry = &mut *entry;
            entry.end_consumer();
            entry.producers().chain(&entry.stopping).for_each(|producer| producer.revive_orphans());
            match entry.running.take() {
                // It was about to be replaced.
                Some(Running::Producer(producer)) if producer.is_stopped() => entry.stopping.push(producer),
                running => entry.running = running,
            }
            if entry.running.is_some() || !entry.definition.enabled() {
                entry.failure = None;
            }
            if let (Some(Running::Producer(producer)), Some(registration)) =
                (&entry.running, &entry.registration)
            {
                registration.gate.lead_to(producer.sink());
            }
            (!entry.stopping.is_empty(), entry.previous.clone())
        };
        if has_stopping {
            self.stop_producers(self.surroundings().drain).await;
        }
        if !self.shared.ending.load(Ordering::Relaxed) {
            // One that cannot be started says why in its status.
            let _ = self.start(myself).await;
        }
        self.look_into_store();
        if !previous.is_empty() {
            settle_later(previous, myself);
        } else if let Some(Running::Producer(producer)) = &self.handle.entry().read().running {
            producer.begin();
        }
    }
}

/// Waits for predecessors to run dry.
fn settle_later(previous: Vec<Arc<RunningProducer>>, myself: &ActorRef<Message>) {
    let myself = myself.clone();
    tokio::spawn(async move {
        run_dry(&previous).await;
        let _ = myself.send_message(Message::RanDry);
    });
}

fn revive_later(entry: &mut Entry, myself: &ActorRef<Message>) {
    let attempt = entry.next_attempt();
    myself.send_after(REVIVAL.jittered(attempt), move || Message::Revive(attempt));
}

/// Lets them send what they hold, the oldest first.
pub(super) async fn run_dry(producers: &[Arc<RunningProducer>]) {
    for producer in producers {
        producer.begin();
        producer.idle().await;
    }
}

impl Actor for Bridge {
    type Msg = Message;
    /// The earlier actor of the bridge, until its work is taken over.
    type State = Option<ActorRef<Message>>;
    type Arguments = Self::State;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        predecessor: Self::State,
    ) -> Result<Self::State, ActorProcessingErr> {
        self.handle.parent().set(myself.get_cell());
        Ok(predecessor)
    }

    /// Supervised already.
    async fn post_start(
        &self,
        myself: ActorRef<Message>,
        predecessor: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(predecessor) = predecessor.take() {
            predecessor.kill();
            let _ = predecessor.wait(None).await;
            self.adopt(&myself).await;
        }
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        _: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let drain = self.surroundings().drain;
        // A caller may have stopped waiting for any of these answers.
        let (result, reply) = match message {
            Message::Desired { definition, is_new, reply } => {
                (self.put(definition, is_new, &myself).await, reply)
            }
            Message::Enable(definition, reply) => (self.enable(definition, &myself).await, reply),
            Message::Restart(reply) => (self.restart(&myself).await, reply),
            Message::Delete { force, reply } => {
                let result = self.delete(force).await;
                if result.is_ok() {
                    myself.stop(None);
                }
                let _ = reply.send(result);
                return Ok(());
            }
            Message::Remove(reply) => {
                self.remove(drain).await;
                myself.stop(None);
                (Ok(()), reply)
            }
            Message::Stop(leave, reply) => {
                self.stop(leave, drain).await;
                (Ok(()), reply)
            }
            Message::Revive(attempt) => {
                self.revive(attempt, &myself).await;
                return Ok(());
            }
            Message::RanDry => {
                self.settle(false).await;
                return Ok(());
            }
            #[cfg(test)]
            Message::Panic => std::panic::resume_unwind(Box::new("on purpose")),
        };
        let _ = reply.send(result);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        _: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // One that was stopped is gone from the entry already, or about to be.
        if let SupervisionEvent::ActorFailed(actor, reason) = event {
            self.failed(actor.get_id(), &reason.to_string(), &myself);
        }
        Ok(())
    }
}
