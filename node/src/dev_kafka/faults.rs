//! Faults on command: what makes the development Kafka a test instrument.
//!
//! A rule names requests (API, and where it has them topic and partition, and broker), what happens to them,
//! and how often. A rule counts requests, not partitions: within one request it applies to all that match.
//! Rules are tried in the order in which they were given; a rule that is used up is gone. Without rules a
//! request pays one atomic load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use kafka_protocol::messages::ApiKey;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long `pause_broker` and `resume_broker` wait for the listener to follow.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Which requests a fault meets.
#[derive(Debug, Clone)]
pub struct Match {
    api: ApiKey,
    topic: Option<String>,
    partition: Option<i32>,
    broker: Option<i32>,
}

impl Match {
    /// Requests of this API.
    pub fn api(api: ApiKey) -> Self {
        Self { api, topic: None, partition: None, broker: None }
    }

    /// Only those about this topic. APIs without topics (groups, producer ids) never match then.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Only those about this partition.
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Only those that reach this broker.
    pub fn broker(mut self, broker: i32) -> Self {
        self.broker = Some(broker);
        self
    }

    fn takes(&self, topic: &str, partition: i32) -> bool {
        self.topic.as_ref().is_none_or(|wanted| wanted == topic)
            && self.partition.is_none_or(|wanted| wanted == partition)
    }
}

impl From<ApiKey> for Match {
    fn from(api: ApiKey) -> Self {
        Self::api(api)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    DropBefore,
    DropAfter,
    Delay(Duration),
    Error(i16),
    Hide,
}

#[derive(Debug)]
struct Rule {
    id: u64,
    matches: Match,
    action: Action,
    left: usize,
}

/// Wanted state of a broker's listener; a new `generation` closes the connections of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    pub(super) paused: bool,
    pub(super) stopped: bool,
    pub(super) generation: u64,
}

/// The switch of one broker's listener.
#[derive(Debug)]
pub(super) struct Switch {
    pub(super) wanted: watch::Sender<Wanted>,
    /// Whether the listener accepts, told by its task.
    pub(super) listening: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Rate {
    bytes_per_second: u64,
    free_at: Option<Instant>,
    fixed: Duration,
}

#[derive(Debug)]
struct Inner {
    active: AtomicUsize,
    next_id: AtomicU64,
    rules: Mutex<Vec<Rule>>,
    rate: Mutex<Rate>,
    switches: Vec<Switch>,
}

/// A fault that could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such broker.
    #[error("broker {0} does not exist, brokers count from 1")]
    Broker(i32),
    /// No such partition.
    #[error("partition {topic}-{partition} does not exist")]
    Partition {
        /// Topic that was named.
        topic: String,
        /// Partition that was named.
        partition: i32,
    },
    /// The listener did not follow in time, for instance as its port was taken meanwhile.
    #[error("the listener of broker {0} did not switch within {SWITCH_TIMEOUT:?}")]
    Listener(i32),
}

/// Sets and clears faults; clones share them.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Inner>);

impl Faults {
    pub(super) fn new(brokers: usize) -> Self {
        let switch =
            |_| Switch { wanted: watch::channel(Wanted::default()).0, listening: watch::channel(true).0 };
        Self(Arc::new(Inner {
            active: AtomicUsize::new(0),
            next_id: AtomicU64::new(0),
            rules: Mutex::default(),
            rate: Mutex::default(),
            switches: (0..brokers).map(switch).collect(),
        }))
    }

    fn add(&self, matches: Match, action: Action, requests: usize) {
        if requests == 0 {
            return;
        }
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let mut rules = self.0.rules.lock();
        rules.push(Rule { id, matches, action, left: requests });
        self.0.active.store(rules.len(), Ordering::Release);
    }

    /// Closes the connection of each of the next `requests` matching requests before anything is done: a lost
    /// request.
    pub fn drop_before(&self, matches: impl Into<Match>, requests: usize) {
        self.add(matches.into(), Action::DropBefore, requests);
    }

