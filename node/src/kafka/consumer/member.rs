//! [`GroupMember`]: the actor that runs what [`Group`] decides.
//!
//! It owns the membership: the state machine, the clock, the present assignment with its tasks, and the
//! commits. Requests run in tasks of their own and come back as messages, so the actor never waits.
//! Records do not pass through it.
//!
//! Invariants:
//! * Tasks of an assignment live in [`Assigned`] and die with it.
//! * Before partitions are given back their delivery tasks have ended: nothing is offered any more while
//!   the rest drains and is committed.
//! * A commit names the generation that it belongs to; Kafka refuses it in another.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, MissedTickBehavior};

use super::context::{Context, Faults};
use super::group::{Action, Event, Failure, Group, Settings, Standing};
use super::handle::{ConsumerHandle, Shared};
use super::partition::{Limits, Partition, deliver};
use super::placement::{Placement, place};
use super::record::RecordSink;
use super::requests::{Commit, Requests};
use super::status::StatusBoard;
use super::topics::{Learned, Position, Topics};
use super::{ConsumerOptions, TopicPartition};
use crate::kafka::client::{Client, Purpose, ResponseError, TopicView};

/// A compressed batch may grow to this when it is read, whatever the fetch limit.
const LEAST_BATCH_BYTES: usize = 64 * 1024 * 1024;

/// Time for the last commit and for leaving, each.
const FAREWELL: Duration = Duration::from_secs(5);

/// A look at the topics that failed is tried again after this time.
const RETRY_LOOK_AFTER: Duration = Duration::from_secs(5);

/// Starts the actor.
pub(super) async fn start(
    client: Client,
    options: ConsumerOptions,
    sink: Arc<dyn RecordSink>,
    supervisor: Option<ActorCell>,
) -> Result<ConsumerHandle, SpawnErr> {
    let (stopped, _) = watch::channel(false);
    let shared =
        Arc::new(Shared { status: Arc::new(StatusBoard::new()), partitions: Mutex::default(), stopped });
    let patience = options.drain_timeout + FAREWELL * 3;
    let is_static = options.group_instance_id.is_some();
    let arguments = Arguments { client, options: Arc::new(options), sink, shared: shared.clone() };
    let (actor, _) = match supervisor {
        Some(supervisor) => Actor::spawn_linked(None, GroupMember, arguments, supervisor).await?,
        None => Actor::spawn(None, GroupMember, arguments).await?,
    };
    Ok(ConsumerHandle { actor, shared, patience, is_static })
}

/// The actor.
struct GroupMember;

struct Arguments {
    client: Client,
    options: Arc<ConsumerOptions>,
    sink: Arc<dyn RecordSink>,
    shared: Arc<Shared>,
}

/// Message to the actor.
pub(super) enum Message {
    Event(Event),
    /// Time to commit.
    Commit,
    /// A commit is over: what Kafka took.
    Committed {
        attempt: u64,
        taken: Vec<Commit>,
        result: Result<(), Failure>,
    },
    /// View of the mapped topics.
    Topics(Vec<Arc<TopicView>>),
    /// A task of an assignment panicked. Its partition would stand still for ever: the member fails as a
    /// whole, and its supervisor starts another.
    TaskPanicked,
    /// A panic, for tests.
    #[cfg(test)]
    Panic,
}

/// Tells the member when the task that holds it panics.
struct PanicAlarm(ActorRef<Message>);

impl Drop for PanicAlarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Fails only when the member is gone already.
            let _ = self.0.cast(Message::TaskPanicked);
        }
    }
}

/// Runs a task of an assignment.
fn watched(task: impl Future<Output = ()> + Send + 'static, member: &ActorRef<Message>) -> Owned<()> {
    let alarm = PanicAlarm(member.clone());
    Owned(tokio::spawn(async move {
        let _alarm = alarm;
        task.await;
    }))
}

