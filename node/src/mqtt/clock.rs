//! The clocks of the MQTT side.
//!
//! | clock | for |
//! |---|---|
//! | wall clock | what leaves the process: timestamps, and times in files |
//! | steady clock | message expiry: the wall clock of the start, and from there on the monotonic clock |
//! | monotonic clock | deadlines |
//!
//! A message neither expires nor outlives its interval because the wall clock is set. Only over a restart
//! there is nothing but the wall clock to tell how old a stored message is.
//!
//! Tests can put all of them forward for their own thread.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Where the steady clock begins.
static START: LazyLock<(Instant, i64)> = LazyLock::new(|| (Instant::now(), read_wall_clock()));

fn read_wall_clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The wall clock: milliseconds since the Unix epoch.
pub(crate) fn unix_millis() -> i64 {
    let now = read_wall_clock();
    #[cfg(test)]
    let now = now + i64::try_from(tests::ahead().as_millis()).unwrap();
    now
}

/// The monotonic clock.
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    return Instant::now() + tests::ahead();
    #[cfg(not(test))]
    Instant::now()
}

/// The steady clock at `now`, milliseconds.
pub(crate) fn steady_millis(now: Instant) -> i64 {
    let (start, wall) = *START;
    let since = now.saturating_duration_since(start);
    wall.saturating_add(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The steady clock, milliseconds.
pub(crate) fn steady_now() -> i64 {
    steady_millis(now())
}

/// The moment on the steady clock at which the wall clock showed `wall`. A time in the future counts as now.
pub(crate) fn steady_at(wall: i64) -> i64 {
    moment(wall, unix_millis(), steady_now())
}

fn moment(wall: i64, wall_now: i64, steady_now: i64) -> i64 {
    let age = wall_now.saturating_sub(wall).max(0);
    steady_now.saturating_sub(age)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    thread_local! {
        static AHEAD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    /// How far the clocks of this thread were put forward.
    pub(crate) fn ahead() -> Duration {
        AHEAD.get()
    }

    /// Puts the clocks of this thread this far ahead of the real ones.
    pub(crate) fn set_ahead(ahead: Duration) {
        AHEAD.set(ahead);
    }

    #[test]
    fn the_steady_clock_runs_with_the_monotonic_one() {
        steady_now();
        let now = now();
        let later = steady_millis(now + Duration::from_secs(7));
        assert_eq!(later - steady_millis(now), 7000);
    }

    #[test]
    fn an_age_is_taken_over_from_the_wall_clock_and_never_negative() {
        assert_eq!(moment(990, 1000, 1000), 990, "no jump");
        assert_eq!(moment(990, 1000, 50), 40, "the wall clock was set forward since the start");
        assert_eq!(moment(990, 1000, 9000), 8990, "and back");
        assert_eq!(moment(5000, 1000, 1000), 1000, "stored before the wall clock was set back");
    }
}
