//! The actor that keeps the wanted definitions of all bridges: it checks and stores orders, and has the
//! actors of the bridges ([`super::bridge`]) carry them out.
//!
//! Invariants:
//! * What is described from outside is checked as a whole, then stored, then done: an error has changed
//!   nothing.
//! * Orders that concern the same bridge are admitted one after the other, in the order in which they came:
//!   the next one is checked when the one before it has ended. Orders for different bridges run side by side.
//! * The manager never waits for a bridge: a task waits for the answers, passes them on and reports the end
//!   of the order.
//! * A bridge actor that fails is started again, later and later, or at once for an order. Other bridges are
//!   not concerned.
//! * The manager itself may fail, and its children with it: its successor finds all bridges where it left
//!   them and starts an actor for each. Orders under way end with [`Error::Interrupted`] and may be done in
//!   part.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};

use super::bridge::{self, Message, REVIVAL, Shared};
use super::entry::{Entries, Handle, Retired};
use super::loops;
use super::overlay::{Change, Overlay};
use super::service::{Apply, BridgeContext, BridgeId, Definition, Deleted, Error, Kind};
use crate::kafka::consumer::Leave;
use crate::supervision::{Child, Root};

type Reply<T> = RpcReplyPort<Result<T, Error>>;

/// Orders, and what the manager tells itself.
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
    /// The order with this number has ended.
    Done(u64),
    /// A bridge whose actor failed is to get another one, if this was its latest attempt.
    Revive(BridgeId, u32),
    /// A panic, for tests.
    #[cfg(test)]
    Panic,
}

/// The bridges that an order concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    Of(Vec<BridgeId>),
    All(Kind),
    /// Messages of the manager to itself.
    None,
}

impl Scope {
    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => false,
            (Self::All(one), Self::All(other)) => one == other,
            (Self::All(kind), Self::Of(ids)) | (Self::Of(ids), Self::All(kind)) => {
                ids.iter().any(|id| id.kind == *kind)
            }
            (Self::Of(one), Self::Of(other)) => one.iter().any(|id| other.contains(id)),
        }
    }
}

impl Order {
    fn scope(&self) -> Scope {
        match self {
            Self::Put(id, ..)
            | Self::Delete(id, ..)
            | Self::Remove(id, _)
            | Self::Enable(id, ..)
            | Self::Restart(id, _) => Scope::Of(vec![id.clone()]),
            Self::Apply(_, bridges, _) => Scope::Of(bridges.iter().map(|(id, _)| id.clone()).collect()),
            Self::StopAll(kind, _) => Scope::All(*kind),
            Self::Done(_) | Self::Revive(..) => Scope::None,
            #[cfg(test)]
            Self::Panic => Scope::None,
        }
    }
}

/// Starts the actor.
pub(super) async fn start(
    surroundings: BridgeContext,
    entries: Entries,
    retired: Retired,
    overlay: Option<Overlay>,
    ending: Arc<AtomicBool>,
    root: &Root,
) -> Result<Child<Order>, ractor::SpawnErr> {
    // Before there are bridges with files of their own.
    super::hybrid_buffer::remove_leftovers(&surroundings.data_dir);
    let overlay = Arc::new(tokio::sync::Mutex::new(overlay));
    let manager = Manager { shared: Shared { surroundings, entries, retired, overlay, ending } };
    let start = move |root| -> Pin<Box<dyn Future<Output = _> + Send>> {
        let manager = manager.clone();
        Box::pin(async move { Ok(Actor::spawn_linked(None, manager, (), root).await?.0) })
    };
    root.supervise("bridge service", start).await
}

/// The actor.
#[derive(Clone)]
struct Manager {
    shared: Shared,
}

/// State that ends with the manager.
#[derive(Default)]
struct State {
    /// The wanted definitions: of a bridge without an order under way, the one that it follows.
    desired: BTreeMap<BridgeId, Definition>,
    /// Orders under way, by number.
    running: BTreeMap<u64, Scope>,
    /// Orders that wait for an earlier one for the same bridge, oldest first.
    waiting: Vec<(Scope, Order)>,
    latest: u64,
}

impl State {
    fn is_free(&self, scope: &Scope) -> bool {
        !self.running.values().any(|running| running.meets(scope))
    }

