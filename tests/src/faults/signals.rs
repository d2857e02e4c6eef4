//! What everybody in an episode knows: the time, whether to go on, which life the node is in, and what was done to
//! whom when.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// See the module.
pub struct Signals {
    began: Instant,
    mqtt: String,
    life: AtomicU32,
    last_call: AtomicBool,
    over: AtomicBool,
    calm: AtomicBool,
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
