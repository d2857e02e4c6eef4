//! The place of a producer bridge in the router: it stays while what is behind it starts, changes and stops.
//!
//! Publishers keep routes for a while, so a bridge that left the router to come back would be missed by some
//! and found closed by others. A [`Gate`] is registered as long as the bridge is enabled; what it leads to
//! changes in one step.
//!
//! Invariants:
//! * When [`Gate::lead_to`] or [`Gate::hold`] returns, no thread is at work with what the gate led to before.
//! * A thread that has passed to the new way knows that none passes to the old one any more, on whatever
//!   thread: a publisher whose connection moves between threads keeps its order.
//! * While it holds, a message whose publisher waits for the outcome is refused for the time being (the
//!   publisher keeps it); one without is dropped and counted as `dropped.resource_stopped`.
//! * A gate that is gone lets everything pass unseen, as if there was no bridge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use causeway_protocol::mqtt::ReasonCode;
use parking_lot::{Mutex, RwLock};

use crate::flow::ledger::Ledger;
use crate::flow::{Accepted, Message, MessageSink, Outcome, Room, Ticket, WakeList};

/// Locks that messages pass by, one for a thread: with a single one its cache line would go from core to core
/// with each message (measured on two cores: 43 ns a message instead of 12). More threads than this share
/// them.
const LANES: usize = 16;

thread_local! {
    /// The lane of this thread.
    static LANE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % LANES
    };
}

/// Alone on its cache lines (two, which are fetched in pairs).
#[repr(align(128))]
struct Lane(RwLock<GateState>);

#[derive(Clone)]
enum GateState {
    /// To the bridge.
    Open(Arc<dyn MessageSink>),
    /// Nowhere for now.
    Held,
    /// Nowhere.
    Gone,
}

/// Entrance of a producer bridge in the router, which leads to its current producer.
pub(super) struct Gate {
    lanes: [Lane; LANES],
    room: Room,
    holds_acknowledgement: AtomicBool,
    books: Mutex<Ledger>,
}

impl Gate {
    /// A gate that holds.
    pub(super) fn new(holds_acknowledgement: bool) -> Arc<Self> {
        Arc::new(Self {
            lanes: std::array::from_fn(|_| Lane(RwLock::new(GateState::Held))),
            room: Room::default(),
            holds_acknowledgement: holds_acknowledgement.into(),
            books: Mutex::default(),
        })
    }

    /// Whether publishers wait for the outcome; counts for routes that are made from now on.
    pub(super) fn set_holds_acknowledgement(&self, on: bool) {
        self.holds_acknowledgement.store(on, Ordering::Relaxed);
    }

    fn set(&self, way: &GateState) {
        // All are locked before the first one changes, see the invariants.
        let mut locked: Vec<_> = self.lanes.iter().map(|lane| lane.0.write()).collect();
        for lane in &mut locked {
            **lane = way.clone();
        }
        drop(locked);
        self.room.notify_waiters();
    }

    /// From now on everything goes there.
    pub(super) fn lead_to(&self, sink: Arc<dyn MessageSink>) {
        self.set(&GateState::Open(sink));
    }

    /// From now on nothing is taken.
    pub(super) fn hold(&self) {
        self.set(&GateState::Held);
    }

    /// There is no bridge any more.
    pub(super) fn remove(&self) {
        self.set(&GateState::Gone);
    }

    /// Counts of what was dropped here.
    pub(super) fn ledger(&self) -> Ledger {
        *self.books.lock()
    }
}

impl MessageSink for Gate {
    fn accept(&self, message: &Message<'_>, ticket: Option<&Ticket>, wakes: &mut WakeList) -> Accepted {
        let lane = LANE.with(|lane| &self.lanes[*lane]);
        match &*lane.0.read() {
            GateState::Open(sink) => sink.accept(message, ticket, wakes),
            GateState::Held if ticket.is_some() => Accepted::Full(self.room.clone()),
            GateState::Held => {
                let mut books = self.books.lock();
                books.matched += 1;
                books.dropped_resource_stopped += 1;
                Accepted::Done(Outcome::Failed(ReasonCode::ServerUnavailable))
            }
            GateState::Gone => Accepted::Done(Outcome::Success),
        }
    }

    fn holds_acknowledgement(&self) -> bool {
        self.holds_acknowledgement.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use causeway_protocol::mqtt::{PublishProperties, QoS};

    use super::*;
    use crate::flow::Origin;

    /// One of several ways, one after the other.
    struct Generation {
        number: usize,
        /// The highest number that has taken a message.
        highest: Arc<AtomicUsize>,
        /// Nothing may come any more.
        over: AtomicBool,
        late: Arc<AtomicUsize>,
    }

    impl MessageSink for Generation {
        fn accept(&self, _: &Message<'_>, _: Option<&Ticket>, _: &mut WakeList) -> Accepted {
            let before = self.highest.fetch_max(self.number, Ordering::SeqCst);
            if before > self.number || self.over.load(Ordering::SeqCst) {
                self.late.fetch_add(1, Ordering::SeqCst);
            }
            Accepted::Taken
        }
    }

    fn pass(gate: &Gate) {
        let origin = Arc::new(Origin { client_id: "c".into(), username: None, peer: None });
        let message = Message {
            origin: &origin,
            topic: "t",
            payload: b"",
            qos: QoS::AtMostOnce,
            retain: false,
            dup: false,
            properties: &PublishProperties::default(),
            received_at: 0,
            hops: 0,
        };
        gate.accept(&message, None, &mut WakeList::default());
    }

    #[test]
    fn nobody_takes_the_old_way_after_a_change_on_any_thread() {
        let gate = Gate::new(true);
        let (highest, late) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (end, passed) = (AtomicBool::new(false), AtomicUsize::new(0));
        let generation = |number| {
            let (highest, late) = (highest.clone(), late.clone());
            Arc::new(Generation { number, highest, over: AtomicBool::new(false), late })
        };
        let mut last = generation(1);
        gate.lead_to(last.clone());
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    while !end.load(Ordering::Relaxed) {
                        pass(&gate);
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for number in 2..300 {
                // Each change in the midst of messages.
                let before = passed.load(Ordering::Relaxed);
                while passed.load(Ordering::Relaxed) < before + 20 {
                    std::thread::yield_now();
                }
                let next = generation(number);
                gate.lead_to(next.clone());
                last.over.store(true, Ordering::SeqCst);
                last = next;
            }
            end.store(true, Ordering::Relaxed);
        });
        assert_eq!(late.load(Ordering::SeqCst), 0, "messages took a way that was over");
        assert!(passed.load(Ordering::SeqCst) > 0);
        gate.hold();
        pass(&gate);
        let books = gate.ledger();
        assert_eq!((books.matched, books.dropped_resource_stopped), (1, 1));
        gate.remove();
        pass(&gate);
        assert_eq!(gate.ledger(), books);
    }
}
