//! Messages a second, from counters that are looked at every [`EVERY`].

use std::collections::VecDeque;
use std::sync::Weak;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::entry::Handle;
use super::service::BridgeId;

/// Between two looks.
pub const EVERY: Duration = Duration::from_secs(5);

/// Looks that are kept: five minutes.
const KEPT: usize = 61;

/// Thousandths of messages a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Between the last two looks.
    pub now: u64,
    /// Over the last minute.
    pub last_1m: u64,
    /// Over the last five minutes.
    pub last_5m: u64,
    /// The highest [`Self::now`] so far.
    pub max: u64,
}

/// Follows one counter.
#[derive(Debug, Default)]
pub struct RateMeter {
    samples: VecDeque<(Instant, u64)>,
    max: u64,
}

impl RateMeter {
    /// Of a counter that begins now, with nothing: what comes before the first look is in the rates, too.
    pub fn since(now: Instant) -> Self {
        Self { samples: VecDeque::from([(now, 0)]), max: 0 }
    }

    /// A look at the counter. One that went back has been reset: everything begins anew.
    pub fn sample(&mut self, now: Instant, count: u64) {
        if self.samples.back().is_some_and(|(_, before)| *before > count) {
            *self = Self::default();
        }
        if self.samples.len() == KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back((now, count));
        self.max = self.max.max(self.over(EVERY));
    }

    /// Current rates.
    pub fn rates(&self) -> Rates {
        Rates {
            now: self.over(EVERY),
            last_1m: self.over(Duration::from_mins(1)),
            last_5m: self.over(Duration::from_mins(5)),
            max: self.max,
        }
    }

    /// Over the time up to the last look, or as much of it as has been seen.
    fn over(&self, time: Duration) -> u64 {
        let Some((last, count)) = self.samples.back() else { return 0 };
        // Looks come a little late or early.
        let begin = last.checked_sub(time + EVERY / 2);
        let first = self.samples.iter().find(|(at, _)| begin.is_none_or(|begin| *at >= begin));
        let Some((since, before)) = first else { return 0 };
        let millis = last.duration_since(*since).as_millis();
        let thousandths = u128::from(count - before) * 1_000_000;
        thousandths.checked_div(millis).and_then(|rate| u64::try_from(rate).ok()).unwrap_or(0)
    }
}

/// Looks at all bridges as long as there are any.
pub(super) async fn keep(
    entries: Weak<RwLock<std::collections::BTreeMap<BridgeId, std::sync::Arc<Handle>>>>,
) {
    let mut interval = tokio::time::interval(EVERY);
    loop {
        interval.tick().await;
        let Some(entries) = entries.upgrade() else { return };
        let now = Instant::now();
        for handle in entries.read().values() {
            handle.sample(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_their_time_and_a_reset_begins_anew() {
        let (start, mut meter) = (Instant::now(), RateMeter::default());
        assert_eq!(meter.rates(), Rates::default());
        // 100 a second for five minutes, then nothing for one.
        for look in 0..=60_u32 {
            meter.sample(start + EVERY * look, u64::from(look) * 500);
        }
        let busy = Rates { now: 100_000, last_1m: 100_000, last_5m: 100_000, max: 100_000 };
        assert_eq!(meter.rates(), busy);
        for look in 61..=72_u32 {
            meter.sample(start + EVERY * look, 60 * 500);
        }
        assert_eq!(meter.rates(), Rates { now: 0, last_1m: 0, last_5m: 80_000, max: 100_000 });
        meter.sample(start + EVERY * 73, 7);
        assert_eq!(meter.rates(), Rates::default());
    }
}
