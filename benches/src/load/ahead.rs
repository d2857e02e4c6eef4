//! Keeps publishers from running away from subscribers.
//!
//! Where a publication is acknowledged late or not at all (QoS 0), nothing but a full socket slows a
//! publisher down; what a broker cannot hold meanwhile it drops, and a figure per delivered message is then
//! about dropping. So publishers look here first, all of them at one account.
//!
//! Invariant: what a broker loses is written off after [`STALL`] without an arrival, so that publishers
//! never wait for ever.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Meter;

/// Without an arrival for this long, what is on its way counts as lost.
const STALL: Duration = Duration::from_millis(500);

/// The account of what was sent and what arrived.
#[derive(Debug)]
pub struct Ahead {
    limit: u64,
    /// Subscribers that each publication goes to.
    fan: u64,
    arrivals: Arc<Meter>,
    sent: AtomicU64,
    written_off: AtomicU64,
    last: Mutex<(u64, Instant)>,
}

impl Ahead {
    /// Lets all publishers together be `limit` publications ahead of the arrivals counted in `arrivals`,
    /// where each publication goes to `fan` subscribers.
    pub fn new(limit: u64, fan: u64, arrivals: Arc<Meter>) -> Self {
        let (arrived, now) = (arrivals.count(), Instant::now());
        Self {
            limit,
            fan: fan.max(1),
            sent: AtomicU64::new(arrived / fan.max(1)),
            arrivals,
            written_off: AtomicU64::new(0),
            last: Mutex::new((arrived, now)),
        }
    }

    /// Takes the permission to send one publication, if there is one.
    pub fn may_send(&self, now: Instant) -> bool {
        let arrived = self.arrivals.count();
        let sent = self.sent.load(Ordering::Relaxed);
        let through = arrived / self.fan + self.written_off.load(Ordering::Relaxed);
        if sent.saturating_sub(through) < self.limit {
            self.sent.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != arrived {
            *last = (arrived, now);
        } else if now.duration_since(last.1) >= STALL {
            self.written_off.fetch_add(sent.saturating_sub(through), Ordering::Relaxed);
            last.1 = now;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_wait_for_arrivals_and_write_off_what_never_comes() {
        let meter = Arc::new(Meter::default());
        let ahead = Ahead::new(10, 2, Arc::clone(&meter));
        let start = Instant::now();
        assert!((0..10).all(|_| ahead.may_send(start)));
        assert!(!ahead.may_send(start));
        // One publication is through when both subscribers have it.
        meter.record([1]);
        assert!(!ahead.may_send(start));
        meter.record([1]);
        assert!(ahead.may_send(start));
        assert!(!ahead.may_send(start));
        assert!(!ahead.may_send(start + STALL / 2), "something arrived since");
        assert!(!ahead.may_send(start + STALL), "the one that finds the stall looks again");
        assert!(ahead.may_send(start + STALL * 2), "what was on its way is written off");
    }
}
