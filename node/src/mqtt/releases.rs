//! Releases of QoS 2 packet identifiers, told to the disk buffers that remember publications by them.
//!
//! A disk buffer keeps the packet identifier of a QoS 2 publication beside its record ([`Mark`]). After a
//! crash it takes a publication with the same identifier for a repetition. That is right until the client
//! releases the identifier (PUBREL), which it may then use for another message. A disk buffer therefore has
//! to hear every release; marks of one that may have missed some do not count.
//!
//! Invariants:
//! * Marks found on a disk count only if the buffer was kept up to date until the end of the life before this
//!   one ([`Lives`]). Of those, marks that were released in this life before the buffer was opened do not
//!   count.
//! * Before a client is answered, its release is noted here, or heard by the buffers that remember it.
//! * More than [`NOTED`] releases are not kept. A buffer that is opened after that counts none of its marks:
//!   publications that are under way in such a bridge at that moment may be there twice, but none is lost.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use hashbrown::HashSet;
use parking_lot::{Mutex, RwLock};

use crate::flow::{HandOver, Lives, Mark, Remembers, SessionId};

/// Releases that are noted for buffers that are opened later: some megabytes, and more than clients release
/// while a bridge that cannot be started at once is tried again.
const NOTED: usize = 100_000;

/// Releases of QoS 2 publications that wait for others.
#[derive(Default)]
pub(crate) struct Releases {
    /// Open buffers.
    remembering: RwLock<Vec<Arc<dyn Remembers>>>,
    /// Marks released in this life by sessions from before it. Changes while `remembering` is locked.
    noted: Mutex<HashSet<Mark>>,
    /// More than [`NOTED`] marks were released; `noted` is empty since.
    overflowed: AtomicBool,
}

impl Releases {
    /// Adds a buffer: it hears of all later releases, and drops the marks that do not count.
    pub(crate) fn add(&self, buffer: Arc<dyn Remembers>, lives: Lives) {
        let mut remembering = self.remembering.write();
        let heard_all = lives.before.is_some()
            && buffer.life() == lives.before
            && !self.overflowed.load(Ordering::Relaxed);
        let noted = self.noted.lock();
        buffer.believe(lives.now, &|mark| heard_all && !noted.contains(&mark));
        drop(noted);
        remembering.push(buffer);
    }

    /// Removes a buffer: it hears of no later release.
    pub(crate) fn remove(&self, buffer: &Arc<dyn Remembers>) {
        let address = |buffer: &Arc<dyn Remembers>| Arc::as_ptr(buffer).cast::<()>() as usize;
        self.remembering.write().retain(|known| address(known) != address(buffer));
    }

    /// Releases a publication; `restored`: by a session from before this life. True where a buffer remembers
    /// it: each that does holds the hand-over that `then` makes until it has forgotten the publication for
    /// good.
    pub(crate) fn release(&self, mark: Mark, restored: bool, then: impl FnOnce() -> Arc<HandOver>) -> bool {
        let remembering = self.remembering.read();
        if restored && !self.overflowed.load(Ordering::Relaxed) {
            self.note(mark);
        }
        let mut buffers = remembering.iter().filter(|buffer| buffer.remembers(mark)).peekable();
        if buffers.peek().is_none() {
            return false;
        }
        let then = then();
        buffers.for_each(|buffer| buffer.forget(mark, then.clone()));
        true
    }

    fn note(&self, mark: Mark) {
        let mut noted = self.noted.lock();
        if noted.len() < NOTED {
            noted.insert(mark);
        } else {
            *noted = HashSet::new();
            self.overflowed.store(true, Ordering::Relaxed);
        }
    }

    /// Tells the buffers that a stored session has ended: its marks go.
    pub(crate) fn session_ended(&self, session: SessionId) {
        for buffer in &*self.remembering.read() {
            buffer.session_ended(session);
        }
    }

