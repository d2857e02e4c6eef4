//! Whether a connected client goes on while others wait for it.
//!
//! A Kafka consumer and a will with QoS 1 or 2 wait for every session that their message goes to. A session
//! whose client takes nothing for `mqtt.slow_subscriber_timeout` meanwhile is not waited for any longer: its
//! queue counts as full, `mqtt.queue_full` applies, and what was held for it is let go. It is waited for
//! again once it goes on.
//!
//! Going on means that the client took bytes of a publication, or acknowledged one. PINGREQ is not enough.
//!
//! A pure state machine: its connection says what happens and when, and looks at the moments of
//! [`Watch::deadline`].

use std::time::Duration;

use tokio::time::Instant;

/// Longest time between two looks at a session that others may wait for.
const LOOK: Duration = Duration::from_secs(1);

/// Shortest time between two looks: one who waits asks again within half of it.
const SHORTEST_LOOK: Duration = Duration::from_millis(500);

/// State of the watch over one connection.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Next look; none while the session holds nothing that others could wait for.
    look: Option<Instant>,
    /// Since when others wait and the client takes nothing.
    since: Option<Instant>,
    /// The client is not waited for.
    overdue: bool,
}

/// Result of a look.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing waits, or the client has just gone on.
    Fine,
    /// Others wait, and the client has taken nothing since then.
    Still(Instant),
    /// It has been so for the timeout: the client is not waited for any longer.
    Overdue(Instant),
}

impl Watch {
    /// Time of the next look.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.look
    }

    /// True while progress matters.
    pub(crate) fn is_on(&self) -> bool {
        self.look.is_some() || self.overdue
    }

    /// Since when others wait and the client takes nothing.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The session holds something that others may wait for; `waited`: they do.
    pub(crate) fn begin(&mut self, now: Instant, timeout: Option<Duration>, waited: bool) {
        if self.look.is_none() {
            self.look = Some(now + interval(timeout));
            self.since = waited.then_some(now);
        }
    }

    /// The client took or acknowledged something; true where it is waited for again from now on.
    pub(crate) fn went_on(&mut self, now: Instant) -> bool {
        if self.since.is_some() {
            self.since = Some(now);
        }
        std::mem::take(&mut self.overdue)
    }

    /// Looks; `holds`: others may wait for something that the session has, `waited`: they do.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        timeout: Option<Duration>,
        holds: bool,
        waited: bool,
    ) -> Standing {
        self.look = (holds || waited).then(|| now + interval(timeout));
        if !waited {
            self.since = None;
            return Standing::Fine;
        }
        let since = *self.since.get_or_insert(now);
        if timeout.is_none_or(|timeout| now < since + timeout) {
            return Standing::Still(since);
        }
        *self = Self { overdue: true, ..Self::default() };
        Standing::Overdue(since)
    }
}

fn interval(timeout: Option<Duration>) -> Duration {
    timeout.map_or(LOOK, |timeout| timeout.clamp(SHORTEST_LOOK, LOOK))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(3));

    #[test]
    fn a_client_that_takes_nothing_for_the_timeout_is_overdue_once() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        assert!(!watch.is_on());
        watch.begin(start, TIMEOUT, true);
        for second in 1..3 {
            let now = start + Duration::from_secs(second);
            assert_eq!(watch.deadline(), Some(now));
            assert_eq!(watch.look(now, TIMEOUT, true, true), Standing::Still(start));
        }
        let now = start + Duration::from_secs(3);
        assert_eq!(watch.look(now, TIMEOUT, true, true), Standing::Overdue(start));
        assert!(watch.is_on() && watch.deadline().is_none());
        assert!(watch.went_on(now), "waited for again");
        assert!(!watch.went_on(now) && !watch.is_on());
    }

    #[test]
    fn time_counts_from_the_last_progress_and_only_while_others_wait() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        watch.begin(start, TIMEOUT, false);
        for second in 1..10 {
            assert_eq!(watch.look(at(second), TIMEOUT, true, false), Standing::Fine, "nobody waits");
        }
        assert_eq!(watch.look(at(10), TIMEOUT, true, true), Standing::Still(at(10)));
        assert!(!watch.went_on(at(12)));
        assert_eq!(watch.look(at(14), TIMEOUT, true, true), Standing::Still(at(12)));
        assert_eq!(watch.look(at(15), TIMEOUT, false, true), Standing::Overdue(at(12)));
    }

    #[test]
    fn without_a_timeout_it_waits_for_ever_and_looks() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        watch.begin(start, None, true);
        let later = start + Duration::from_hours(1);
        assert_eq!(watch.look(later, None, true, true), Standing::Still(start));
        assert_eq!(watch.look(later, None, false, false), Standing::Fine);
        assert!(!watch.is_on());
    }
}
