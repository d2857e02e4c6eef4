//! What everybody in an episode knows: the time, whether to go on, which life the node is in, which bridges
//! are disabled when, and what was done to whom when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may happen to the messages of a bridge because of a fault that it had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leniency {
    /// A QoS 2 message may be there once for each life of the node that it was sent to.
    pub may_double_by_death: bool,
    /// What waited in one buffer may come behind what went through another one.
    pub may_reorder: bool,
    /// Its counters have begun anew, and records whose publishers were told may count as failed.
    pub may_recount: bool,
}

/// A time in which a bridge is disabled; it is not over where there is no second moment.
type Off = (Duration, Option<Duration>);

/// See the module.
pub struct Signals {
    began: Instant,
    mqtt: String,
    life: AtomicU32,
    last_call: AtomicBool,
    over: AtomicBool,
    calm: AtomicBool,
    homecoming: AtomicBool,
    absentees: AtomicUsize,
    added_topic: AtomicBool,
    without_session: AtomicUsize,
    ending: AtomicBool,
    off: Mutex<BTreeMap<&'static str, Vec<Off>>>,
    leniency: Mutex<BTreeMap<&'static str, Leniency>>,
    log: Mutex<Vec<(Duration, String)>>,
}

impl Signals {
    /// At the beginning, with the node's address for devices.
    pub fn new(mqtt: &str) -> Self {
        Self {
            began: Instant::now(),
            mqtt: mqtt.to_owned(),
            life: AtomicU32::new(1),
            last_call: AtomicBool::new(false),
            over: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            homecoming: AtomicBool::new(false),
            absentees: AtomicUsize::new(0),
            added_topic: AtomicBool::new(false),
            without_session: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
            off: Mutex::default(),
            leniency: Mutex::default(),
            log: Mutex::default(),
        }
    }

    /// Since the beginning.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Where devices connect.
    pub fn mqtt(&self) -> &str {
        &self.mqtt
    }

    /// How often the node was started.
    pub fn life(&self) -> u32 {
        self.life.load(Ordering::SeqCst)
    }

    /// The node has ended, and is about to be started again.
    pub fn next_life(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
    }

    /// No more faults are begun.
    pub fn call_calm(&self) {
        self.calm.store(true, Ordering::SeqCst);
    }

    /// See [`Self::call_calm`].
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }

    /// Devices begin nothing new and stay until all is done.
    pub fn call_last(&self) {
        self.last_call.store(true, Ordering::SeqCst);
    }

    /// See [`Self::call_last`].
    pub fn is_last_call(&self) -> bool {
        self.last_call.load(Ordering::SeqCst)
    }

    /// Subscribers that stayed away come back.
    pub fn call_home(&self) {
        self.homecoming.store(true, Ordering::SeqCst);
    }

    /// See [`Self::call_home`].
    pub fn is_homecoming(&self) -> bool {
        self.homecoming.load(Ordering::SeqCst)
    }

    /// The consumer bridge has got another topic.
    pub fn add_topic(&self) {
        self.added_topic.store(true, Ordering::SeqCst);
    }

    /// See [`Self::add_topic`].
    pub fn has_added_topic(&self) -> bool {
        self.added_topic.load(Ordering::SeqCst)
    }

    /// Whether devices that end their sessions now and then do it now, and rest until the node has died.
    pub fn end_sessions(&self, now: bool) {
        self.ending.store(now, Ordering::SeqCst);
    }

    /// See [`Self::end_sessions`].
    pub fn sessions_end(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// A device has ended its session and rests without one.
    pub fn session_ended(&self) {
        self.without_session.fetch_add(1, Ordering::SeqCst);
    }

    /// It has rested.
    pub fn has_rested(&self) {
        self.without_session.fetch_sub(1, Ordering::SeqCst);
    }

    /// Devices that rest without a session.
    pub fn without_session(&self) -> usize {
        self.without_session.load(Ordering::SeqCst)
    }

    /// A subscriber that will stay away when calm is called has connected.
    pub fn absentee_came(&self) {
        self.absentees.fetch_add(1, Ordering::SeqCst);
    }

    /// It has left.
    pub fn absentee_left(&self) {
        self.absentees.fetch_sub(1, Ordering::SeqCst);
    }

    /// Subscribers connected now that will stay away when calm is called.
    pub fn absentees(&self) -> usize {
        self.absentees.load(Ordering::SeqCst)
    }

    /// From now on this bridge may be disabled.
    pub fn switch_off(&self, bridge: &'static str) {
        let mut off = self.off.lock().unwrap_or_else(PoisonError::into_inner);
        off.entry(bridge).or_default().push((self.now(), None));
    }

    /// From now on this bridge is enabled for certain.
    pub fn switch_on(&self, bridge: &'static str) {
        let mut off = self.off.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, end)) = off.entry(bridge).or_default().last_mut() {
            *end = Some(self.now());
        }
    }

    /// When a bridge was disabled.
    pub fn off(&self, bridge: &str) -> Vec<(Duration, Duration)> {
        let off = self.off.lock().unwrap_or_else(PoisonError::into_inner);
        let times = off.get(bridge).map(Vec::as_slice).unwrap_or_default();
        times.iter().map(|&(from, to)| (from, to.unwrap_or(Duration::MAX))).collect()
    }

    /// Something was done to a bridge that allows its messages more.
    pub fn allow(&self, bridge: &'static str, more: Leniency) {
        let mut leniency = self.leniency.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = leniency.entry(bridge).or_default();
        allowed.may_double_by_death |= more.may_double_by_death;
        allowed.may_reorder |= more.may_reorder;
        allowed.may_recount |= more.may_recount;
    }

    /// See [`Self::allow`].
    pub fn leniency(&self, bridge: &str) -> Leniency {
        let leniency = self.leniency.lock().unwrap_or_else(PoisonError::into_inner);
        leniency.get(bridge).copied().unwrap_or_default()
    }

    /// Devices give up.
    pub fn call_over(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// See [`Self::call_over`].
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Writes down what is done.
    pub fn log(&self, what: impl Into<String>) {
        let entry = (self.now(), what.into());
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    /// Everything that was done, a line each.
    pub fn schedule(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<String> =
            log.iter().map(|(at, what)| format!("  {:8.3} s  {what}", at.as_secs_f64())).collect();
        lines.join("\n")
    }

    /// Sleeps as long, or until calm is called.
    pub fn doze(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_calm() && Instant::now() < until {
            std::thread::sleep(
                Duration::from_millis(10).min(until.saturating_duration_since(Instant::now())),
            );
        }
    }
}
