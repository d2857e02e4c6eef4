//! The topics of a bridge whose topic is a template: a producer for each, opened when its first record comes.
//!
//! Invariants:
//! * At most [`DynamicOptions::max_topics`] producers are open, not counting as many again whose topic takes
//!   nothing for the moment: one topic that waits does not take the place of another. One that has had
//!   nothing to do for [`DynamicOptions::idle_timeout`] is closed; earlier, where another topic needs its
//!   place. Only empty ones are closed, so that the order of a topic's records outlasts its producer.
//! * What all of them hold together stays within one [`Budget`]. Without room or place a record with a ticket
//!   is refused until there is some, and one without is dropped and counted.
//! * A topic that Kafka does not know, or that we may not write to, in two answers in a row is not asked for
//!   again for [`UNUSABLE_FOR`]; its records are refused at once meanwhile ([`NoTopic`]).
//! * Books outlast their producers: [`DynamicTopics::ledger`] is the sum of all there ever were.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use causeway_protocol::kafka::batch::Record;
use causeway_protocol::mqtt::ReasonCode;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::budget::Budget;
use super::dispatcher::Dispatchers;
use super::obstacle::Obstacle;
use super::route::Routes;
use super::topic_producer::{
    NoTopic, PartitionRow, Restored, Status, StopReport, TopicProducer, TopicProducerHandle,
    TopicProducerOptions,
};
use crate::flow::ledger::Ledger;
use crate::flow::{Accepted, Outcome, Ticket, WakeList};
use crate::kafka::client::Client;

/// How long a topic stays unknown, or forbidden, without another look.
pub const UNUSABLE_FOR: Duration = Duration::from_secs(30);

/// How often idle producers are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Sweeps after which a topic that takes nothing gives its place away: longer than a leader election.
const STALLED_AFTER: u8 = 3;

/// How often Kafka is asked whether it is there, while all is well.
const PROBE: Duration = Duration::from_secs(15);

/// Settings.
#[derive(Debug, Clone)]
pub struct DynamicOptions {
    /// Those of each producer; its topic does not matter.
    pub producer: TopicProducerOptions,
    /// Most producers open at a time.
    pub max_topics: usize,
    /// A producer that has had nothing to do for so long is closed.
    pub idle_timeout: Duration,
    /// Most bytes held for all topics together.
    pub memory_limit: usize,
}

pub(super) struct Open {
    pub(super) producer: TopicProducerHandle,
    /// Since when a sweep has found it empty and with nothing new.
    idle_since: Option<Instant>,
    /// Records it had taken, and written, by the last sweep.
    matched: u64,
    written: u64,
    /// Sweeps in a row at which something waited, in trouble, and nothing had been written since the one
    /// before.
    stuck: u8,
}

impl Open {
    /// Its topic takes nothing for the moment.
    fn is_stalled(&self) -> bool {
        self.stuck >= STALLED_AFTER
    }

    fn is_empty(&self) -> bool {
        let ledger = self.producer.ledger();
        ledger.queuing + ledger.inflight == 0
    }
}

/// Topic producers of the topics that messages name, started on demand.
pub struct DynamicTopics {
    dispatchers: Arc<Dispatchers>,
    options: DynamicOptions,
    budget: Arc<Budget>,
    runtime: tokio::runtime::Handle,
    pub(super) open: RwLock<HashMap<Box<str>, Open>>,
    /// Books of producers that are closed, and of what never reached one.
    past: Mutex<Ledger>,
    status: Mutex<Status>,
    sweeper: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// Changes under the write lock of `open`.
    closed: AtomicBool,
}

