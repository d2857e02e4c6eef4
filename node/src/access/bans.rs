//! Addresses that fail to log in too often: slowed down first, then banned for a time.
//!
//! Failures are counted by address, IPv6 by its /64, since the owner of one address there has them all. A
//! failure is answered late, the more failures before it the later; with [`Limits::max_failures`] of them
//! within [`Limits::window`] the address is banned, and its connections are closed before anything is read.
//!
//! Invariants:
//! * The table holds at most [`ADDRESSES`] addresses. When it is full those whose time is over go, then the
//!   one whose window began first; a ban is pushed out by nothing but its end.
//! * While no address is banned, asking costs one relaxed load.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Addresses with failures that are remembered; each takes about 64 bytes.
const ADDRESSES: usize = 100_000;

/// The longest delay of an answer.
const SLOWEST: Duration = Duration::from_secs(5);

/// When an address is slowed down and banned.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Failures within the window that lead to a ban; 0: no bans.
    pub max_failures: u32,
    /// How long failures are added up.
    pub window: Duration,
    /// How long a ban lasts.
    pub ban: Duration,
    /// How much later each further failure is answered.
    pub delay: Duration,
}

#[derive(Debug)]
struct Entry {
    failures: u32,
    /// When the window began; with a ban, when the ban ends.
    since: Instant,
    banned: bool,
}

/// A ban, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// Address, or network of IPv6.
    pub address: String,
    /// How long it lasts.
    pub remaining: Duration,
    /// Failures that led to it.
    pub failures: u32,
}

/// Consequence of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consequence {
    /// The answer waits this long.
    Delay(Duration),
    /// The address is banned from now on.
    Banned,
}

/// Failures and bans by address.
pub(super) struct Bans {
    limits: Limits,
    entries: Mutex<HashMap<IpAddr, Entry>>,
    banned: AtomicUsize,
    capacity: usize,
}

/// Key under which failures of an address are counted.
fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address @ IpAddr::V4(_) => address,
    }
}

fn shown(key: IpAddr) -> String {
    if key.is_ipv6() { format!("{key}/64") } else { key.to_string() }
}

