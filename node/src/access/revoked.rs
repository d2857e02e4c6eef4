//! Users whose connections were ended lately, for clients that were on their way in at that moment.
//!
//! A CONNECT notes the [count](Revoked::count) before its password is checked, and asks once it is in whether
//! its user was among those who came since. So a user that is deleted while its password is being checked
//! does not stay.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

/// Names that are kept. A CONNECT during which more users change is refused.
const KEPT: usize = 1024;

/// Users that were changed or deleted a short time ago.
#[derive(Default)]
pub(super) struct Revoked {
    count: AtomicU64,
    /// The last ones, the newest last.
    names: Mutex<VecDeque<Box<str>>>,
}

impl Revoked {
    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn add(&self, user: &str) {
        let mut names = self.names.lock();
        if names.len() == KEPT {
            names.pop_front();
        }
        names.push_back(user.into());
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the user is among those who came after the first `count`, or may be.
    pub(super) fn since(&self, count: u64, user: &str) -> bool {
        if self.count() == count {
            return false;
        }
        let names = self.names.lock();
        // Under the lock: names and count are of one moment.
        let Ok(new) = usize::try_from(self.count().saturating_sub(count)) else { return true };
        new > names.len() || names.iter().rev().take(new).any(|name| **name == *user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_on_the_way_in_hears_of_it_and_one_who_came_later_does_not() {
        let revoked = Revoked::default();
        let before = revoked.count();
        assert!(!revoked.since(before, "ann"));
        revoked.add("ann");
        assert!(revoked.since(before, "ann") && !revoked.since(before, "bob"));
        assert!(!revoked.since(revoked.count(), "ann"));
        let middle = revoked.count();
        for number in 0..KEPT {
            revoked.add(&number.to_string());
        }
        assert!(!revoked.since(middle, "ann") && revoked.since(middle, "0"));
        assert!(revoked.since(before, "bob"), "nobody remembers");
    }
}
