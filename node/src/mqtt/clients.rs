//! The sessions as an administrator sees them.

use std::sync::Arc;

use super::keeper::{Keeper, SessionView};

/// One session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRow {
    /// Client identifier.
    pub client_id: String,
    /// Whether a connection carries it.
    pub connected: bool,
    /// Deliveries that wait.
    pub queued: usize,
    /// Bytes they are charged with.
    pub queued_bytes: usize,
    /// QoS 1 and 2 deliveries sent and not acknowledged.
    pub inflight: usize,
    /// Deliveries dropped since the session began.
    pub dropped: u64,
}

/// Part of the list of sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientsPage {
    /// By client identifier.
    pub rows: Vec<ClientRow>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// Bytes of client identifiers in one page, which one of any length fits into.
const PAGE_BYTES: usize = 256 << 10;

/// A view of the sessions of a front; cheap to clone.
#[derive(Clone)]
pub struct Clients {
    keeper: Arc<Keeper>,
}

impl Clients {
    pub(crate) fn new(keeper: Arc<Keeper>) -> Self {
        Self { keeper }
    }

    /// The session of one client.
    pub fn get(&self, client_id: &str) -> Option<ClientRow> {
        self.keeper.session(client_id).map(|view| row(&view))
    }

    /// Up to `limit` sessions behind the client identifier `after`, in its order.
    pub fn page(&self, after: Option<&str>, limit: usize) -> ClientsPage {
        let mut views = self.keeper.sessions();
        views.retain(|view| after.is_none_or(|after| view.client_id() > after));
        let more = views.len() > limit;
        if more {
            // The first `limit` of them: a list of a million need not be sorted for that.
            views.select_nth_unstable_by(limit, |one, other| one.client_id().cmp(other.client_id()));
            views.truncate(limit);
        }
        views.sort_unstable_by(|one, other| one.client_id().cmp(other.client_id()));
        let mut bytes = 0;
        let fits = views.iter().take_while(|view| {
            bytes += view.client_id().len();
            bytes <= PAGE_BYTES
        });
        let rows: Vec<_> = fits.map(row).collect();
        ClientsPage { more: more || rows.len() < views.len(), rows }
    }
}

fn row(view: &SessionView) -> ClientRow {
    let filling = view.filling();
    ClientRow {
        client_id: view.client_id().to_owned(),
        connected: view.connected,
        queued: filling.queued.items,
        queued_bytes: filling.queued.bytes,
        inflight: filling.inflight as usize,
        dropped: filling.dropped,
    }
}