impl DynamicTopics {
    /// No topic is open yet. Must be called within a tokio runtime.
    pub fn start(dispatchers: Arc<Dispatchers>, options: DynamicOptions) -> Arc<Self> {
        let budget = Budget::new(options.memory_limit);
        let client = dispatchers.client().clone();
        let topics = Arc::new(Self {
            dispatchers,
            options,
            budget,
            runtime: tokio::runtime::Handle::current(),
            open: RwLock::default(),
            past: Mutex::default(),
            status: Mutex::new(Status::Connecting { reason: "connecting to Kafka".to_owned() }),
            sweeper: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        let sweeper = tokio::spawn(sweep(Arc::downgrade(&topics), client));
        *topics.sweeper.lock() = Some(sweeper);
        topics
    }

    /// Opens a topic with what `restore` finds for it in the disk buffer, however many are open. Before the
    /// first record.
    ///
    /// # Errors
    /// That of `restore`: then it is not opened.
    pub fn restore<E>(
        &self,
        topic: &str,
        restore: impl FnOnce(&Routes) -> Result<Restored, E>,
    ) -> Result<(), E> {
        let new = self.new_topic_with(topic, restore)?;
        self.open.write().insert(topic.into(), new);
        Ok(())
    }

    /// Offers a record for a topic, whose name is legal: see [`TopicProducerHandle::append`].
    pub fn append(
        &self,
        topic: &str,
        record: &Record<'_>,
        ticket: Option<&Ticket>,
        wakes: &mut WakeList,
    ) -> Result<Accepted, NoTopic> {
        // Under the lock: no producer is closed between the look and the append.
        if let Some(known) = offer(&self.open.read(), topic, record, ticket, wakes) {
            return known;
        }
        let mut open = self.open.write();
        if self.closed.load(Ordering::Relaxed) {
            return Ok(Accepted::Done(Outcome::Failed(ReasonCode::UnspecifiedError)));
        }
        if let Some(known) = offer(&open, topic, record, ticket, wakes) {
            return known;
        }
        if let Some(unusable) = open.get(topic) {
            if let Some((_, why)) = unusable.producer.unusable().filter(|_| !unusable.is_empty()) {
                return Err(why);
            }
            self.close(&mut open, topic);
        }
        if self.is_full(&open) && !self.make_place(&mut open) {
            if ticket.is_some() {
                self.budget.refuse();
                return Ok(Accepted::Full(self.budget.room().clone()));
            }
            let mut past = self.past.lock();
            past.matched += 1;
            past.dropped_queue_full += 1;
            return Ok(Accepted::Done(Outcome::Failed(ReasonCode::QuotaExceeded)));
        }
        let new = self.new_topic(topic);
        let accepted = new.producer.append(record, ticket, wakes);
        open.insert(topic.into(), new);
        Ok(accepted)
    }

    /// A producer for one more topic.
    pub(super) fn new_topic(&self, topic: &str) -> Open {
        let Ok(open) = self.new_topic_with(topic, |_| Ok::<_, Infallible>(Restored::default()));
        open
    }

    fn new_topic_with<E>(
        &self,
        topic: &str,
        restore: impl FnOnce(&Routes) -> Result<Restored, E>,
    ) -> Result<Open, E> {
        let options = TopicProducerOptions {
            topic: topic.into(),
            budget: Some(self.budget.clone()),
            unusable_is_final: true,
            ..self.options.producer.clone()
        };
        let _runtime = self.runtime.enter();
        let producer = TopicProducer::start_restored(self.dispatchers.clone(), options, restore)?;
        Ok(Open { producer, idle_since: None, matched: 0, written: 0, stuck: 0 })
    }

    /// Whether there is no place for another topic.
    fn is_full(&self, open: &HashMap<Box<str>, Open>) -> bool {
        let most = self.options.max_topics;
        open.len() >= most && {
            let stalled = open.values().filter(|open| open.is_stalled()).count();
            open.len() - stalled.min(most) >= most
        }
    }

    /// Closes a producer whose topic is of no use, or else the one that has been idle for longest; false
    /// where all have something to do.
    fn make_place(&self, open: &mut HashMap<Box<str>, Open>) -> bool {
        let idle = open.iter().filter(|(_, open)| open.is_empty());
        let idle = idle.filter_map(|(topic, open)| {
            let usable = open.producer.unusable().is_none();
            Some((usable, open.idle_since.filter(|_| usable), topic))
                .filter(|(usable, since, _)| !usable || since.is_some())
        });
        let Some(topic) = idle.min().map(|(_, _, topic)| topic.clone()) else { return false };
        self.close(open, &topic);
        true
    }

    /// Closes an empty producer; its books stay.
    fn close(&self, open: &mut HashMap<Box<str>, Open>, topic: &str) {
        if let Some(open) = open.remove(topic) {
            *self.past.lock() += open.producer.ledger();
        }
    }

    /// Takes a topic's producer out; its books are missing until [`Self::remember`].
    pub(super) fn take(&self, topic: &str) -> Option<Open> {
        self.open.write().remove(topic)
    }

    /// Keeps the books of a producer that is gone.
    pub(super) fn remember(&self, ledger: &Ledger) {
        *self.past.lock() += *ledger;
    }

    /// The books of all topics there ever were.
    pub fn ledger(&self) -> Ledger {
        let open = self.open.read();
        let mut sum = *self.past.lock();
        for open in open.values() {
            sum += open.producer.ledger();
        }
        sum
    }

    /// Topics that are open now, with their partitions.
    pub fn partitions(&self) -> Vec<(String, PartitionRow)> {
        let open = self.open.read();
        let rows = open.iter().flat_map(|(topic, open)| {
            open.producer.partitions().into_iter().map(|row| (topic.to_string(), row))
        });
        let mut rows: Vec<_> = rows.collect();
        rows.sort_by(|(a, of_a), (b, of_b)| (a, of_a.partition).cmp(&(b, of_b.partition)));
        rows
    }

    /// Bytes held for all topics.
    pub fn memory(&self) -> usize {
        self.budget.used()
    }

    /// Producers open now.
    pub fn open(&self) -> usize {
        self.open.read().len()
    }

    /// Whether Kafka is there. What single topics lack shows here only while none is well.
    pub fn status(&self) -> Status {
        self.status.lock().clone()
    }

    /// As [`TopicProducerHandle::note_failure`], of any topic.
    pub fn note_failure(&self, actor: ractor::ActorId, reason: &str) -> bool {
        self.open.read().values().any(|open| open.producer.note_failure(actor, reason))
    }

    /// As [`TopicProducerHandle::revive`], of all topics.
    pub fn revive(&self) {
        self.open.read().values().for_each(|open| open.producer.revive());
    }

    /// As [`TopicProducerHandle::revive_orphan`], of all topics.
    pub fn revive_orphans(&self) {
        self.open.read().values().for_each(|open| open.producer.revive_orphan());
    }

    /// Stops all producers, at the same time: see [`TopicProducerHandle::stop`].
    pub async fn stop(&self, drain: Duration) -> StopReport {
        if let Some(sweeper) = self.sweeper.lock().take() {
            sweeper.abort();
        }
        let open = {
            let mut open = self.open.write();
            self.closed.store(true, Ordering::Relaxed);
            std::mem::take(&mut *open)
        };
        let stopping = open.values().map(|open| open.producer.stop(drain));
        let reports = futures_util::future::join_all(stopping).await;
        for open in open.values() {
            *self.past.lock() += open.producer.ledger();
        }
        StopReport { given_up: reports.iter().map(|report| report.given_up).sum() }
    }

    /// Looks for idle producers and closes those that have been for long enough, and for those that do not
    /// move. The trouble of one that is in any.
    fn sweep(&self) -> Troubles {
        let now = Instant::now();
        let mut all = self.open.write();
        let (mut closing, mut some, mut shown, mut well) = (Vec::new(), false, None, false);
        for (topic, open) in &mut *all {
            let ledger = open.producer.ledger();
            let is_idle = ledger.queuing + ledger.inflight == 0 && ledger.matched == open.matched;
            let unusable = open.producer.unusable();
            let status = open.producer.status().borrow().clone();
            let in_trouble = unusable.is_none() && status != Status::Connected;
            let moves = ledger.success != open.written || ledger.queuing + ledger.inflight == 0;
            open.stuck = if in_trouble && !moves { open.stuck.saturating_add(1) } else { 0 };
            (open.matched, open.written) = (ledger.matched, ledger.success);
            open.idle_since = is_idle.then(|| open.idle_since.unwrap_or(now));
            some |= in_trouble;
            well |= status == Status::Connected;
            if open.is_stalled() || (in_trouble && is_idle) {
                shown.get_or_insert(status);
            }
            let over = match unusable {
                Some((since, _)) => now.duration_since(since) >= UNUSABLE_FOR,
                None => open.idle_since.is_some_and(|since| now - since >= self.options.idle_timeout),
            };
            if is_idle && over {
                closing.push(topic.clone());
            }
        }
        for topic in closing {
            tracing::debug!(topic = &*topic, "an idle topic is closed");
            self.close(&mut all, &topic);
        }
        // One that is idle, or does not move, has a place to give: who waits for one tries again.
        drop(all);
        if self.budget.take_refused() {
            self.budget.room().notify_one();
        }
        self.budget.room().notify_waiters();
        Troubles { some, of_all: shown.filter(|_| !well) }
    }
}

/// Findings of a sweep.
struct Troubles {
    /// A topic is in trouble.
    some: bool,
    /// How one of them is doing, where none is well.
    of_all: Option<Status>,
}

impl std::fmt::Debug for DynamicTopics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DynamicTopics").field("open", &self.open()).finish_non_exhaustive()
    }
}

