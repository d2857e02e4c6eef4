use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::super::storage_double::StorageDouble;
use super::*;

/// Writes batches, or reads one.
struct Someone {
    to_write: AtomicUsize,
    wants_to_read: AtomicBool,
    have: Mutex<Vec<Piece>>,
}

impl Someone {
    fn new(to_write: usize) -> Arc<Self> {
        Arc::new(Self { to_write: to_write.into(), wants_to_read: false.into(), have: Mutex::default() })
    }
}

impl SpillClient for Someone {
    fn turn(&self, thread: &mut SpillThread) -> NextStep {
        if self.wants_to_read.load(Ordering::SeqCst) {
            let Some(piece) = self.have.lock().pop() else { return NextStep::Done };
            assert_eq!(thread.read(&piece, 0).unwrap(), b"batch");
            self.wants_to_read.store(false, Ordering::SeqCst);
            return NextStep::More;
        }
        if self.to_write.load(Ordering::SeqCst) == 0 {
            return NextStep::Done;
        }
        if !thread.may_write() {
            return NextStep::Blocked;
        }
        thread.scratch.clear();
        thread.scratch.extend_from_slice(b"batch");
        if let Ok(piece) = thread.write(1) {
            self.to_write.fetch_sub(1, Ordering::SeqCst);
            self.have.lock().push(piece);
        }
        NextStep::More
    }
}

/// Until then a hang.
const LONG: Duration = Duration::from_mins(1);

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_full_disk_is_said_lets_batches_be_read_and_is_tried_again() {
    let storage = Arc::<StorageDouble>::default();
    let spill = Spill::with_storage(storage.clone(), "/x".into(), 1000);
    let someone = Someone::new(3);
    let queue = || {
        let customer: Weak<dyn SpillClient> = Arc::downgrade(&someone) as Weak<dyn SpillClient>;
        spill.submit(customer);
    };
    // Room for two of three.
    storage.set_room(Some(8 + 2 * 17 + 10));
    queue();
    until("it is said", || spill.trouble().is_some());
    let said = spill.trouble().unwrap();
    assert!(said.starts_with("hybrid buffer: records cannot be written to files: "), "{said}");
    assert_eq!((someone.have.lock().len(), spill.cannot_read()), (2, false));
    // It reads at once, and not when the disk is asked again.
    someone.wants_to_read.store(true, Ordering::SeqCst);
    queue();
    until("it is read", || !someone.wants_to_read.load(Ordering::SeqCst));
    storage.set_room(None);
    until("it is written", || someone.to_write.load(Ordering::SeqCst) == 0);
    until("nothing is said any more", || spill.trouble().is_none());
}

#[test]
fn trouble_ends_with_those_who_wanted_something() {
    let storage = Arc::<StorageDouble>::default();
    let spill = Spill::with_storage(storage.clone(), "/x".into(), 1000);
    storage.set_room(Some(0));
    let someone = Someone::new(1);
    let customer: Weak<dyn SpillClient> = Arc::downgrade(&someone) as Weak<dyn SpillClient>;
    spill.submit(customer);
    until("it is said", || spill.trouble().is_some());
    someone.to_write.store(0, Ordering::SeqCst);
    until("nothing is said any more", || spill.trouble().is_none());
    assert_eq!(storage.files(), 0);
}

#[test]
fn the_thread_ends_with_its_spill() {
    let storage = Arc::<StorageDouble>::default();
    let spill = Spill::with_storage(storage.clone(), "/x".into(), 1000);
    let someone = Someone::new(1);
    let customer: Weak<dyn SpillClient> = Arc::downgrade(&someone) as Weak<dyn SpillClient>;
    spill.submit(customer);
    until("it is written", || someone.to_write.load(Ordering::SeqCst) == 0);
    drop(someone);
    let shared = Arc::downgrade(&spill.shared);
    drop(spill);
    until("the thread has ended", || shared.strong_count() == 0);
    assert_eq!(storage.files(), 0);
}