    /// Does what each of the next `requests` matching requests asks for, then closes the connection instead
    /// of answering: a lost answer.
    pub fn drop_after(&self, matches: impl Into<Match>, requests: usize) {
        self.add(matches.into(), Action::DropAfter, requests);
    }

    /// Holds back the answers of the next `requests` matching requests by `delay`; what they ask for is done
    /// at once.
    pub fn delay(&self, matches: impl Into<Match>, delay: Duration, requests: usize) {
        self.add(matches.into(), Action::Delay(delay), requests);
    }

    /// Answers the next `requests` matching requests with Kafka's error `code`, for each matching partition,
    /// and does nothing for them.
    pub fn error(&self, matches: impl Into<Match>, code: i16, requests: usize) {
        self.add(matches.into(), Action::Error(code), requests);
    }

    /// Leaves matching partitions out of the next `requests` answers about metadata, as a broker may whose
    /// own metadata is not complete.
    pub fn hide(&self, matches: impl Into<Match>, requests: usize) {
        self.add(matches.into(), Action::Hide, requests);
    }

    /// Rules that are not used up yet.
    pub fn pending(&self) -> usize {
        self.0.active.load(Ordering::Acquire)
    }

    /// Forgets all rules and throttles. Paused brokers stay paused.
    pub fn clear(&self) {
        let mut rules = self.0.rules.lock();
        rules.clear();
        self.0.active.store(0, Ordering::Release);
        *self.0.rate.lock() = Rate::default();
    }

    /// Limits produce and fetch together to this many bytes a second, as a quota does: answers come at once
    /// with `throttle_time_ms`, and the connection is not read for that long. `None` lifts the limit.
    pub fn throttle(&self, bytes_per_second: Option<u64>) {
        let mut rate = self.0.rate.lock();
        rate.bytes_per_second = bytes_per_second.unwrap_or(0);
        rate.free_at = None;
    }

    /// Every produce and fetch answer carries this `throttle_time_ms`, and the connection is not read for
    /// that long. Zero ends it.
    pub fn throttle_time(&self, time: Duration) {
        self.0.rate.lock().fixed = time;
    }

    /// Time for which a connection that moved `bytes` is to be muted.
    pub(super) fn throttled(&self, bytes: usize) -> Duration {
        let mut rate = self.0.rate.lock();
        let mut time = rate.fixed;
        if rate.bytes_per_second > 0 {
            let now = Instant::now();
            let cost = Duration::from_secs_f64(bytes as f64 / rate.bytes_per_second as f64);
            let free_at = rate.free_at.unwrap_or(now).max(now) + cost;
            rate.free_at = Some(free_at);
            time = time.max(free_at - now);
        }
        time
    }

    /// Closes all connections of all brokers; new ones are welcome.
    pub fn close_connections(&self) {
        for switch in &self.0.switches {
            switch.wanted.send_modify(|wanted| wanted.generation += 1);
        }
    }

    /// Stops the listener of a broker and closes its connections: connecting is refused until
    /// `resume_broker`. Its partitions keep it as leader.
    pub async fn pause_broker(&self, broker: i32) -> Result<(), Error> {
        self.switch_to(broker, true).await
    }

    /// Lets a paused broker listen again, on the same port.
    pub async fn resume_broker(&self, broker: i32) -> Result<(), Error> {
        self.switch_to(broker, false).await
    }

    async fn switch_to(&self, broker: i32, paused: bool) -> Result<(), Error> {
        let switch = self.switch(broker).ok_or(Error::Broker(broker))?;
        switch.wanted.send_modify(|wanted| {
            wanted.paused = paused;
            wanted.generation += u64::from(paused);
        });
        let mut listening = switch.listening.subscribe();
        let followed =
            tokio::time::timeout(SWITCH_TIMEOUT, listening.wait_for(|listening| *listening != paused)).await;
        followed.ok().and_then(Result::ok).map(|_| ()).ok_or(Error::Listener(broker))
    }

