//! Checking passwords and tokens without being brought down by it.
//!
//! argon2 is slow by design, a signature of RSA or an elliptic curve is not free, and a fleet that comes back
//! after an outage asks thousands of times at once. So: what was right a moment ago is remembered, the same
//! question asked twice is worked on once, only few checks run at a time, a bounded number waits, and a
//! client beyond it is told that the server is busy.
//!
//! Invariants:
//! * Only a keyed hash is remembered (HMAC-SHA-256 with a random key of this process) over user, stored hash
//!   and password: a changed password is another question, and the memory is of no use elsewhere.
//! * A check whose client has gone gives its place back, unless it runs already.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{Shared, WeakShared},
};
use hashbrown::HashMap;
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use tokio::{sync::Semaphore, time::Instant};

use super::passwords::PasswordHash;

/// Passwords and tokens that are remembered; each takes about 100 bytes.
const REMEMBERED: usize = 100_000;

/// How checks are bounded.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckLimits {
    /// Checks at one time.
    pub(super) running: usize,
    /// Checks that wait; one more is told that the server is busy.
    pub(super) waiting: usize,
    /// How long a right password is remembered.
    pub(super) remember: Duration,
}

/// Outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is the password.
    Right,
    /// It is not.
    Wrong,
    /// Too many checks.
    Busy,
    /// The check failed, for want of memory for example.
    Failed,
}

pub(super) type Digest = [u8; 32];
type Check = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A check of another kind: `None` comes out if it did not end.
type Running<T> = Pin<Box<dyn Future<Output = Option<T>> + Send>>;

/// A check's answer.
pub(super) enum Checked {
    /// Known at once.
    Now(Outcome),
    /// Under way.
    Later(Shared<Check>),
}

#[derive(Default)]
struct Remembered {
    until: HashMap<Digest, Instant>,
    /// In the order they end.
    order: VecDeque<Digest>,
}

impl Remembered {
    fn knows(&self, digest: &Digest, now: Instant) -> bool {
        self.until.get(digest).is_some_and(|until| now < *until)
    }

    fn insert(&mut self, digest: Digest, now: Instant, until: Instant) {
        while let Some(first) = self.order.front() {
            let over = self.until.get(first).is_none_or(|until| *until <= now);
            if !over && self.order.len() < REMEMBERED {
                break;
            }
            self.until.remove(first);
            self.order.pop_front();
        }
        if self.until.insert(digest, until).is_none() {
            self.order.push_back(digest);
        }
    }
}

/// Bounded checks with a memory of recent ones.
pub(super) struct Checks {
    limits: CheckLimits,
    key: Digest,
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    remembered: Mutex<Remembered>,
    under_way: Mutex<HashMap<Digest, WeakShared<Check>>>,
    /// Hashes computed since the start.
    pub(super) computed: AtomicUsize,
}

/// Counts one who waits.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Takes a check off the list when it is over or given up.
struct Listed(Arc<Checks>, Digest);

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.under_way.lock().remove(&self.1);
    }
}