impl Bans {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, entries: Mutex::default(), banned: AtomicUsize::new(0), capacity: ADDRESSES }
    }

    /// Whether connections from `address` are to be closed.
    pub(super) fn is_banned(&self, address: IpAddr, now: Instant) -> bool {
        if self.banned.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let key = key(address);
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get(&key) else { return false };
        if !entry.banned {
            return false;
        }
        if now < entry.since {
            return true;
        }
        entries.remove(&key);
        self.banned.fetch_sub(1, Ordering::Relaxed);
        false
    }

    /// A client from `address` failed to log in.
    pub(super) fn failed(&self, address: IpAddr, now: Instant) -> Consequence {
        let Limits { max_failures, window, ban, delay } = self.limits;
        if max_failures == 0 && delay.is_zero() {
            return Consequence::Delay(Duration::ZERO);
        }
        let key = key(address);
        let mut entries = self.entries.lock();
        if !entries.contains_key(&key) {
            self.make_room(&mut entries, now);
        }
        let entry = entries.entry(key).or_insert(Entry { failures: 0, since: now, banned: false });
        if entry.banned {
            if now < entry.since {
                return Consequence::Banned;
            }
            self.banned.fetch_sub(1, Ordering::Relaxed);
            *entry = Entry { failures: 0, since: now, banned: false };
        } else if now.saturating_duration_since(entry.since) > window {
            *entry = Entry { failures: 0, since: now, banned: false };
        }
        entry.failures = entry.failures.saturating_add(1);
        if max_failures > 0 && entry.failures >= max_failures {
            *entry = Entry { since: now + ban, banned: true, ..*entry };
            self.banned.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                address = shown(key),
                failures = entry.failures,
                ?ban,
                "address banned: too many failed logins"
            );
            return Consequence::Banned;
        }
        Consequence::Delay((delay * (entry.failures - 1)).min(SLOWEST))
    }

    fn make_room(&self, entries: &mut HashMap<IpAddr, Entry>, now: Instant) {
        if entries.len() < self.capacity {
            return;
        }
        let window = self.limits.window;
        entries.retain(|_, entry| {
            if entry.banned {
                now < entry.since
            } else {
                now.saturating_duration_since(entry.since) <= window
            }
        });
        let banned = entries.values().filter(|entry| entry.banned).count();
        self.banned.store(banned, Ordering::Relaxed);
        if entries.len() >= self.capacity {
            let open = entries.iter().filter(|(_, entry)| !entry.banned);
            let first = open.min_by_key(|(_, entry)| entry.since).map(|(key, _)| *key);
            let first =
                first.or_else(|| entries.iter().min_by_key(|(_, entry)| entry.since).map(|(key, _)| *key));
            if let Some(entry) = first.and_then(|first| entries.remove(&first))
                && entry.banned
            {
                self.banned.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// The bans of now, those that end last first.
    pub(super) fn list(&self, now: Instant) -> Vec<Ban> {
        let entries = self.entries.lock();
        let banned = entries.iter().filter(|(_, entry)| entry.banned && now < entry.since);
        let mut bans: Vec<Ban> = banned
            .map(|(key, entry)| Ban {
                address: shown(*key),
                remaining: entry.since.saturating_duration_since(now),
                failures: entry.failures,
            })
            .collect();
        bans.sort_by(|one, other| other.remaining.cmp(&one.remaining).then(one.address.cmp(&other.address)));
        bans
    }

    /// Forgets the failures of one address or of all; how many bans ended.
    pub(super) fn clear(&self, address: Option<IpAddr>, now: Instant) -> usize {
        let wanted = address.map(key);
        let mut entries = self.entries.lock();
        let mut ended = 0;
        entries.retain(|key, entry| {
            let goes = wanted.is_none_or(|wanted| wanted == *key);
            if goes && entry.banned {
                self.banned.fetch_sub(1, Ordering::Relaxed);
                ended += usize::from(now < entry.since);
            }
            !goes
        });
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_failures: 4,
        window: Duration::from_mins(1),
        ban: Duration::from_mins(5),
        delay: Duration::from_millis(100),
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn failures_are_answered_later_and_later_and_then_lead_to_a_ban() {
        let (bans, now) = (Bans::new(LIMITS), Instant::now());
        let (bad, good) = (ip("10.0.0.1"), ip("10.0.0.2"));
        for delay in [0, 100, 200] {
            assert!(!bans.is_banned(bad, now));
            assert_eq!(bans.failed(bad, now), Consequence::Delay(Duration::from_millis(delay)));
        }
        assert_eq!(bans.failed(bad, now), Consequence::Banned);
        assert!(bans.is_banned(bad, now) && !bans.is_banned(good, now));
        assert!(bans.is_banned(ip("::ffff:10.0.0.1"), now), "the same address over IPv6");
        let later = now + Duration::from_secs(301);
        assert!(!bans.is_banned(bad, later));
        assert_eq!(bans.failed(bad, later), Consequence::Delay(Duration::ZERO), "it begins anew");
    }

    #[test]
    fn failures_are_forgotten_after_the_window() {
        let (bans, now) = (Bans::new(LIMITS), Instant::now());
        for _ in 0..3 {
            bans.failed(ip("10.0.0.1"), now);
        }
        let later = now + Duration::from_secs(61);
        assert_eq!(bans.failed(ip("10.0.0.1"), later), Consequence::Delay(Duration::ZERO));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let (bans, now) = (Bans::new(LIMITS), Instant::now());
        for last in 1..=4 {
            bans.failed(ip(&format!("2001:db8:0:1::{last}")), now);
        }
        assert!(bans.is_banned(ip("2001:db8:0:1:ffff::9"), now));
        assert!(!bans.is_banned(ip("2001:db8:0:2::1"), now));
        assert_eq!(bans.list(now)[0].address, "2001:db8:0:1::/64");
    }

    #[test]
    fn bans_are_listed_and_cleared() {
        let (bans, now) = (Bans::new(LIMITS), Instant::now());
        for address in ["10.0.0.1", "10.0.0.2"] {
            for _ in 0..4 {
                bans.failed(ip(address), now);
            }
        }
        let listed: Vec<(String, u32)> =
            bans.list(now).into_iter().map(|ban| (ban.address, ban.failures)).collect();
        assert_eq!(listed, [("10.0.0.1".into(), 4), ("10.0.0.2".into(), 4)]);
        assert_eq!(bans.clear(Some(ip("10.0.0.1")), now), 1);
        assert!(!bans.is_banned(ip("10.0.0.1"), now) && bans.is_banned(ip("10.0.0.2"), now));
        assert_eq!(bans.clear(None, now), 1);
        assert!(bans.list(now).is_empty() && !bans.is_banned(ip("10.0.0.2"), now));
        assert_eq!(bans.banned.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_table_stays_bounded_and_keeps_its_bans() {
        let mut bans = Bans::new(LIMITS);
        bans.capacity = 100;
        let now = Instant::now();
        for _ in 0..4 {
            bans.failed(ip("10.0.0.1"), now);
        }
        for number in 0..1000_u32 {
            let address = IpAddr::from((0x0b00_0000 + number).to_be_bytes());
            bans.failed(address, now + Duration::from_millis(u64::from(number)));
        }
        assert_eq!(bans.entries.lock().len(), 100);
        assert!(bans.is_banned(ip("10.0.0.1"), now + Duration::from_secs(1)));
    }

    #[test]
    fn nobody_is_banned_where_that_is_switched_off() {
        let bans = Bans::new(Limits { max_failures: 0, delay: Duration::ZERO, ..LIMITS });
        for _ in 0..1000 {
            assert_eq!(bans.failed(ip("10.0.0.1"), Instant::now()), Consequence::Delay(Duration::ZERO));
        }
        assert!(bans.entries.lock().is_empty());
    }
}