    pub(super) fn switch(&self, broker: i32) -> Option<&Switch> {
        self.0.switches.get(usize::try_from(broker).ok()?.checked_sub(1)?)
    }

    pub(super) fn stop(&self) {
        for switch in &self.0.switches {
            switch.wanted.send_modify(|wanted| wanted.stopped = true);
        }
    }

    /// The faults that one request to `broker` may meet.
    pub(super) fn plan(&self, api: ApiKey, broker: i32) -> Plan {
        let mut plan = Plan { faults: None, candidates: SmallVec::new(), used: SmallVec::new() };
        if self.pending() == 0 {
            return plan;
        }
        let rules = self.0.rules.lock();
        let meets = |rule: &&Rule| {
            rule.matches.api == api && rule.matches.broker.is_none_or(|wanted| wanted == broker)
        };
        plan.candidates = rules.iter().filter(meets).map(|rule| rule.id).collect();
        if !plan.candidates.is_empty() {
            plan.faults = Some(self.clone());
        }
        plan
    }
}

/// The faults of one request.
#[derive(Debug)]
pub(super) struct Plan {
    faults: Option<Faults>,
    candidates: SmallVec<[u64; 4]>,
    /// Rules of which this request has taken its one count, with what they do.
    used: SmallVec<[(u64, Match, Action); 2]>,
}

impl Plan {
    /// Whether no rule can meet this request.
    pub(super) fn is_empty(&self) -> bool {
        self.faults.is_none()
    }

    fn find(&mut self, topic: &str, partition: i32, wanted: fn(Action) -> bool) -> Option<Action> {
        let faults = self.faults.as_ref()?;
        let known =
            self.used.iter().find(|(_, matches, action)| wanted(*action) && matches.takes(topic, partition));
        if let Some((_, _, action)) = known {
            return Some(*action);
        }
        let mut rules = faults.0.rules.lock();
        let at = rules.iter().position(|rule| {
            let candidate =
                self.candidates.contains(&rule.id) && !self.used.iter().any(|(id, _, _)| *id == rule.id);
            candidate && wanted(rule.action) && rule.matches.takes(topic, partition)
        })?;
        let rule = rules.get_mut(at)?;
        rule.left -= 1;
        self.used.push((rule.id, rule.matches.clone(), rule.action));
        let action = rule.action;
        if rule.left == 0 {
            rules.remove(at);
            faults.0.active.store(rules.len(), Ordering::Release);
        }
        Some(action)
    }

    /// The error to answer for this partition; `("", -1)` stands for a request without partitions.
    pub(super) fn error(&mut self, topic: &str, partition: i32) -> Option<i16> {
        match self.find(topic, partition, |action| matches!(action, Action::Error(_)))? {
            Action::Error(code) => Some(code),
            _ => None,
        }
    }

    /// Whether this partition is to be missing in the answer.
    pub(super) fn hides(&mut self, topic: &str, partition: i32) -> bool {
        self.find(topic, partition, |action| action == Action::Hide).is_some()
    }

    /// Whether the connection is to be closed before the request is served.
    pub(super) fn drops_before(&mut self, topic: &str, partition: i32) -> bool {
        self.find(topic, partition, |action| action == Action::DropBefore).is_some()
    }

    /// Whether the connection is to be closed in place of the answer.
    pub(super) fn drops_after(&mut self, topic: &str, partition: i32) -> bool {
        self.find(topic, partition, |action| action == Action::DropAfter).is_some()
    }

    /// How long the answer is held back.
    pub(super) fn delay(&mut self, topic: &str, partition: i32) -> Option<Duration> {
        match self.find(topic, partition, |action| matches!(action, Action::Delay(_)))? {
            Action::Delay(delay) => Some(delay),
            _ => None,
        }
    }
}