    /// Tells the buffers all sessions from before this life: marks of others go.
    pub(crate) fn sessions_found(&self, sessions: impl Iterator<Item = SessionId>) {
        let remembering = self.remembering.read();
        if remembering.is_empty() {
            return;
        }
        let sessions: HashSet<SessionId> = sessions.collect();
        remembering.iter().for_each(|buffer| buffer.keep_sessions(&|session| sessions.contains(&session)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::flow::{IgnoreAcks, Ticket};

    const LIVES: Lives = Lives { before: Some(7), now: 8 };

    fn then() -> Arc<HandOver> {
        HandOver::new(Ticket::new(Arc::new(IgnoreAcks), 0))
    }

    fn mark(session: u8, identifier: u16) -> Mark {
        Mark { session: SessionId([session; 16]), identifier }
    }

    /// A buffer with the marks that it found on its disk.
    struct Memory {
        life: Option<u64>,
        marks: Mutex<BTreeSet<Mark>>,
    }

    impl Memory {
        fn of(life: Option<u64>, marks: &[Mark]) -> Arc<Self> {
            Arc::new(Self { life, marks: Mutex::new(marks.iter().copied().collect()) })
        }

        fn left(&self) -> Vec<Mark> {
            self.marks.lock().iter().copied().collect()
        }
    }

    impl Remembers for Memory {
        fn life(&self) -> Option<u64> {
            self.life
        }

        fn believe(&self, now: u64, meant: &dyn Fn(Mark) -> bool) {
            assert_eq!(now, 8);
            self.marks.lock().retain(|mark| meant(*mark));
        }

        fn remembers(&self, mark: Mark) -> bool {
            self.marks.lock().contains(&mark)
        }

        fn forget(&self, mark: Mark, _: Arc<HandOver>) {
            assert!(self.marks.lock().remove(&mark));
        }

        fn session_ended(&self, session: SessionId) {
            self.marks.lock().retain(|mark| mark.session != session);
        }

        fn keep_sessions(&self, exists: &dyn Fn(SessionId) -> bool) {
            self.marks.lock().retain(|mark| exists(mark.session));
        }
    }

    #[test]
    fn a_memory_counts_where_it_was_kept_up_to_the_end_of_the_life_before() {
        let marks = [mark(1, 1), mark(1, 2)];
        for (life, before, counts) in [
            (Some(7), Some(7), true),
            (Some(6), Some(7), false),
            // Opened for the second time in this life.
            (Some(8), Some(7), false),
            (None, Some(7), false),
            (Some(7), None, false),
            (None, None, false),
        ] {
            let memory = Memory::of(life, &marks);
            Releases::default().add(memory.clone(), Lives { before, now: 8 });
            assert_eq!(memory.left().len(), if counts { 2 } else { 0 }, "{life:?} {before:?}");
        }
    }

    #[test]
    fn what_was_released_before_a_buffer_is_opened_is_not_believed_and_the_rest_is() {
        let releases = Releases::default();
        let early = Memory::of(Some(7), &[mark(1, 1), mark(1, 2)]);
        releases.add(early.clone(), LIVES);
        assert!(releases.release(mark(1, 1), true, then));
        assert!(!releases.release(mark(2, 1), true, then), "nobody has it");
        assert_eq!(early.left(), [mark(1, 2)]);
        let late = Memory::of(Some(7), &[mark(1, 1), mark(1, 2), mark(2, 1), mark(2, 2)]);
        releases.add(late.clone(), LIVES);
        assert_eq!(late.left(), [mark(1, 2), mark(2, 2)]);
        assert!(releases.release(mark(1, 2), true, then));
        assert_eq!((early.left(), late.left()), (vec![], vec![mark(2, 2)]));
    }

    #[test]
    fn after_more_releases_than_are_noted_a_late_buffer_is_not_believed_at_all() {
        let releases = Releases::default();
        let mut number = 0_u32;
        let mut release = |restored| {
            number += 1;
            let [_, session, high, low] = number.to_be_bytes();
            releases.release(mark(session, u16::from_be_bytes([high, low])), restored, then);
        };
        // Sessions of this life have no memory that is older than it.
        (0..=NOTED).for_each(|_| release(false));
        (0..NOTED).for_each(|_| release(true));
        let late = Memory::of(Some(7), &[mark(99, 1)]);
        releases.add(late.clone(), LIVES);
        assert_eq!(late.left(), [mark(99, 1)]);
        release(true);
        let later = Memory::of(Some(7), &[mark(99, 1)]);
        releases.add(later.clone(), LIVES);
        assert_eq!(later.left(), []);
        assert_eq!(releases.noted.lock().capacity(), 0, "the memory is given back");
    }

    #[test]
    fn what_is_remembered_of_sessions_that_are_gone_goes() {
        let releases = Releases::default();
        let memory = Memory::of(Some(7), &[mark(1, 1), mark(2, 1), mark(3, 1)]);
        releases.add(memory.clone(), LIVES);
        releases.sessions_found([1, 2, 4].map(|session| SessionId([session; 16])).into_iter());
        assert_eq!(memory.left(), [mark(1, 1), mark(2, 1)]);
        releases.session_ended(SessionId([1; 16]));
        assert_eq!(memory.left(), [mark(2, 1)]);
    }

    #[test]
    fn one_that_is_removed_hears_nothing_any_more() {
        let releases = Releases::default();
        let memory = Memory::of(Some(7), &[mark(1, 1)]);
        let who: Arc<dyn Remembers> = memory.clone();
        releases.add(who.clone(), LIVES);
        releases.remove(&who);
        assert!(!releases.release(mark(1, 1), true, then));
    }
}