    /// The first waiting order that meets neither one under way nor one that came before it.
    fn next(&mut self) -> Option<Order> {
        let free = (0..self.waiting.len()).find(|index| {
            let scope = &self.waiting[*index].0;
            self.is_free(scope) && !self.waiting[..*index].iter().any(|(earlier, _)| earlier.meets(scope))
        });
        free.map(|index| self.waiting.remove(index).1)
    }
}

/// A bridge actor's answer to come.
type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

impl Manager {
    fn handle_of(&self, id: &BridgeId) -> Result<Arc<Handle>, Error> {
        let handle = self.shared.entries.read().get(id).cloned();
        handle.ok_or_else(|| Error::NotFound { id: id.clone() })
    }

    /// The actor of a bridge; another one where it has failed.
    async fn actor(&self, handle: &Arc<Handle>, myself: &ActorRef<Order>) -> Option<ActorRef<Message>> {
        if handle.live_actor().is_none()
            && let Err(error) = bridge::start(&self.shared, handle, myself.get_cell()).await
        {
            revive_later(handle, &format!("its actor cannot be started: {error}"), myself);
        }
        handle.live_actor()
    }

    /// Sends a message to a bridge. Returns the answer to come.
    async fn tell<T: Send + 'static>(
        &self,
        handle: &Arc<Handle>,
        myself: &ActorRef<Order>,
        message: impl FnOnce(Reply<T>) -> Message + Send + 'static,
    ) -> Answer<T> {
        let (actor, ending) = (self.actor(handle, myself).await, self.shared.ending.clone());
        Box::pin(async move {
            if let Some(actor) = actor
                && let Ok(ractor::rpc::CallResult::Success(result)) = actor.call(message, None).await
            {
                return result;
            }
            Err(if ending.load(Ordering::Relaxed) { Error::Stopping } else { Error::Interrupted })
        })
    }

    /// Waits for the answers of an order in a task of its own, and passes on `sum` of them.
    fn follow<T: Send + 'static>(
        state: &mut State,
        scope: Scope,
        myself: &ActorRef<Order>,
        answers: Vec<Answer<T>>,
        reply: Reply<T>,
        sum: impl FnOnce(Vec<Result<T, Error>>) -> Result<T, Error> + Send + 'static,
    ) {
        state.latest += 1;
        let number = state.latest;
        state.running.insert(number, scope);
        let myself = myself.clone();
        tokio::spawn(async move {
            let result = sum(futures_util::future::join_all(answers).await);
            let _ = myself.send_message(Order::Done(number));
            // The caller may have stopped waiting.
            let _ = reply.send(result);
        });
    }

    /// Brings the wanted definitions of a scope to what its bridges follow.
    fn refresh(&self, state: &mut State, scope: &Scope) {
        let entries = self.shared.entries.read();
        let ids: Vec<BridgeId> = match scope {
            Scope::Of(ids) => ids.clone(),
            Scope::All(_) | Scope::None => Vec::new(),
        };
        for id in ids {
            match entries.get(&id) {
                Some(handle) => drop(state.desired.insert(id, handle.definition())),
                None => drop(state.desired.remove(&id)),
            }
        }
    }

    /// Everything that speaks against these bridges, one line each.
    fn objections(&self, state: &State, how: Apply, bridges: &[(BridgeId, Definition)]) -> Vec<String> {
        let mut wrong = Vec::new();
        for (id, definition) in bridges {
            match (how, state.desired.contains_key(id)) {
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
        }
        wrong.extend(self.in_both(state, |others| {
            let mut wrong = group_objections(bridges, others);
            wrong.extend(loops::objections(bridges, others.iter()));
            wrong
        }));
        wrong
    }

    /// Objections against what is wanted, and, while other orders are under way, against what their bridges
    /// still do.
    fn in_both(
        &self,
        state: &State,
        objections: impl Fn(&BTreeMap<BridgeId, Definition>) -> Vec<String>,
    ) -> Vec<String> {
        let mut wrong = objections(&state.desired);
        if !state.running.is_empty() {
            let entries = self.shared.entries.read();
            let followed = entries.iter().map(|(id, handle)| (id.clone(), handle.definition())).collect();
            drop(entries);
            for objection in objections(&followed) {
                if !wrong.contains(&objection) {
                    wrong.push(objection);
                }
            }
        }
        wrong
    }

    /// Stores what bridges are now.
    async fn store(&self, bridges: &[(BridgeId, Definition)]) -> Result<(), Error> {
        let Some(overlay) = &mut *self.shared.overlay.lock().await else { return Ok(()) };
        let changes: Vec<_> = bridges
            .iter()
            .map(|(id, definition)| (id.clone(), Change::Defined(Box::new(definition.clone()))))
            .collect();
        overlay.store(&changes).map_err(|error| Error::Store(error.to_string()))
    }

    /// Has a bridge follow a definition, and creates it where there is none.
    async fn desire(
        &self,
        state: &mut State,
        id: &BridgeId,
        definition: Definition,
        myself: &ActorRef<Order>,
    ) -> Answer<()> {
        state.desired.insert(id.clone(), definition.clone());
        let known = self.handle_of(id).ok();
        let is_new = known.is_none();
        let handle = known.unwrap_or_else(|| {
            let handle = Handle::new(id.clone(), definition.clone());
            self.shared.entries.write().insert(id.clone(), handle.clone());
            handle
        });
        self.tell(&handle, myself, move |reply| Message::Desired { definition, is_new, reply }).await
    }

    async fn apply(
        &self,
        state: &mut State,
        how: Apply,
        mut bridges: Vec<(BridgeId, Definition)>,
        myself: &ActorRef<Order>,
    ) -> Result<Vec<Answer<()>>, Error> {
        for (id, definition) in &mut bridges {
            if let Some(stored) = state.desired.get(id) {
                definition.keep_secrets_of(stored);
            }
        }
        let wrong = self.objections(state, how, &bridges);
        if !wrong.is_empty() {
            return Err(Error::Refused(wrong));
        }
        self.store(&bridges).await?;
        let mut answers = Vec::new();
        for (id, definition) in bridges {
            if state.desired.get(&id) != Some(&definition) {
                answers.push(self.desire(state, &id, definition, myself).await);
            }
        }
        Ok(answers)
    }

    async fn enable(
        &self,
        state: &mut State,
        id: &BridgeId,
        on: bool,
        myself: &ActorRef<Order>,
    ) -> Result<Vec<Answer<()>>, Error> {
        let handle = self.handle_of(id)?;
        let mut definition = handle.definition();
        if definition.enabled() != on {
            definition.set_enabled(on);
            let changed = [(id.clone(), definition.clone())];
            let wrong = self.in_both(state, |others| loops::objections(&changed, others.iter()));
            if !wrong.is_empty() {
                return Err(Error::Refused(wrong));
            }
            self.store(&changed).await?;
        }
        state.desired.insert(id.clone(), definition.clone());
        Ok(vec![self.tell(&handle, myself, move |reply| Message::Enable(definition, reply)).await])
    }

    /// Checks an order, stores it and has it carried out.
    async fn admit(&self, state: &mut State, order: Order, myself: &ActorRef<Order>) {
        let scope = order.scope();
        let (answers, reply) = match order {
            Order::Put(id, definition, reply) => {
                (Ok(vec![self.desire(state, &id, definition, myself).await]), reply)
            }
            Order::Apply(how, bridges, reply) => (self.apply(state, how, bridges, myself).await, reply),
            Order::Enable(id, on, reply) => (self.enable(state, &id, on, myself).await, reply),
            Order::Remove(id, reply) => match self.handle_of(&id) {
                Ok(handle) => (Ok(vec![self.tell(&handle, myself, Message::Remove).await]), reply),
                Err(error) => (Err(error), reply),
            },
            Order::Restart(id, reply) => match self.handle_of(&id) {
                Ok(handle) => (Ok(vec![self.tell(&handle, myself, Message::Restart).await]), reply),
                Err(error) => (Err(error), reply),
            },
            Order::StopAll(kind, reply) => {
                self.shared.ending.store(true, Ordering::Relaxed);
                let handles: Vec<_> = self.shared.entries.read().values().cloned().collect();
                let mut answers = Vec::new();
                for handle in handles.iter().filter(|handle| handle.id().kind == kind) {
                    let stop = |reply| Message::Stop(Leave::Restart, reply);
                    answers.push(self.tell(handle, myself, stop).await);
                }
                (Ok(answers), reply)
            }
            Order::Delete(id, force, reply) => {
                let handle = match self.handle_of(&id) {
                    Ok(handle) => handle,
                    Err(error) => return drop(reply.send(Err(error))),
                };
                let delete = move |reply| Message::Delete { force, reply };
                let answers = vec![self.tell(&handle, myself, delete).await];
                let only = move |mut results: Vec<_>| results.pop().unwrap_or(Err(Error::NotFound { id }));
                return Self::follow(state, scope, myself, answers, reply, only);
            }
            Order::Done(number) => {
                if let Some(scope) = state.running.remove(&number) {
                    self.refresh(state, &scope);
                }
                return;
            }
            Order::Revive(id, attempt) => {
                if let Ok(handle) = self.handle_of(&id)
                    && handle.attempt() == Some(attempt)
                {
                    self.actor(&handle, myself).await;
                }
                return;
            }
            #[cfg(test)]
            Order::Panic => std::panic::resume_unwind(Box::new("on purpose")),
        };
        match answers {
            Ok(answers) => {
                let first_error = |results: Vec<_>| results.into_iter().collect::<Result<(), _>>();
                Self::follow(state, scope, myself, answers, reply, first_error);
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// The actor of a bridge is gone although it was not stopped.
    fn failed(&self, actor: ActorId, reason: &str, myself: &ActorRef<Order>) {
        let handles = self.shared.entries.read();
        let its = |handle: &&Arc<Handle>| handle.actor().is_some_and(|its| its.get_id() == actor);
        let handle = handles.values().find(its).cloned();
        drop(handles);
        if let Some(handle) = handle {
            revive_later(&handle, reason, myself);
        }
    }
}

/// Notes that the actor of a bridge failed, and has it started again later.
fn revive_later(handle: &Handle, reason: &str, myself: &ActorRef<Order>) {
    tracing::error!(bridge = %handle.id(), reason, "the actor of a bridge failed, it is started again");
    let (id, attempt) = (handle.id().clone(), handle.note_panic(reason));
    myself.send_after(REVIVAL.jittered(attempt), move || Order::Revive(id, attempt));
}

/// Consumer bridges that would share a group with another one, one line each.
fn group_objections(
    bridges: &[(BridgeId, Definition)],
    others: &BTreeMap<BridgeId, Definition>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for (id, definition) in bridges {
        let Definition::Consumer(config) = definition else { continue };
        let group = config.group_id(&id.name);
        let others = others.iter().filter(|(other, _)| !bridges.iter().any(|(id, _)| id == *other));
        for (other, definition) in others.chain(bridges.iter().map(|(id, definition)| (id, definition))) {
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
    wrong
}

impl Actor for Manager {
    type Msg = Order;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Order>, (): ()) -> Result<State, ActorProcessingErr> {
        let entries = self.shared.entries.read();
        let desired = entries.iter().map(|(id, handle)| (id.clone(), handle.definition())).collect();
        Ok(State { desired, ..State::default() })
    }

    /// Supervised by the root already. Starts actors for the bridges of a manager that failed.
    async fn post_start(&self, myself: ActorRef<Order>, _: &mut State) -> Result<(), ActorProcessingErr> {
        let handles: Vec<_> = self.shared.entries.read().values().cloned().collect();
        for handle in handles {
            // An actor of the manager that failed may live for a moment: its successor ends it.
            if let Err(error) = bridge::start(&self.shared, &handle, myself.get_cell()).await {
                revive_later(&handle, &format!("its actor cannot be started: {error}"), &myself);
            }
        }
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Order>,
        order: Order,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let scope = order.scope();
        let is_behind = state.waiting.iter().any(|(earlier, _)| earlier.meets(&scope));
        if is_behind || !state.is_free(&scope) {
            state.waiting.push((scope, order));
            return Ok(());
        }
        self.admit(state, order, &myself).await;
        while let Some(order) = state.next() {
            self.admit(state, order, &myself).await;
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Order>,
        event: SupervisionEvent,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(actor, reason) = event {
            self.failed(actor.get_id(), &reason.to_string(), &myself);
        }
        Ok(())
    }
}