impl Drop for DynamicTopics {
    fn drop(&mut self) {
        if let Some(sweeper) = self.sweeper.lock().take() {
            sweeper.abort();
        }
    }
}

/// `None` where the topic is not open, or unknown for so long that it is worth another look.
fn offer(
    open: &HashMap<Box<str>, Open>,
    topic: &str,
    record: &Record<'_>,
    ticket: Option<&Ticket>,
    wakes: &mut WakeList,
) -> Option<Result<Accepted, NoTopic>> {
    let open = open.get(topic)?;
    if let Some((since, why)) = open.producer.unusable() {
        return (since.elapsed() < UNUSABLE_FOR).then_some(Err(why));
    }
    let accepted = open.producer.append(record, ticket, wakes);
    if let Accepted::Done(Outcome::Failed(reason)) = accepted
        && let Some((_, why)) = open.producer.unusable()
        && reason == why.reason()
    {
        // It has turned out this moment.
        return Some(Err(why));
    }
    Some(Ok(accepted))
}

/// Closes idle producers and watches whether Kafka is there.
async fn sweep(topics: Weak<DynamicTopics>, client: Client) {
    let mut asked: Option<Instant> = None;
    let (mut healthy, mut worked) = (false, false);
    loop {
        let troubles = match topics.upgrade() {
            Some(topics) => topics.sweep(),
            None => return,
        };
        if troubles.some || !healthy || asked.is_none_or(|asked| asked.elapsed() >= PROBE) {
            asked = Some(Instant::now());
            let answer = client.metadata(Some(&[]), false).await;
            let status = match answer {
                Ok(_) => troubles.of_all.unwrap_or(Status::Connected),
                Err(error) => Obstacle::failure(&error).status(worked),
            };
            healthy = status == Status::Connected;
            worked |= healthy;
            let Some(topics) = topics.upgrade() else { return };
            let mut shown = topics.status.lock();
            if *shown != status {
                tracing::info!(?status, "kafka producer of many topics");
                *shown = status;
            }
        }
        tokio::time::sleep(SWEEP).await;
    }
}
