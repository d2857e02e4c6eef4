//! Listeners: opening them, and the accept loops.
//!
//! A listener is a set of sockets on one address with `SO_REUSEPORT`, one for each acceptor, so that the
//! kernel spreads new connections. A second process with that option would join the set in silence, so the
//! address is first bound once without it: a taken port fails, and says so.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use ractor::ActorRef;
use socket2::Socket;
use tokio::{net::TcpListener, time::Instant};

use super::{
    options::{CertificateUsername, ListenerKind, ListenerOptions},
    rate::{Rate, TokenBucket},
    shared::Shared,
    stats::Stats,
    supervisor::{Notice, Supervised},
    transport::{
        Certificates, Peer, Stream, Transport,
        opening::{self, Entrance},
    },
};
use crate::listening;

/// Connections the kernel keeps for us while we accept others: a fleet that comes back after an outage.
const BACKLOG: i32 = 4096;

/// Waits after an accept error that will not go away by itself, doubled up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another socket listens there.
    #[error(
        "listener {name}: address {address} is taken, something else listens there; choose another port or stop it"
    )]
    Taken {
        /// The listener.
        name: String,
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("listener {name}: cannot listen on {address}: {source}")]
    Io {
        /// The listener.
        name: String,
        /// The address.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
}

/// State that all sockets and connections of a listener share.
pub(crate) struct ListenerState {
    /// Kind and name, such as `tcp:default`.
    id: Box<str>,
    kind: ListenerKind,
    max_connections: usize,
    /// Connections of the whole listener.
    open: AtomicUsize,
    /// Steps before MQTT.
    pub(crate) entrance: Entrance,
    accepts: Option<Mutex<TokenBucket>>,
    pub(crate) messages_rate: Option<Rate>,
    pub(crate) bytes_rate: Option<Rate>,
    pub(crate) certificate_username: CertificateUsername,
    stats: Arc<Stats>,
}

impl ListenerState {
    /// Kind and name, such as `tcp:default`.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

/// A connection's place among those of its listener, from accept on; the connection is counted as long.
pub(crate) struct ListenerSlot(Arc<ListenerState>);

impl ListenerSlot {
    /// Takes one more place.
    fn take(listener: &Arc<ListenerState>) -> Self {
        listener.open.fetch_add(1, Ordering::AcqRel);
        Stats::add(&listener.stats.connections, 1);
        Stats::add(&listener.stats.connections_accepted, 1);
        Self(listener.clone())
    }

    /// The listener.
    pub(crate) fn listener(&self) -> &Arc<ListenerState> {
        &self.0
    }
}

impl Drop for ListenerSlot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        Stats::subtract(&self.0.stats.connections, 1);
    }
}

/// One socket of a listener.
pub(crate) struct Acceptor {
    pub(crate) listener: Arc<ListenerState>,
    socket: TcpListener,
}

/// An open listener, to look at.
#[derive(Clone)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Where it listens, with the port that was taken for 0.
    pub address: SocketAddr,
    /// Connections it may have open at once.
    pub max_connections: usize,
    state: Arc<ListenerState>,
}

impl Listener {
    /// Transport below MQTT.
    pub fn kind(&self) -> ListenerKind {
        self.state.kind
    }

    /// Kind and name, such as `tcp:default`.
    pub fn id(&self) -> &str {
        self.state.id()
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.state.open.load(Ordering::Acquire)
    }
}

/// Opens a listener with `count` sockets.
pub(crate) fn open(
    listener: &ListenerOptions,
    count: usize,
    certificates: Option<Arc<Certificates>>,
    stats: &Arc<Stats>,
) -> Result<(Listener, Vec<Arc<Acceptor>>), ListenError> {
    let failed = |address: SocketAddr| {
        let name = listener.id();
        move |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::Taken { name, address },
            _ => ListenError::Io { name, address, source },
        }
    };
    // Listening, not only bound: with SO_REUSEADDR, which connections in TIME_WAIT make necessary, only
    // this shows another listener.
    let probe = bind(listener.bind, false).map_err(failed(listener.bind))?;
    let address = probe.local_addr().and_then(|address| {
        address.as_socket().ok_or_else(|| io::Error::other("the socket has no internet address"))
    });
    let address = address.map_err(failed(listener.bind))?;
    drop(probe);
    let state = Arc::new(ListenerState {
        id: listener.id().into(),
        kind: listener.kind(),
        max_connections: listener.max_connections,
        open: AtomicUsize::new(0),
        entrance: Entrance::new(listener, certificates),
        accepts: listener.max_conn_rate.map(|rate| Mutex::new(TokenBucket::new(rate, Instant::now()))),
        messages_rate: listener.messages_rate,
        bytes_rate: listener.bytes_rate,
        certificate_username: listener.certificate_username,
        stats: stats.clone(),
    });
    let acceptors = (0..count.max(1)).map(|_| {
        let socket = bind(address, true)?;
        Ok(Arc::new(Acceptor { listener: state.clone(), socket: TcpListener::from_std(socket.into())? }))
    });
    let acceptors = acceptors.collect::<io::Result<_>>().map_err(failed(address))?;
    let max_connections = listener.max_connections;
    Ok((Listener { name: listener.name.clone(), address, max_connections, state }, acceptors))
}

fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = listening::socket(address)?;
    socket.set_reuse_port(reuse_port)?;
    // Handed down to every connection that is accepted: one system call less for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Accepts connections until it is aborted.
pub(crate) async fn accept(acceptor: &Acceptor, shared: &Arc<Shared>, supervisor: &ActorRef<Notice>) {
    let listener = &acceptor.listener;
    let mut backoff = BACKOFF.0;
    loop {
        if let Some(accepts) = &listener.accepts {
            wait_for_turn(accepts, &shared.stats).await;
        }
        match acceptor.socket.accept().await {
            Ok((socket, peer)) => {
                backoff = BACKOFF.0;
                if let Some(accepts) = &listener.accepts {
                    accepts.lock().spend(1, Instant::now());
                }
                if shared.options.access.is_banned(peer.ip()) {
                    Stats::add(&shared.stats.connections_banned, 1);
                    continue;
                }
                if listener.open.load(Ordering::Acquire) >= listener.max_connections {
                    Stats::add(&shared.stats.connections_refused, 1);
                    shared.refusals.full(listener.id(), peer);
                    continue;
                }
                let place = ListenerSlot::take(listener);
                if listener.entrance.is_open() {
                    let peer = Peer { address: peer, certificate: None };
                    let transport = Transport::Plain(Stream::Tcp(socket));
                    super::spawn(Supervised::new(shared, supervisor, place, transport, peer));
                } else {
                    opening::begin(shared, supervisor, place, socket, peer);
                }
            }
            Err(error) => {
                Stats::add(&shared.stats.accept_errors, 1);
                if is_about_one_connection(&error) {
                    continue;
                }
                // Out of file descriptors or memory: asking again at once would only burn the processor.
                if backoff == BACKOFF.0 {
                    tracing::warn!(listener = listener.id(), %error, "cannot accept connections");
                }
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Waits until the listener's rate lets one more connection in. Meanwhile the system keeps them in the
/// backlog.
async fn wait_for_turn(accepts: &Mutex<TokenBucket>, stats: &Stats) {
    let mut delayed = false;
    loop {
        let now = Instant::now();
        let ready = accepts.lock().ready_at(now);
        if ready <= now {
            return;
        }
        if !std::mem::replace(&mut delayed, true) {
            Stats::add(&stats.accepts_delayed, 1);
        }
        tokio::time::sleep_until(ready).await;
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
