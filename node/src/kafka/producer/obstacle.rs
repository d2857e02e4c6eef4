//! Obstacles of a topic producer, and how they are shown: an outage of what has worked before is
//! "connecting", since it passes by itself; what needs a mend, and what has never worked, is
//! "disconnected".

use std::sync::Arc;

use super::topic_producer::Status;
use super::verdict::{Verdict, verdict};
use crate::kafka::client::Error;

/// One such thing.
#[derive(Debug, Clone)]
pub struct Obstacle {
    reason: Arc<str>,
    passes: bool,
}

impl Obstacle {
    /// Something is away for the moment, and is waited for.
    pub(super) fn outage(reason: impl Into<Arc<str>>) -> Self {
        Self { reason: reason.into(), passes: true }
    }

    /// Something that Kafka, or the configuration, does not allow.
    pub(super) fn refusal(reason: impl Into<Arc<str>>) -> Self {
        Self { reason: reason.into(), passes: false }
    }

    /// A connection or a request failed.
    pub(super) fn failure(error: &Error) -> Self {
        Self { reason: error.to_string().into(), passes: error.is_outage() }
    }

    /// How it is shown.
    pub(super) fn status(&self, worked_before: bool) -> Status {
        let reason = self.reason.to_string();
        if self.passes && worked_before {
            Status::Connecting { reason }
        } else {
            Status::Disconnected { reason }
        }
    }
}

/// Whether an error code of a produce response tells of a leader or topic that is away, rather than of a
/// refusal.
pub(super) fn is_outage(code: i16) -> bool {
    matches!(verdict(code), Verdict::Retry { refresh: true, .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::client::Address;

    #[test]
    fn only_an_outage_of_what_has_worked_before_is_waited_for() {
        let refused = || Error::Refused { address: Address::new("h", 9092) };
        let login = || Error::Authentication {
            address: Address::new("h", 9092),
            mechanism: "PLAIN",
            reason: "no".into(),
        };
        for (error, passes) in [
            (refused(), true),
            (login(), false),
            (Error::NoBroker([refused(), refused()].into()), true),
            (Error::NoBroker([refused(), login()].into()), false),
            (Error::NoBroker([].into()), false),
        ] {
            let obstacle = Obstacle::failure(&error);
            let shown = |worked| matches!(obstacle.status(worked), Status::Connecting { .. });
            assert_eq!((shown(false), shown(true)), (false, passes), "{error}");
        }
        assert!([3, 5, 6].into_iter().all(is_outage) && ![19, 29, 31].into_iter().any(is_outage));
    }
}