/// A task that ends with its owner.
struct Owned<T>(JoinHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The partitions of a generation and the tasks that work on them.
struct Assigned {
    context: Arc<Context>,
    partitions: Vec<Arc<Partition>>,
    deliveries: Vec<Owned<()>>,
    placement: Owned<()>,
}

struct State {
    group: Group,
    requests: Requests,
    options: Arc<ConsumerOptions>,
    sink: Arc<dyn RecordSink>,
    shared: Arc<Shared>,
    assigned: Option<Assigned>,
    /// The drain and last commit under way.
    giving_back: Option<Owned<()>>,
    committing: bool,
    topics: Arc<Mutex<Topics>>,
    alarm: Option<(Instant, AbortHandle)>,
    _timers: [Owned<()>; 2],
}

impl State {
    /// Lets go of everything; a second time does nothing more.
    fn end(&mut self) {
        if let Some((_, alarm)) = self.alarm.take() {
            alarm.abort();
        }
        self.requests.client.release(Purpose::Coordinator(self.requests.lane));
        self.requests.client.release(Purpose::Fetch(self.requests.lane));
        self.shared.partitions.lock().clear();
        self.shared.status.forget_faults();
        self.shared.status.standing(Standing::Out("the consumer has stopped".to_owned()));
        self.shared.stopped.send_replace(true);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.end();
    }
}

impl Actor for GroupMember {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let Arguments { client, options, sink, shared } = arguments;
        let settings = Settings {
            group_id: options.group_id.clone(),
            instance_id: options.group_instance_id.clone(),
            former_instance_id: options.former_instance_id.clone(),
            topics: options.topics.clone(),
            session_timeout: options.session_timeout,
            rebalance_timeout: options.rebalance_timeout,
            heartbeat_interval: options.heartbeat_interval,
            rejoin_backoff: options.rejoin_backoff,
            leader_patience: options.topic_refresh_interval * 2,
            max_rejoin_attempts: options.max_rejoin_attempts,
        };
        let group = Group::new(settings.clone(), Instant::now());
        let lane = client.next_lane();
        let commits = tokio::spawn(every(options.commit_interval, myself.clone()));
        let topics = tokio::spawn(look_at_topics(client.clone(), options.clone(), myself.clone()));
        myself.cast(Message::Event(Event::Tick))?;
        Ok(State {
            group,
            requests: Requests { client, lane, settings: Arc::new(settings) },
            options,
            sink,
            shared,
            assigned: None,
            giving_back: None,
            committing: false,
            topics: Arc::default(),
            alarm: None,
            _timers: [Owned(commits), Owned(topics)],
        })
    }

    /// The state goes to the supervisor with the news that the actor ended, and the supervisor may be waiting
    /// for just that end.
    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.end();
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            #[cfg(test)]
            Message::Panic => std::panic::resume_unwind(Box::new("on purpose")),
            Message::TaskPanicked => return Err("a task of the consumer panicked".into()),
            Message::Event(event) => state.take_in(event, &myself),
            Message::Commit => state.commit(&myself),
            Message::Committed { attempt, taken, result } => {
                state.committing = false;
                if attempt == state.group.attempt()
                    && let Some(assigned) = &state.assigned
                {
                    note_committed(&assigned.partitions, &taken);
                }
                if let Err(failure) = &result {
                    tracing::warn!(group = &*state.options.group_id, %failure, "an offset commit failed");
                }
                state.take_in(Event::Commit { attempt, result }, &myself);
            }
            Message::Topics(views) => {
                let (counts, recreated) = {
                    let mut topics = state.topics.lock();
                    let is_new = |view: &&Arc<TopicView>| topics.learn(view) == Learned::Recreated;
                    let recreated: Vec<_> =
                        views.iter().filter(is_new).map(|view| view.name.clone()).collect();
                    (topics.counts(), recreated)
                };
                if let Some(assigned) = &state.assigned {
                    // Their placement finds that they belong to a former topic.
                    let former = |partition: &&Arc<Partition>| recreated.contains(&partition.name.topic);
                    for partition in assigned.partitions.iter().filter(former) {
                        assigned.context.placement.seek(partition.clone(), false);
                    }
                }
                for view in &views {
                    match view.error {
                        None => state.shared.status.topic_found(&view.name),
                        Some(code)
                            if code.is_retriable() && code != ResponseError::UnknownTopicOrPartition => {}
                        Some(code) => state.shared.status.topic_missing(&view.name, code),
                    }
                }
                state.take_in(Event::Topics(counts), &myself);
            }
        }
        Ok(())
    }
}

fn note_committed(partitions: &[Arc<Partition>], taken: &[Commit]) {
    for commit in taken {
        if let Some(partition) = partitions.iter().find(|partition| partition.name == commit.partition) {
            partition.note_committed(commit.offset, commit.origin.topic_id);
        }
    }
}

