//! Whether a topic still is what it was: metadata that lacks partitions may come from a broker that has not
//! learned of all yet, and a topic that was deleted and made again is another one under the same name.
//!
//! Invariants:
//! * Partitions are gone when a later view says again that the topic has another id (KIP-516), or when views
//!   have lacked them for [`PATIENCE`] without a break. An older Kafka tells no ids: then it is time alone.
//! * Ids have no order, and a broker that lags behind may name an old one: an id that was left is not
//!   believed again, unless nothing else was heard of for [`PATIENCE`].

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// For so long partitions may be missing in what brokers tell.
pub(super) const PATIENCE: Duration = Duration::from_mins(5);

/// Former ids that are remembered.
const FORMER: usize = 8;

/// No id.
const NONE: [u8; 16] = [0; 16];

/// Meaning of a view of the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It is about a former topic of this name: not to be used.
    Stale,
    /// As before, or with more partitions.
    Whole,
    /// Partitions are missing, or the topic may be another one: worth another look soon.
    Doubtful,
    /// The partitions from its count on are gone.
    Cut {
        /// The topic was made anew.
        anew: bool,
    },
}

/// Observations of a topic.
#[derive(Debug, Default)]
pub(super) struct Incarnation {
    id: [u8; 16],
    former: VecDeque<[u8; 16]>,
    /// Since when nothing but a former id was seen.
    stale_since: Option<Instant>,
    /// Another id, and when it was seen for the first time.
    other: Option<([u8; 16], Instant)>,
    /// Since when partitions have been missing.
    missing_since: Option<Instant>,
}

impl Incarnation {
    /// Looks at a view of `count` partitions where there were `known`.
    pub(super) fn look(&mut self, id: [u8; 16], count: usize, known: usize, as_of: Instant) -> Look {
        if self.id == NONE || known == 0 {
            self.id = id;
        }
        if id != NONE && id != self.id {
            return self.look_at_other(id, count, known, as_of);
        }
        (self.other, self.stale_since) = (None, None);
        if count >= known {
            self.missing_since = None;
            return Look::Whole;
        }
        let since = *self.missing_since.get_or_insert(as_of);
        if as_of.saturating_duration_since(since) < PATIENCE {
            return Look::Doubtful;
        }
        self.missing_since = None;
        Look::Cut { anew: false }
    }

    fn look_at_other(&mut self, id: [u8; 16], count: usize, known: usize, as_of: Instant) -> Look {
        if self.former.contains(&id) {
            let since = *self.stale_since.get_or_insert(as_of);
            if as_of.saturating_duration_since(since) < PATIENCE {
                return Look::Stale;
            }
        } else {
            match self.other {
                Some((other, at)) if other == id && at < as_of => {}
                _ => {
                    self.other = Some((id, as_of));
                    return Look::Doubtful;
                }
            }
        }
        self.former.retain(|former| *former != id);
        self.former.push_back(std::mem::replace(&mut self.id, id));
        if self.former.len() > FORMER {
            self.former.pop_front();
        }
        (self.other, self.stale_since, self.missing_since) = (None, None, None);
        if count < known { Look::Cut { anew: true } } else { Look::Whole }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 16] = [1; 16];
    const B: [u8; 16] = [2; 16];
    const CUT: Look = Look::Cut { anew: true };

    /// Looks at (seconds, id, count), where 4 partitions are known.
    fn looks(views: &[(u64, [u8; 16], usize)]) -> Vec<Look> {
        let (mut topic, start) = (Incarnation::default(), Instant::now());
        let mut known = 0;
        let look = |(at, id, count): &(u64, [u8; 16], usize)| {
            let look = topic.look(*id, *count, known, start + Duration::from_secs(*at));
            if matches!(look, Look::Cut { .. }) || (look == Look::Whole && *count > known) {
                known = *count;
            }
            look
        };
        views.iter().map(look).collect()
    }

    #[test]
    fn missing_partitions_are_gone_after_a_while_without_a_break() {
        use Look::{Cut, Doubtful, Whole};
        for id in [A, NONE] {
            let views =
                [(0, id, 4), (1, id, 3), (2, id, 3), (290, id, 4), (300, id, 2), (599, id, 3), (600, id, 3)];
            assert_eq!(
                looks(&views),
                [Whole, Doubtful, Doubtful, Whole, Doubtful, Doubtful, Cut { anew: false }]
            );
        }
    }

    #[test]
    fn a_topic_made_anew_is_believed_at_the_second_look() {
        use Look::{Doubtful, Whole};
        assert_eq!(looks(&[(0, A, 4), (1, B, 3), (2, B, 3), (3, B, 3)]), [Whole, Doubtful, CUT, Whole]);
        // With as many partitions, or more.
        assert_eq!(looks(&[(0, A, 4), (1, B, 4), (2, B, 5)]), [Whole, Doubtful, Whole]);
        // One answer alone, by whomever.
        assert_eq!(looks(&[(0, A, 4), (1, B, 3), (2, A, 4), (3, B, 3)]), [Whole, Doubtful, Whole, Doubtful]);
    }

    #[test]
    fn a_broker_that_lags_behind_does_not_bring_a_former_topic_back() {
        use Look::{Doubtful, Stale, Whole};
        let mut views = vec![(0, A, 4), (1, B, 4), (2, B, 4), (3, A, 2), (4, A, 2), (200, B, 4), (201, A, 2)];
        let mut wanted = vec![Whole, Doubtful, Whole, Stale, Stale, Whole, Stale];
        assert_eq!(looks(&views), wanted);
        // Where nothing else is heard of it was the other one that was wrong.
        views.extend([(400, A, 2), (502, A, 2)]);
        wanted.extend([Stale, CUT]);
        assert_eq!(looks(&views), wanted);
    }
}