impl Checks {
    pub(super) fn new(limits: CheckLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            key: rand::random(),
            places: Arc::new(Semaphore::new(limits.running.max(1))),
            waiting: Arc::default(),
            remembered: Mutex::default(),
            under_way: Mutex::default(),
            computed: AtomicUsize::new(0),
        })
    }

    /// The name of a question, by its parts.
    fn digest(&self, parts: [&[u8]; 3]) -> Option<Digest> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.key).ok()?;
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        Some(mac.finalize().into_bytes().into())
    }

    /// Checks the password of `user` against the stored hash.
    pub(super) fn check(self: &Arc<Self>, user: &str, stored: Arc<PasswordHash>, password: &[u8]) -> Checked {
        let text = stored.to_string();
        let Some(digest) = self.digest([user.as_bytes(), text.as_bytes(), password]) else {
            return Checked::Now(Outcome::Failed);
        };
        if self.remembered.lock().knows(&digest, Instant::now()) {
            return Checked::Now(Outcome::Right);
        }
        let mut under_way = self.under_way.lock();
        if let Some(same) = under_way.get(&digest).and_then(WeakShared::upgrade) {
            return Checked::Later(same);
        }
        let Some(waiting) = self.queue() else { return Checked::Now(Outcome::Busy) };
        let listed = Listed(self.clone(), digest);
        let password: Box<[u8]> = password.into();
        let check: Check = Box::pin(async move {
            let Listed(checks, digest) = &listed;
            let Ok(place) = checks.places.clone().acquire_owned().await else { return Outcome::Failed };
            drop(waiting);
            checks.computed.fetch_add(1, Ordering::Relaxed);
            let verified = tokio::task::spawn_blocking(move || {
                let _place = place;
                stored.verify(&password)
            });
            match verified.await {
                Ok(Ok(true)) => {
                    checks.remember(*digest);
                    Outcome::Right
                }
                Ok(Ok(false)) => Outcome::Wrong,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a password could not be checked");
                    Outcome::Failed
                }
                Err(_) => Outcome::Failed,
            }
        });
        let check = check.shared();
        if let Some(weak) = check.downgrade() {
            under_way.insert(digest, weak);
        }
        Checked::Later(check)
    }

    /// A place among those who wait; none: too many do.
    fn queue(&self) -> Option<Waiting> {
        let waiting = Waiting(self.waiting.clone());
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let bound = self.limits.waiting.saturating_add(self.places.available_permits());
        (before < bound).then_some(waiting)
    }

    /// The name of a token under the keys of this generation.
    pub(super) fn token(&self, keys: u64, token: &str) -> Option<Digest> {
        // No user has this name: it cannot stand in MQTT.
        self.digest([b"\0token", &keys.to_be_bytes(), token.as_bytes()])
    }

    /// Whether it was right a moment ago.
    pub(super) fn knows(&self, digest: &Digest) -> bool {
        self.remembered.lock().knows(digest, Instant::now())
    }

    /// Runs a check of another kind in the same places, and remembers it if it is right. `None`: too many
    /// checks.
    pub(super) fn check_with<T: Send + 'static, E: Send + 'static>(
        self: &Arc<Self>,
        digest: Option<Digest>,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Option<Running<Result<T, E>>> {
        let waiting = self.queue()?;
        let checks = self.clone();
        Some(Box::pin(async move {
            let place = checks.places.clone().acquire_owned().await.ok()?;
            drop(waiting);
            checks.computed.fetch_add(1, Ordering::Relaxed);
            let run = tokio::task::spawn_blocking(move || {
                let _place = place;
                work()
            });
            let result = run.await.ok()?;
            if let (Ok(_), Some(digest)) = (&result, digest) {
                checks.remember(digest);
            }
            Some(result)
        }))
    }

    fn remember(&self, digest: Digest) {
        if !self.limits.remember.is_zero() {
            let now = Instant::now();
            self.remembered.lock().insert(digest, now, now + self.limits.remember);
        }
    }

    /// Runs other slow work in the same places.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let place = self.places.clone().acquire_owned().await.ok()?;
        let run = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        run.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::passwords::Cost, *};

    const LIMITS: CheckLimits = CheckLimits { running: 1, waiting: 2, remember: Duration::from_mins(1) };

    fn stored() -> Arc<PasswordHash> {
        Arc::new(PasswordHash::new(b"right", Cost::LEAST).unwrap())
    }

    async fn outcome(checked: Checked) -> Outcome {
        match checked {
            Checked::Now(outcome) => outcome,
            Checked::Later(check) => check.await,
        }
    }

    fn computed(checks: &Checks) -> usize {
        checks.computed.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_right_password_is_remembered_and_a_wrong_one_is_not() {
        let (checks, stored) = (Checks::new(LIMITS), stored());
        assert_eq!(outcome(checks.check("ann", stored.clone(), b"right")).await, Outcome::Right);
        assert!(matches!(checks.check("ann", stored.clone(), b"right"), Checked::Now(Outcome::Right)));
        assert_eq!(computed(&checks), 1);
        for _ in 0..2 {
            assert_eq!(outcome(checks.check("ann", stored.clone(), b"wrong")).await, Outcome::Wrong);
        }
        assert_eq!(outcome(checks.check("bob", stored.clone(), b"right")).await, Outcome::Right);
        assert_eq!(computed(&checks), 4);
        // The user has got another password: another stored hash.
        let other = Arc::new(PasswordHash::new(b"other", Cost::LEAST).unwrap());
        assert_eq!(outcome(checks.check("ann", other, b"right")).await, Outcome::Wrong);
    }

    #[tokio::test]
    async fn nothing_is_remembered_where_that_is_switched_off() {
        let (checks, stored) = (Checks::new(CheckLimits { remember: Duration::ZERO, ..LIMITS }), stored());
        assert_eq!(outcome(checks.check("ann", stored.clone(), b"right")).await, Outcome::Right);
        assert!(matches!(checks.check("ann", stored, b"right"), Checked::Later(_)));
    }

    #[tokio::test]
    async fn the_same_question_is_worked_on_once() {
        let (checks, stored) = (Checks::new(LIMITS), stored());
        let many: Vec<Checked> = (0..100).map(|_| checks.check("ann", stored.clone(), b"right")).collect();
        for checked in many {
            assert_eq!(outcome(checked).await, Outcome::Right);
        }
        assert_eq!(computed(&checks), 1);
        assert!(checks.under_way.lock().is_empty());
    }

    #[tokio::test]
    async fn beyond_the_bound_the_server_is_busy_and_a_place_is_given_back() {
        let (checks, stored) = (Checks::new(LIMITS), stored());
        // One may run and two wait; nothing is polled yet.
        let mut waiting: Vec<Checked> =
            (0..3).map(|number| checks.check(&format!("u{number}"), stored.clone(), b"right")).collect();
        assert!(matches!(checks.check("late", stored.clone(), b"right"), Checked::Now(Outcome::Busy)));
        waiting.pop();
        let checked = checks.check("late", stored.clone(), b"right");
        assert!(matches!(checked, Checked::Later(_)), "somebody has given up");
        for checked in waiting.into_iter().chain([checked]) {
            assert_eq!(outcome(checked).await, Outcome::Right);
        }
        assert_eq!(checks.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_the_oldest() {
        let (mut remembered, now) = (Remembered::default(), Instant::now());
        let digest = |number: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_be_bytes());
            digest
        };
        for number in 0..REMEMBERED + 10 {
            remembered.insert(digest(number), now, now + Duration::from_secs(9));
        }
        assert_eq!((remembered.until.len(), remembered.order.len()), (REMEMBERED, REMEMBERED));
        assert!(!remembered.knows(&digest(9), now) && remembered.knows(&digest(10), now));
        assert!(!remembered.knows(&digest(10), now + Duration::from_secs(9)), "its time is over");
        remembered.insert(digest(1), now + Duration::from_secs(10), now + Duration::from_secs(19));
        assert_eq!(remembered.order.len(), 1, "what is over goes");
    }
}