/// Offsets of these partitions that can be committed.
fn uncommitted(partitions: &[Arc<Partition>], topics: &Mutex<Topics>) -> Vec<Commit> {
    let topics = topics.lock();
    let now = Instant::now();
    let commit = |partition: &Arc<Partition>| {
        let again = topics.may_lose_commits(&partition.name.topic, now);
        let (offset, topic_id) = partition.to_commit(again)?;
        let origin = topics.origin(&partition.name.topic, topic_id);
        Some(Commit { partition: partition.name.clone(), offset, origin })
    };
    partitions.iter().filter_map(commit).collect()
}

impl State {
    /// Runs an event through the state machine and does what it says.
    fn take_in(&mut self, event: Event, myself: &ActorRef<Message>) {
        let setbacks = self.group.setbacks();
        for action in self.group.handle(event, Instant::now()) {
            self.act(action, myself);
        }
        let standing = self.group.standing();
        // The first setback and then each doubling: something that lasts must neither be silent nor fill the
        // log.
        if self.group.setbacks() > setbacks
            && self.group.setbacks().is_power_of_two()
            && let Standing::Joining(reason) | Standing::Out(reason) = &standing
        {
            tracing::warn!(
                group = &*self.options.group_id,
                topics = self.options.topics.join(","),
                reason,
                setbacks = self.group.setbacks(),
                "kafka consumer is not in its group"
            );
        }
        self.shared.status.standing(standing);
        self.set_alarm(myself);
    }

    fn set_alarm(&mut self, myself: &ActorRef<Message>) {
        let due = self.group.next_deadline();
        if self.alarm.as_ref().map(|(at, _)| *at) == due && due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        if let Some((_, alarm)) = self.alarm.take() {
            alarm.abort();
        }
        if let Some(due) = due {
            let myself = myself.clone();
            let alarm = tokio::spawn(async move {
                tokio::time::sleep_until(due).await;
                let _ = myself.cast(Message::Event(Event::Tick));
            });
            self.alarm = Some((due, alarm.abort_handle()));
        }
    }

