//! The root of the supervision tree: restarts what lives as long as the node, and reports when
//! restarting is given up.
//!
//! ```text
//! Root -> bridge service (Manager) -> Bridge -> TopicProducer -> PartitionProducer
//!      |                                     -> GroupMember
//!      -> ConnectionSupervisor, one for each core; connections are tasks that report to it
//! ```
//!
//! Invariants:
//! * A child that fails is started again at once. More than [`MAX_FAILURES`] failures within [`WITHIN`], of
//!   all children together, end that: [`Root::failed`] resolves, and the process is to end.
//! * [`Root::failed`] also resolves when the root itself fails: nothing is left without a supervisor
//!   unnoticed.
//! * A child that was stopped is not started again.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, ActorStatus, RpcReplyPort, SpawnErr,
    SupervisionEvent,
};
use tokio::sync::watch;

/// Failures that are borne within [`WITHIN`]. One bad order or one bad connection costs one restart; a cause
/// that comes back five times in a minute is not mended by restarting a part, and may be by a process that
/// begins anew.
pub const MAX_FAILURES: usize = 5;

/// The span in which failures are counted: long enough for one that needs some traffic to come back.
pub const WITHIN: Duration = Duration::from_mins(1);

/// A supervisor that may be replaced: children are linked to the one there is when they start.
#[derive(Debug, Clone, Default)]
pub struct Parent(Arc<Mutex<Option<ActorCell>>>);

impl Parent {
    /// The supervisor of children that start from now on.
    pub fn set(&self, supervisor: ActorCell) {
        *self.0.lock() = Some(supervisor);
    }

    /// The supervisor, once there is one.
    pub fn get(&self) -> Option<ActorCell> {
        self.0.lock().clone()
    }
}

/// A child of the root: whichever actor does its work now.
pub struct Child<M>(watch::Receiver<ActorRef<M>>);

impl<M> Clone for Child<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: ractor::Message> Child<M> {
    /// The actor.
    pub fn actor(&self) -> ActorRef<M> {
        self.0.borrow().clone()
    }

    /// The actor; where it has failed, its successor if that comes within `patience`.
    pub async fn live_actor(&self, patience: Duration) -> ActorRef<M> {
        let mut actors = self.0.clone();
        let live = actors.wait_for(|actor| actor.get_status() <= ActorStatus::Upgrading);
        if let Ok(Ok(actor)) = tokio::time::timeout(patience, live).await {
            return actor.clone();
        }
        self.actor()
    }
}

type Started = Pin<Box<dyn Future<Output = Result<ActorCell, SpawnErr>> + Send>>;

/// Starts a child, linked to this supervisor.
type Start = Box<dyn Fn(ActorCell) -> Started + Send>;

/// Messages to the root.
enum Message {
    /// Starts a child and keeps it running.
    Supervise(&'static str, Start, RpcReplyPort<Result<(), SpawnErr>>),
}

/// Handle to the root.
#[derive(Clone)]
pub struct Root {
    actor: ActorRef<Message>,
    failed: watch::Receiver<Option<String>>,
}

impl Root {
    /// Starts a root without children.
    ///
    /// # Errors
    /// The actor could not be started.
    pub async fn start() -> Result<Self, SpawnErr> {
        let (sender, failed) = watch::channel(None);
        let (actor, _) = Actor::spawn(None, NodeRoot, sender).await?;
        Ok(Self { actor, failed })
    }

    /// Starts a child, which is started again in the same way when it fails. `name` is for logs.
    ///
    /// # Errors
    /// The first start failed; then it is not tried again.
    pub async fn supervise<A, F>(&self, name: &'static str, start: F) -> Result<Child<A>, SpawnErr>
    where
        A: ractor::Message,
        F: Fn(ActorCell) -> Pin<Box<dyn Future<Output = Result<ActorRef<A>, SpawnErr>> + Send>>
            + Send
            + 'static,
    {
        let actors: Arc<Mutex<Option<watch::Sender<ActorRef<A>>>>> = Arc::default();
        let current = actors.clone();
        let start: Start = Box::new(move |root| {
            let (started, current) = (start(root), current.clone());
            Box::pin(async move {
                let actor = started.await?;
                let cell = actor.get_cell();
                let mut current = current.lock();
                match &*current {
                    Some(current) => drop(current.send_replace(actor)),
                    None => *current = Some(watch::Sender::new(actor)),
                }
                Ok(cell)
            })
        });
        let gone = || SpawnErr::StartupFailed("the root supervisor is gone".into());
        match self.actor.call(|reply| Message::Supervise(name, start, reply), None).await {
            Ok(ractor::rpc::CallResult::Success(started)) => started?,
            _ => return Err(gone()),
        }
        let child = actors.lock().as_ref().map(|current| Child(current.subscribe()));
        child.ok_or_else(gone)
    }

    /// Resolves when restarting is given up, with the reason in words.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the root supervisor of the node failed".to_owned(),
        }
    }

    /// Ends the root; children that still run are killed.
    pub fn stop(&self) {
        self.actor.stop(None);
    }
}

/// The actor.
struct NodeRoot;

/// One child.
struct Supervised {
    name: &'static str,
    start: Start,
}

