//! State that the connections of a front share ([`Shared`]), and the state of one client ([`Client`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use causeway_protocol::mqtt::{ReasonCode, Version};
use tokio::{sync::Notify, time::Instant};

use super::{
    authentication::ClientAccess,
    connection::End,
    inbox::Inbox,
    keeper::{Keeper, Lease},
    options::Options,
    publisher::Parked,
    refusals::Refusals,
    route::RouteCache,
    router::Router,
    session::ClientLimits,
    standstill::Watch,
    stats::Stats,
    transport::Arithmetic,
};
use crate::flow::{Origin, Ticket};

/// State that all connections of a front share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) router: Arc<Router>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) stats: Arc<Stats>,
    /// Set once the front stops: no new client is let in.
    pub(crate) stopping: AtomicBool,
    /// Notified then: connections without a session hear of it here.
    pub(crate) stop: Arc<Notify>,
    /// Bounds the TLS handshakes that compute at once.
    pub(crate) arithmetic: Arithmetic,
    /// Tells what clients were refused.
    pub(crate) refusals: Refusals,
    /// When a failure in a sink was last logged: milliseconds since the Unix epoch.
    warned: AtomicI64,
}

impl Shared {
    pub(crate) fn new(options: Options, router: Arc<Router>) -> Arc<Self> {
        router.memory().set_limit(options.max_memory);
        router.set_share_strategy(options.shared_subscription_strategy);
        let keeper =
            Keeper::new(router.clone(), options.session_queue, options.queue_full, options.max_sessions);
        let stats = router.stats().clone();
        let (stopping, warned) = (AtomicBool::new(false), AtomicI64::new(0));
        // Half of the processor is always there for those who are connected.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let arithmetic = Arithmetic::new((cores / 2).max(1));
        let refusals = Refusals::new(options.access.has_tokens_for_usernames());
        let stop = Arc::default();
        Arc::new(Self { options, router, keeper, stats, stopping, stop, arithmetic, refusals, warned })
    }

    /// Logs that a message was given up while its client cannot be told: at most once in ten seconds, all
    /// are counted. `uncounted` are not in the statistics yet.
    pub(crate) fn warn_failed(&self, client_id: &str, reason: ReasonCode, uncounted: u64, wall: i64) {
        const EVERY_MS: i64 = 10_000;
        let last = self.warned.load(Ordering::Relaxed);
        if wall.saturating_sub(last) >= EVERY_MS
            && self.warned.compare_exchange(last, wall, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let failed = self.stats.snapshot().failed_in_sink + uncounted;
            tracing::warn!(client_id, ?reason, failed, "message given up; an MQTT 3 client cannot be told");
        }
    }
}

/// A client whose CONNECT was accepted.
pub(crate) struct Client {
    pub(crate) lease: Lease,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) limits: ClientLimits,
    pub(crate) origin: Arc<Origin>,
    /// Its permissions; none where it may do everything.
    pub(crate) access: Option<Box<ClientAccess>>,
    /// Offered to sinks, with the sequence of the publication.
    pub(crate) ticket: Ticket,
    /// Publishers have it.
    pub(crate) routes: Option<Box<RouteCache>>,
    /// Topics by alias; index 0 is alias 1.
    pub(crate) aliases: Vec<Option<Arc<str>>>,
    /// It takes reason strings where something went wrong (MQTT-5.0 3.1.2.11.7).
    pub(crate) problem_information: bool,
    /// A publication that a sink had no room for.
    pub(crate) parked: Option<Box<Parked>>,
    /// 1.5 times the client's keep-alive.
    pub(crate) keep_alive: Option<Duration>,
    /// The session expiry interval of its CONNECT was 0 (MQTT-3.14.2-2).
    pub(crate) ends_with_connection: bool,
    /// Whether it goes on while others wait for it; none until they may.
    pub(crate) watch: Option<Box<Watch>>,
    /// That its connection is about to end; none as long as it is not.
    pub(crate) departure: Option<Box<Departure>>,
}

/// How a connection is about to end.
#[derive(Default)]
pub(crate) struct Departure {
    /// The client has sent its last packet: how the connection ends when its publications are through, or at
    /// this time.
    pub(crate) farewell: Option<(End, Instant)>,
    /// The connection must end, for this reason, at this time.
    pub(crate) leaving: Option<(ReasonCode, Instant)>,
    /// The node is stopping: until when acknowledgements are waited for.
    pub(crate) draining: Option<Instant>,
}

impl Departure {
    /// The next moment at which something of it is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let farewell = self.farewell.map(|(_, deadline)| deadline);
        let leaving = self.leaving.map(|(_, deadline)| deadline);
        [farewell, leaving, self.draining].into_iter().flatten().min()
    }
}

impl Client {
    pub(crate) fn version(&self) -> Version {
        self.limits.version
    }

    /// How its connection is about to end; to be filled in.
    pub(crate) fn departure(&mut self) -> &mut Departure {
        self.departure.get_or_insert_default()
    }

    /// See [`Departure::farewell`].
    pub(crate) fn farewell(&self) -> Option<(End, Instant)> {
        self.departure.as_ref()?.farewell
    }

    /// See [`Departure::draining`].
    pub(crate) fn draining(&self) -> Option<Instant> {
        self.departure.as_ref()?.draining
    }
}