    fn act(&mut self, action: Action, myself: &ActorRef<Message>) {
        let requests = self.requests.clone();
        match action {
            Action::FindCoordinator => {
                ask(myself, async move { Event::Coordinator(requests.find_coordinator().await) });
            }
            Action::Join { attempt, coordinator, identity, subscription } => ask(myself, async move {
                Event::Join { attempt, answer: requests.join(coordinator, identity, subscription).await }
            }),
            Action::CountPartitions { attempt, topics } => {
                let known = self.topics.clone();
                ask(myself, async move {
                    Event::Counts { attempt, counts: count(&requests.client, topics, &known).await }
                });
            }
            Action::Describe { attempt, coordinator } => ask(myself, async move {
                Event::Described { attempt, answer: requests.describe(coordinator).await }
            }),
            Action::RemoveFormer { attempt, coordinator, instance_id } => ask(myself, async move {
                let result = requests.remove_former(coordinator, &instance_id).await;
                Event::FormerRemoved { attempt, result }
            }),
            Action::Sync { attempt, coordinator, identity, assignments } => ask(myself, async move {
                Event::Sync { attempt, assignment: requests.sync(coordinator, identity, assignments).await }
            }),
            Action::FetchOffsets { attempt, coordinator, partitions } => {
                let topics = self.topics.clone();
                ask(myself, async move {
                    let offsets = positions(&requests, coordinator, partitions, &topics).await;
                    Event::Offsets { attempt, offsets }
                });
            }
            Action::Heartbeat { attempt, coordinator, identity } => ask(myself, async move {
                Event::Beat { attempt, result: requests.heartbeat(coordinator, identity).await }
            }),
            Action::Assign { generation, partitions } => self.assign(generation, partitions, myself),
            Action::Revoke { attempt } => self.revoke(attempt, myself),
            Action::Lose => {
                tracing::warn!(
                    group = &*self.options.group_id,
                    "partitions lost to a new generation of the group"
                );
                self.drop_assignment();
            }
            Action::Leave { coordinator, identity } => ask(myself, async move {
                match tokio::time::timeout(FAREWELL, requests.leave(coordinator, identity)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(failure)) => tracing::info!(%failure, "the group was left without its consent"),
                    Err(_) => tracing::info!("the group did not answer to leaving"),
                }
                Event::Left
            }),
            Action::Stopped => {
                self.drop_assignment();
                myself.stop(None);
            }
        }
    }

    fn assign(
        &mut self,
        generation: i32,
        partitions: Vec<(TopicPartition, Position)>,
        myself: &ActorRef<Message>,
    ) {
        let names: Vec<String> = partitions.iter().map(|(name, _)| name.to_string()).collect();
        tracing::info!(
            group = &*self.options.group_id,
            generation,
            member = &*self.group.identity().member_id,
            partitions = names.join(" "),
            "joined the group"
        );
        self.giving_back = None;
        let options = &self.options;
        let context = Arc::new(Context {
            client: self.requests.client.clone(),
            lane: self.requests.lane,
            options: options.clone(),
            topics: self.topics.clone(),
            status: Faults::begin(self.shared.status.clone()),
            placement: Placement::default(),
        });
        let share = options.max_outstanding_bytes / partitions.len().max(1);
        let limits = Limits {
            bytes: share.max(options.max_batch_bytes),
            records: options.max_outstanding_records.max(1),
            batch_bytes: LEAST_BATCH_BYTES.max(options.max_batch_bytes.saturating_mul(16)),
        };
        let fetch_bytes = i32::try_from(options.max_batch_bytes).unwrap_or(i32::MAX).max(1);
        let mut assigned = Vec::with_capacity(partitions.len());
        let mut deliveries = Vec::with_capacity(partitions.len());
        for (name, position) in partitions {
            let sink = self.sink.clone().open(&name.topic, name.partition);
            let partition = Partition::new(name, position, limits, fetch_bytes);
            deliveries.push(watched(deliver(partition.clone(), sink), myself));
            context.status.assigned(&partition.name.to_string());
            context.placement.seek(partition.clone(), false);
            assigned.push(partition);
        }
        self.shared.partitions.lock().clone_from(&assigned);
        let placement = watched(place(context.clone()), myself);
        self.assigned = Some(Assigned { context, partitions: assigned, deliveries, placement });
    }

    fn drop_assignment(&mut self) {
        self.giving_back = None;
        self.assigned = None;
        self.shared.partitions.lock().clear();
        self.shared.status.forget_faults();
    }

    fn revoke(&mut self, attempt: u64, myself: &ActorRef<Message>) {
        let Some(assigned) = self.assigned.take() else {
            let _ = myself.cast(Message::Event(Event::Revoked { attempt }));
            return;
        };
        self.shared.status.forget_faults();
        let requests = self.requests.clone();
        let coordinator = self.group.coordinator();
        let identity = self.group.identity();
        let drain = self.options.drain_timeout.min(self.options.rebalance_timeout / 2);
        let myself = myself.clone();
        let shared = self.shared.clone();
        let topics = self.topics.clone();
        let work = tokio::spawn(async move {
            let Assigned { context, partitions, deliveries, placement } = assigned;
            drop(placement);
            for mut delivery in deliveries {
                delivery.0.abort();
                let _ = (&mut delivery.0).await;
            }
            drop(context);
            let deadline = Instant::now() + drain;
            join_all(partitions.iter().map(|partition| partition.drained(deadline))).await;
            let left: usize = partitions.iter().map(|partition| partition.outstanding()).sum();
            if left > 0 {
                tracing::warn!(
                    records = left,
                    "partitions are given back with unfinished records, which will be read again"
                );
            }
            let offsets = uncommitted(&partitions, &topics);
            if !offsets.is_empty() {
                let last = commit_at_last(&requests, coordinator, &identity, offsets);
                match tokio::time::timeout(FAREWELL, last).await {
                    Ok(Ok(())) => {}
                    Ok(Err(failure)) => {
                        tracing::warn!(%failure, "the last commit failed, records will be read again");
                    }
                    Err(_) => tracing::warn!("the last commit was not answered, records may be read again"),
                }
            }
            shared.partitions.lock().clear();
            let _ = myself.cast(Message::Event(Event::Revoked { attempt }));
        });
        self.giving_back = Some(Owned(work));
    }

    fn commit(&mut self, myself: &ActorRef<Message>) {
        let (Some(assigned), Some(coordinator), false) =
            (&self.assigned, self.group.coordinator(), self.committing)
        else {
            return;
        };
        let offsets = uncommitted(&assigned.partitions, &self.topics);
        if offsets.is_empty() {
            return;
        }
        self.committing = true;
        let requests = self.requests.clone();
        let (attempt, identity) = (self.group.attempt(), self.group.identity());
        let myself = myself.clone();
        tokio::spawn(async move {
            let (taken, result) = requests.commit(coordinator, identity, offsets).await;
            let _ = myself.cast(Message::Committed { attempt, taken, result });
        });
    }
}

