//! The place of a producer bridge in the router: it stays while what is behind it starts, changes and stops.
//!
//! Publishers keep routes for a while, so a bridge that left the router to come back would be missed by some and
//! found closed by others. A [`Gate`] is registered as long as the bridge is enabled; what it leads to changes
//! in one step.
//!
//! Invariants:
//! * When [`Gate::lead_to`] or [`Gate::hold`] returns, nobody is at work with what the gate led to before.
//! * While it holds, a message whose publisher waits for the outcome is refused for the time being (the publisher
//!   keeps it); one without is dropped and counted as `dropped.resource_stopped`.
//! * A gate that is gone lets everything pass unseen, as if there was no bridge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use causeway_protocol::mqtt::ReasonCode;
use parking_lot::{Mutex, RwLock};

use super::ledger::Ledger;
use crate::flow::{Accepted, Message, MessageSink, Outcome, Room, Ticket, WakeList};

enum Way {
    /// To the bridge.
    Open(Arc<dyn MessageSink>),
    /// Nowhere for now.
    Held,
    /// Nowhere.
    Gone,
}

/// See the top of the file.
pub(super) struct Gate {
    way: RwLock<Way>,
    room: Room,
    holds_acknowledgement: AtomicBool,
    books: Mutex<Ledger>,
}

impl Gate {
    /// A gate that holds.
    pub(super) fn new(holds_acknowledgement: bool) -> Arc<Self> {
        Arc::new(Self {
            way: RwLock::new(Way::Held),
            room: Room::default(),
            holds_acknowledgement: holds_acknowledgement.into(),
            books: Mutex::default(),
        })
    }

    /// Whether publishers wait for the outcome; counts for routes that are made from now on.
    pub(super) fn set_holds_acknowledgement(&self, on: bool) {
        self.holds_acknowledgement.store(on, Ordering::Relaxed);
    }

    fn set(&self, way: Way) {
        *self.way.write() = way;
        self.room.notify_waiters();
    }

    /// From now on everything goes there.
    pub(super) fn lead_to(&self, sink: Arc<dyn MessageSink>) {
        self.set(Way::Open(sink));
    }

    /// From now on nothing is taken.
    pub(super) fn hold(&self) {
        self.set(Way::Held);
    }

    /// There is no bridge any more.
    pub(super) fn remove(&self) {
        self.set(Way::Gone);
    }

    /// What was dropped here.
    pub(super) fn ledger(&self) -> Ledger {
        *self.books.lock()
    }
}

impl MessageSink for Gate {
    fn accept(&self, message: &Message<'_>, ticket: Option<&Ticket>, wakes: &mut WakeList) -> Accepted {
        match &*self.way.read() {
            Way::Open(sink) => sink.accept(message, ticket, wakes),
            Way::Held if ticket.is_some() => Accepted::Full(self.room.clone()),
            Way::Held => {
                let mut books = self.books.lock();
                books.matched += 1;
                books.dropped_resource_stopped += 1;
                Accepted::Done(Outcome::Failed(ReasonCode::ServerUnavailable))
            }
            Way::Gone => Accepted::Done(Outcome::Success),
        }
    }

    fn holds_acknowledgement(&self) -> bool {
        self.holds_acknowledgement.load(Ordering::Relaxed)
    }
}
