//! Shared subscriptions (MQTT-5.0 4.8.2): of the sessions that subscribe with one share name and filter, one
//! gets each message.
//!
//! The choice is made per message and touches nothing but a counter: routes hold a picture of the members, a
//! change of the members makes routes stale like every other subscription. Connected members come first;
//! where none is connected everything goes to the oldest session, so that its order is kept.
//!
//! Fate of a message whose member does not take it:
//!
//! | | |
//! |---|---|
//! | queue of the member full | another connected member with room; if there is none, [`QueueFull`](super::QueueFull) decides |
//! | connection lost, session stays | the member keeps it and gets it when it comes back |
//! | session ended, QoS 1 unacknowledged, or any that was not sent | another member |
//! | session ended, QoS 2 sent | discarded (MQTT-4.8.2-5) |
//! | refused by the client, reason 0x80 or above | discarded (MQTT-4.8.2-6) |
//!
//! Invariants:
//! * A message is with one member at a time.
//! * With N connected members that keep up, round robin gives each one message of N, whichever clients
//!   publish them.

use std::{
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hashbrown::DefaultHashBuilder;
use parking_lot::Mutex;

use super::{publication::Delivery, route::RouteSubscriber};
use crate::flow::WakeList;

/// Who of a group gets a message (`mqtt.shared_subscription_strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ShareStrategy {
    /// One after the other.
    RoundRobin,
    /// Anyone.
    Random,
    /// One, as long as it is connected.
    Sticky,
    /// The same one for messages of the same publisher.
    HashClientId,
    /// The same one for messages of the same topic.
    HashTopic,
}

impl ShareStrategy {
    pub(crate) fn from_u8(value: u8) -> Self {
        let all = [Self::RoundRobin, Self::Random, Self::Sticky, Self::HashClientId, Self::HashTopic];
        all.into_iter().find(|one| *one as u8 == value).unwrap_or(Self::RoundRobin)
    }
}

/// Tries that are cheaper than to look at all members: most are connected in most groups.
const TRIES: u64 = 8;

/// One share name on one filter.
pub(crate) struct Group {
    name: Box<str>,
    members: Mutex<Members>,
    /// Messages so far.
    next: AtomicU64,
    /// The session that sticky chose last; 0 is none.
    sticky: AtomicU64,
    hasher: DefaultHashBuilder,
}

#[derive(Default)]
struct Members {
    /// By session, the oldest first.
    all: Vec<RouteSubscriber>,
    /// Form of the group that routes hold, made on demand.
    picture: Option<Arc<[RouteSubscriber]>>,
}

/// Criteria for one message.
pub(crate) struct Choice<'a> {
    pub(crate) strategy: ShareStrategy,
    pub(crate) publisher: &'a str,
    pub(crate) topic: &'a str,
}

impl Group {
    pub(crate) fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            members: Mutex::default(),
            next: AtomicU64::new(0),
            sticky: AtomicU64::new(0),
            hasher: DefaultHashBuilder::default(),
        })
    }

    /// Forgets whose turn it is, as the end of the process does.
    #[cfg(test)]
    pub(crate) fn forget_turns(&self) {
        self.next.store(0, Ordering::Relaxed);
        self.sticky.store(0, Ordering::Relaxed);
    }

    /// Share name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A session subscribes; true where it is new here.
    pub(crate) fn join(&self, member: RouteSubscriber) -> bool {
        let mut members = self.members.lock();
        members.picture = None;
        match members.all.binary_search_by_key(&member.inbox.id(), |known| known.inbox.id()) {
            Ok(at) => {
                if let Some(known) = members.all.get_mut(at) {
                    *known = member;
                }
                false
            }
            Err(at) => {
                members.all.insert(at, member);
                true
            }
        }
    }

    /// A session goes; false where it was not here.
    pub(crate) fn leave(&self, session: u64) -> bool {
        let mut members = self.members.lock();
        let Ok(at) = members.all.binary_search_by_key(&session, |known| known.inbox.id()) else {
            return false;
        };
        members.picture = None;
        members.all.remove(at);
        true
    }

    /// True where a member is connected.
    pub(crate) fn has_connected(&self) -> bool {
        self.members.lock().all.iter().any(|member| member.inbox.is_connected())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.lock().all.is_empty()
    }

    /// The members now.
    pub(crate) fn picture(&self) -> Arc<[RouteSubscriber]> {
        let mut members = self.members.lock();
        if members.picture.is_none() {
            members.picture = Some(members.all.iter().cloned().collect());
        }
        members.picture.clone().unwrap_or_default()
    }

    /// Who of `members` gets the next message: its place.
    pub(crate) fn choose(&self, members: &[RouteSubscriber], choice: &Choice<'_>) -> Option<usize> {
        let connected = |at: usize| members.get(at).is_some_and(|member| member.inbox.is_connected());
        let base = match choice.strategy {
            ShareStrategy::RoundRobin => self.next.fetch_add(1, Ordering::Relaxed),
            ShareStrategy::Random => mix(self.next.fetch_add(1, Ordering::Relaxed), 0),
            ShareStrategy::HashClientId => self.hasher.hash_one(choice.publisher),
            ShareStrategy::HashTopic => self.hasher.hash_one(choice.topic),
            ShareStrategy::Sticky => {
                let known = self.sticky.load(Ordering::Relaxed);
                let at = members.binary_search_by_key(&known, |member| member.inbox.id()).ok();
                if let Some(at) = at.filter(|&at| connected(at)) {
                    return Some(at);
                }
                let at =
                    (0..members.len()).find(|&at| connected(at)).or((!members.is_empty()).then_some(0))?;
                let session = members.get(at).map_or(0, |member| member.inbox.id());
                self.sticky.store(session, Ordering::Relaxed);
                return Some(at);
            }
        };
        let count = members.len() as u64;
        if count == 0 {
            return None;
        }
        let first = (base % count) as usize;
        if connected(first) {
            return Some(first);
        }
        // Not the next one behind it: it would get the share of all before it that are away.
        let tried =
            (1..=TRIES).map(|attempt| (mix(base, attempt) % count) as usize).find(|&at| connected(at));
        let all = || (0..members.len()).find(|&at| connected(at));
        tried.or_else(all).or(Some(0))
    }

    /// Finds another member for a delivery that `from` has not taken: a connected one with room, then one
    /// that is away. It comes back where there is none.
    pub(crate) fn pass_on(
        &self,
        mut delivery: Delivery,
        from: u64,
        wakes: &mut WakeList,
    ) -> Result<(), Delivery> {
        let members = self.picture();
        let count = members.len();
        if count == 0 {
            return Err(delivery);
        }
        let start = (self.next.fetch_add(1, Ordering::Relaxed) % count as u64) as usize;
        let others =
            || members.iter().cycle().skip(start).take(count).filter(|member| member.inbox.id() != from);
        for wants_connected in [true, false] {
            for member in others().filter(|member| member.inbox.is_connected() == wants_connected) {
                let mut hand_over = delivery.hand_over.take();
                let own = member.delivery(&delivery.publication, hand_over.clone());
                match member.inbox.offer_if_room(own) {
                    Some(wake) => {
                        if wake {
                            wakes.push(member.inbox.clone());
                        }
                        return Ok(());
                    }
                    None => delivery.hand_over = hand_over.take(),
                }
            }
        }
        Err(delivery)
    }
}

/// Spreads numbers that follow each other over all numbers.
fn mix(number: u64, attempt: u64) -> u64 {
    let mut mixed = number.wrapping_add(attempt.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
#[path = "share_tests.rs"]
mod tests;