/// Runs a request and brings its answer back as an event.
fn ask(myself: &ActorRef<Message>, request: impl Future<Output = Event> + Send + 'static) {
    let myself = myself.clone();
    tokio::spawn(async move {
        let event = request.await;
        let _ = myself.cast(Message::Event(event));
    });
}

/// Commits with the patience of one who will not come back. The caller bounds the time.
async fn commit_at_last(
    requests: &Requests,
    coordinator: Option<i32>,
    identity: &super::group::Identity,
    mut offsets: Vec<Commit>,
) -> Result<(), Failure> {
    let mut coordinator = coordinator;
    let mut failures = 0;
    loop {
        let known = match coordinator {
            Some(known) => Ok(known),
            None => requests.find_coordinator().await.map(|(broker, _)| broker),
        };
        let failure = match known {
            Ok(known) => {
                let (taken, result) = requests.commit(known, identity.clone(), offsets.clone()).await;
                offsets.retain(|offset| !taken.contains(offset));
                match result {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                }
            }
            Err(failure) => failure,
        };
        let again = match &failure {
            Failure::Lost(_) => true,
            Failure::Code(ResponseError::RebalanceInProgress) => false,
            Failure::Code(code) => code.is_retriable(),
        };
        if !again {
            return Err(failure);
        }
        coordinator = None;
        failures += 1;
        tokio::time::sleep(requests.client.options().reconnect_backoff.jittered(failures)).await;
    }
}

/// Where to begin in `partitions`, after what the group committed in all partitions of their topics.
async fn positions(
    requests: &Requests,
    coordinator: i32,
    partitions: Vec<TopicPartition>,
    topics: &Mutex<Topics>,
) -> Result<Vec<(TopicPartition, Position)>, Failure> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let names: BTreeSet<&str> = partitions.iter().map(|partition| &*partition.topic).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let views = requests.client.metadata(Some(&names), false).await?;
    let all: BTreeSet<TopicPartition> = {
        let mut topics = topics.lock();
        for view in &views {
            topics.learn(view);
        }
        let every = |view: &Arc<TopicView>| {
            let count = topics.count(&view.name).unwrap_or(0);
            let name = view.name.clone();
            (0..count).map(move |partition| TopicPartition::new(name.clone(), partition))
        };
        views.iter().flat_map(every).chain(partitions.iter().cloned()).collect()
    };
    let committed = requests.committed(coordinator, all).await?;
    Ok(topics.lock().positions(&partitions, &committed))
}

/// How many partitions the topics have; none for those that Kafka does not know. Of our own topics no fewer
/// than we know of already.
async fn count(
    client: &Client,
    topics: BTreeSet<Arc<str>>,
    known: &Mutex<Topics>,
) -> Result<HashMap<Arc<str>, i32>, Failure> {
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    let views = client.metadata(Some(&names), false).await?;
    let known = known.lock();
    let count = |view: &Arc<TopicView>| {
        let told = i32::try_from(view.partitions.len()).unwrap_or(i32::MAX);
        (view.name.clone(), known.count(&view.name).map_or(told, |known| told.max(known)))
    };
    Ok(views.iter().map(count).collect())
}

async fn every(interval: Duration, to: ActorRef<Message>) {
    let mut ticks =
        tokio::time::interval_at(Instant::now() + interval, interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if to.cast(Message::Commit).is_err() {
            return;
        }
    }
}

/// Looks now and then at how many partitions our topics have.
async fn look_at_topics(client: Client, options: Arc<ConsumerOptions>, to: ActorRef<Message>) {
    let names: Vec<&str> = options.topics.iter().map(|topic| &**topic).collect();
    loop {
        let mut pause = options.topic_refresh_interval;
        let looked = client.metadata(Some(&names), false).await;
        // A failure shows in the member's own requests, too.
        if looked.is_err() {
            pause = pause.min(RETRY_LOOK_AFTER);
        }
        if let Ok(views) = looked
            && to.cast(Message::Topics(views)).is_err()
        {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}
