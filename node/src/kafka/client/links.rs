//! The connections of one client: one a broker and purpose, made when first asked for, made again with
//! backoff after they end.
//!
//! Callers who ask for the same connection at the same time share one attempt and its result.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Address, BrokerConnection, ClientOptions, Error};

/// Purpose of a connection. Kafka answers one connection's requests one after another, so requests that
/// it holds on purpose (a long poll, a join) must not stand before others: fetches and
/// groups are told apart by [`super::Client::next_lane`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Metadata and other short questions.
    Metadata,
    /// Produce requests: one connection for all partitions, or a few, by number.
    Produce(u32),
    /// Fetches of one consumer.
    Fetch(u32),
    /// Group requests of one group member.
    Coordinator(u32),
}

/// All connections by broker id and purpose.
#[derive(Default)]
pub(super) struct Links {
    links: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    closed: bool,
    by_use: HashMap<(i32, Purpose), Arc<Link>>,
}

#[derive(Default)]
struct Link {
    state: tokio::sync::Mutex<LinkState>,
    /// Counts attempts that are over, to notice one that ended while waiting for the lock.
    attempts: std::sync::atomic::AtomicU64,
}

#[derive(Default)]
struct LinkState {
    connection: Option<Arc<BrokerConnection>>,
    failures: u32,
    retry_at: Option<Instant>,
    last_error: Option<Error>,
}

impl Links {
    /// A live connection to `address`, which is where broker `id` is now. Waits out the backoff.
    pub(super) async fn get(
        &self,
        id: i32,
        purpose: Purpose,
        address: &Address,
        options: &ClientOptions,
    ) -> Result<Arc<BrokerConnection>, Error> {
        use std::sync::atomic::Ordering;

        let link = {
            let mut slots = self.links.lock();
            if slots.closed {
                return Err(Error::Closed);
            }
            slots.by_use.entry((id, purpose)).or_default().clone()
        };
        let attempts_before = link.attempts.load(Ordering::Acquire);
        let mut state = link.state.lock().await;
        if let Some(connection) = &state.connection {
            if connection.is_usable() && connection.address() == address {
                return Ok(connection.clone());
            }
            if connection.address() != address {
                tracing::info!(broker = id, from = %connection.address(), to = %address, "kafka broker moved");
                state.failures = 0;
                state.retry_at = None;
            }
            // Others may still wait for answers on the old one: it ends when they let go of it.
            state.connection = None;
        }
        if link.attempts.load(Ordering::Acquire) != attempts_before
            && let Some(error) = &state.last_error
        {
            return Err(error.clone());
        }
        if let Some(at) = state.retry_at {
            tokio::time::sleep_until(at).await;
        }
        let result = BrokerConnection::connect(address, options).await;
        link.attempts.fetch_add(1, Ordering::AcqRel);
        match result {
            Ok(connection) => {
                if self.links.lock().closed {
                    connection.close();
                    return Err(Error::Closed);
                }
                *state = LinkState { connection: Some(connection.clone()), ..LinkState::default() };
                Ok(connection)
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                state.retry_at = Some(Instant::now() + options.reconnect_backoff.jittered(state.failures));
                state.last_error = Some(error.clone());
                Err(error)
            }
        }
    }

    /// True after [`Self::close`].
    pub(super) fn is_closed(&self) -> bool {
        self.links.lock().closed
    }

    /// Forgets the connections of a purpose that is over.
    pub(super) fn release(&self, purpose: Purpose) {
        self.links.lock().by_use.retain(|(_, used_for), _| *used_for != purpose);
    }

    /// Closes everything; later calls of [`Self::get`] fail.
    pub(super) fn close(&self) {
        let links = {
            let mut slots = self.links.lock();
            slots.closed = true;
            std::mem::take(&mut slots.by_use)
        };
        for link in links.into_values() {
            // Where the lock is held an attempt is under way: it sees `closed` when it is over.
            if let Ok(mut state) = link.state.try_lock()
                && let Some(connection) = state.connection.take()
            {
                connection.close();
            }
        }
    }
}
