//! Rates: a number in a span of time, as token buckets.
//!
//! Nothing is dropped for a rate: a client over it waits. A bucket lets one through while it holds anything
//! and may go into debt for it (a packet larger than what is left), so the average is kept whatever the
//! sizes are.

use std::time::Duration;

use tokio::time::Instant;

/// So many in so much time, such as 1000 in a second. As many may come at once after a pause that long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many, at least 1.
    pub count: u64,
    /// In which time, at least a millisecond.
    pub per: Duration,
}

impl Rate {
    /// So many a second.
    pub const fn per_second(count: u64) -> Self {
        Self { count, per: Duration::from_secs(1) }
    }

    fn time_for(self, count: u64) -> Duration {
        let nanos = u128::from(count) * self.per.as_nanos() / u128::from(self.count.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A token bucket of one [`Rate`]: it holds one interval's worth and begins full. What is in it follows from
/// one moment (the generic cell rate algorithm, ITU-T I.371), so that nothing has to fill it.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    rate: Rate,
    /// When it will be full again.
    full_at: Instant,
}

impl TokenBucket {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// When the next one may come; not later than `now`: at once.
    pub(crate) fn ready_at(&self, now: Instant) -> Instant {
        let debt = self.full_at.saturating_duration_since(now) + self.rate.time_for(1);
        now + debt.saturating_sub(self.rate.per)
    }

    /// Takes `count` out.
    pub(crate) fn spend(&mut self, count: u64, now: Instant) {
        let from = self.full_at.max(now);
        // A year of debt is as good as more.
        let time = self.rate.time_for(count).min(Duration::from_hours(365 * 24));
        self.full_at = from + time;
    }
}

/// Limits of one client's rates.
#[derive(Debug)]
pub(crate) struct ClientRates {
    messages: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
    /// Until when nothing is read from the client because it is over its rates.
    paused: Option<Instant>,
}

/// Which rate a client has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limited {
    Messages,
    Bytes,
}

impl ClientRates {
    /// None where neither is limited.
    pub(crate) fn new(messages: Option<Rate>, bytes: Option<Rate>, now: Instant) -> Option<Box<Self>> {
        (messages.is_some() || bytes.is_some()).then(|| {
            let bucket = |rate: Option<Rate>| rate.map(|rate| TokenBucket::new(rate, now));
            Box::new(Self { messages: bucket(messages), bytes: bucket(bytes), paused: None })
        })
    }

    /// Until when the client's next packet has to wait, and for which rate.
    pub(crate) fn wait(&self, now: Instant) -> Option<(Instant, Limited)> {
        let until = |bucket: &Option<TokenBucket>, limited| {
            let ready = bucket.as_ref()?.ready_at(now);
            (ready > now).then_some((ready, limited))
        };
        let messages = until(&self.messages, Limited::Messages);
        let bytes = until(&self.bytes, Limited::Bytes);
        [messages, bytes].into_iter().flatten().max_by_key(|(at, _)| *at)
    }

    /// Begins a pause where the client's next packet has to wait, and names the rate.
    pub(crate) fn pause(&mut self, now: Instant) -> Option<Limited> {
        let (until, limited) = self.wait(now)?;
        self.paused = Some(until);
        Some(limited)
    }

    /// Until when nothing is read from the client, if it is so.
    pub(crate) fn paused(&self) -> Option<Instant> {
        self.paused
    }

    /// Ends the pause where its time is over; true where it did.
    pub(crate) fn end_pause(&mut self, now: Instant) -> bool {
        let over = self.paused.is_some_and(|until| now >= until);
        if over {
            self.paused = None;
        }
        over
    }

    /// Ends the pause: the connection ends.
    pub(crate) fn forget_pause(&mut self) {
        self.paused = None;
    }

    /// Counts a packet of `bytes`, a PUBLISH or another.
    pub(crate) fn count(&mut self, publish: bool, bytes: usize, now: Instant) {
        if let Some(bucket) = self.messages.as_mut().filter(|_| publish) {
            bucket.spend(1, now);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(bytes as u64, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn an_interval_s_worth_comes_at_once_and_then_one_by_one() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(Rate::per_second(10), now);
        for _ in 0..10 {
            assert!(bucket.ready_at(now) <= now);
            bucket.spend(1, now);
        }
        let tenth = Duration::from_millis(100);
        assert_eq!(bucket.ready_at(now), now + tenth);
        bucket.spend(1, now + tenth);
        assert_eq!(bucket.ready_at(now + tenth), now + 2 * tenth);
        // A long pause fills it, and no more than that.
        let later = now + Duration::from_hours(1);
        for _ in 0..10 {
            assert!(bucket.ready_at(later) <= later);
            bucket.spend(1, later);
        }
        assert!(bucket.ready_at(later) > later);
    }

    #[test]
    fn a_debt_is_paid_before_the_next_one_comes() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(Rate::per_second(1000), now);
        bucket.spend(5000, now);
        assert_eq!(bucket.ready_at(now), now + Duration::from_millis(4001));
        let mut bucket = TokenBucket::new(Rate { count: 1, per: Duration::from_millis(1) }, now);
        bucket.spend(u64::MAX, now);
        assert!(bucket.ready_at(now) > now + Duration::from_hours(24));
    }

    #[test]
    fn the_average_is_the_rate_whatever_the_sizes() {
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let start = Instant::now();
        let rate = Rate { count: random.random_range(1..100_000), per: Duration::from_secs(2) };
        let mut bucket = TokenBucket::new(rate, start);
        let (mut now, mut spent) = (start, 0);
        for _ in 0..10_000 {
            now = bucket.ready_at(now);
            let size = random.random_range(1..=rate.count * 2);
            bucket.spend(size, now);
            spent += size;
        }
        let allowed = (now - start).as_secs_f64() * rate.count as f64 / 2.0;
        let (most, least) = (allowed + 3.0 * rate.count as f64 + 1.0, allowed - 1.0);
        assert!((least..=most).contains(&(spent as f64)), "seed {seed}: {spent} spent, {allowed} allowed");
    }

    #[test]
    fn a_client_waits_for_the_rate_that_takes_longer() {
        let now = Instant::now();
        assert!(ClientRates::new(None, None, now).is_none());
        let rates = ClientRates::new(Some(Rate::per_second(1)), Some(Rate::per_second(10)), now);
        let mut rates = rates.unwrap();
        assert_eq!(rates.wait(now), None);
        rates.count(false, 5, now);
        assert_eq!(rates.wait(now), None);
        rates.count(true, 1, now);
        assert_eq!(rates.wait(now), Some((now + Duration::from_secs(1), Limited::Messages)));
        rates.count(false, 24, now);
        assert_eq!(rates.wait(now), Some((now + Duration::from_millis(2100), Limited::Bytes)));
    }
}
