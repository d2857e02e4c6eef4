//! The clocks. The wall clock is for what leaves the process: timestamps and expiry. Deadlines use the monotonic one.
//!
//! Tests can put both forward for their own thread.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    #[cfg(test)]
    let now = now + i64::try_from(tests::ahead().as_millis()).unwrap();
    now
}

/// Now on the monotonic clock.
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    return Instant::now() + tests::ahead();
    #[cfg(not(test))]
    Instant::now()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{cell::Cell, time::Duration};

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
}