/// The failures that still count.
#[derive(Default)]
struct Intensity(VecDeque<Instant>);

impl Intensity {
    /// Notes a failure; false where it is one too many.
    fn bears(&mut self, now: Instant) -> bool {
        self.0.retain(|at| now.duration_since(*at) < WITHIN);
        self.0.push_back(now);
        self.0.len() <= MAX_FAILURES
    }
}

/// State of the root.
struct State {
    children: HashMap<ActorId, Supervised>,
    failures: Intensity,
    failed: watch::Sender<Option<String>>,
}

impl State {
    /// Notes a failure; false where it is one too many.
    fn bears(&mut self, name: &str, reason: &str) -> bool {
        if self.failures.bears(Instant::now()) {
            tracing::error!(part = name, reason, "a part of the node failed, it is started again");
            return true;
        }
        let words = format!(
            "parts of the node failed {} times within {} s, the last time the {name}: {reason}",
            MAX_FAILURES + 1,
            WITHIN.as_secs()
        );
        tracing::error!(part = name, reason, "a part of the node failed too often, the node ends");
        self.failed.send_if_modified(|failed| failed.is_none() && failed.replace(words).is_none());
        false
    }

    async fn start_again(&mut self, myself: &ActorRef<Message>, child: Supervised, reason: String) {
        let mut reason = reason;
        while self.bears(child.name, &reason) {
            match (child.start)(myself.get_cell()).await {
                Ok(actor) => {
                    self.children.insert(actor.get_id(), child);
                    return;
                }
                Err(error) => reason = format!("cannot be started: {error}"),
            }
        }
    }
}

impl Actor for NodeRoot {
    type Msg = Message;
    type State = State;
    type Arguments = watch::Sender<Option<String>>;

    async fn pre_start(
        &self,
        _: ActorRef<Message>,
        failed: watch::Sender<Option<String>>,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State { children: HashMap::new(), failures: Intensity::default(), failed })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Message::Supervise(name, start, reply) = message;
        let started = start(myself.get_cell()).await.map(|actor| {
            state.children.insert(actor.get_id(), Supervised { name, start });
        });
        let _ = reply.send(started);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, reason) => {
                if let Some(child) = state.children.remove(&actor.get_id()) {
                    state.start_again(&myself, child, reason.to_string()).await;
                }
            }
            SupervisionEvent::ActorTerminated(actor, ..) => drop(state.children.remove(&actor.get_id())),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics when it is told true, and counts what it is told otherwise.
    struct Fragile;

    impl Actor for Fragile {
        type Msg = (bool, tokio::sync::mpsc::UnboundedSender<()>);
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(
            &self,
            _: ActorRef<Self::Msg>,
            (panic, heard): Self::Msg,
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            if panic {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
            let _ = heard.send(());
            Ok(())
        }
    }

    async fn fragile(root: &Root) -> Child<<Fragile as Actor>::Msg> {
        root.supervise("fragile part", |root| {
            Box::pin(async move { Ok(Actor::spawn_linked(None, Fragile, (), root).await?.0) })
        })
        .await
        .unwrap()
    }

    /// Makes the actor panic and waits for its successor.
    async fn fail(child: &Child<<Fragile as Actor>::Msg>) {
        let before = child.actor();
        before.send_message((true, tokio::sync::mpsc::unbounded_channel().0)).unwrap();
        let mut actors = child.0.clone();
        actors.wait_for(|actor| actor.get_id() != before.get_id()).await.unwrap();
    }

    #[test]
    fn failures_count_for_a_while() {
        let (mut failures, start) = (Intensity::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!((0..50).step_by(10).all(|seconds| failures.bears(at(seconds))));
        assert!(failures.bears(at(60)), "the first is forgotten");
        assert!(!failures.bears(at(69)), "the second is not");
    }

    #[tokio::test]
    async fn a_child_that_fails_is_started_again_until_it_fails_too_often() {
        let root = Root::start().await.unwrap();
        let (child, bystander) = (fragile(&root).await, fragile(&root).await);
        let unharmed = bystander.actor().get_id();
        for _ in 0..MAX_FAILURES {
            fail(&child).await;
        }
        let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
        child.actor().send_message((false, heard)).unwrap();
        hears.recv().await.expect("the successor works");
        assert_eq!((bystander.actor().get_id(), root.failed.borrow().clone()), (unharmed, None));
        // Failures count together.
        bystander.actor().send_message((true, tokio::sync::mpsc::unbounded_channel().0)).unwrap();
        let reason = root.failed().await;
        assert!(reason.contains("6 times") && reason.contains("on purpose"), "{reason}");
    }

    #[tokio::test]
    async fn a_child_that_was_stopped_stays_so_and_the_end_of_the_root_is_heard_of() {
        let root = Root::start().await.unwrap();
        let child = fragile(&root).await;
        let actor = child.actor();
        actor.stop_and_wait(None, None).await.unwrap();
        let bystander = fragile(&root).await;
        assert_eq!(child.actor().get_id(), actor.get_id());
        root.actor.kill();
        assert!(root.failed().await.contains("root supervisor"));
        bystander.actor().wait(None).await.unwrap();
    }
}
