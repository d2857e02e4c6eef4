//! Steps between accept and MQTT: a PROXY protocol header, TLS, WebSocket, each where the listener wants
//! it. A listener that wants none has no part in this: its connections begin at once.
//!
//! An opening is a task of its own. It holds little before the client has spoken, has its time, and ends when
//! the front stops.
//!
//! Invariants:
//! * At most `max_handshakes` of a listener are under way. Beyond it the oldest gives way to the newest: who
//!   takes long is most likely not there to connect, and no new client is kept out by that.
//! * However it ends, it is counted once.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use ractor::ActorRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::AbortHandle,
    time::{error::Elapsed, timeout},
};

use super::{
    super::{
        listener::ListenerSlot,
        memory::Held,
        options::{ListenerOptions, WebSocketOptions},
        refusals::Opening,
        shared::Shared,
        stats::Stats,
        supervisor::{Notice, Supervised, report_panic},
    },
    Certificates, Peer, Stream, Transport, proxy, tls,
    tls_stream::TlsStream,
    upgrade,
    websocket::WebSocket,
};

/// Bytes that an opening is counted with against the memory of the device side, however far it is.
const HANDSHAKE: usize = 10 << 10;

/// Steps that a listener wants of a connection before MQTT.
pub(crate) struct Entrance {
    /// A PROXY protocol header within this time.
    proxy: Option<Duration>,
    /// TLS with these certificates, within this time.
    tls: Option<(Arc<Certificates>, Duration)>,
    /// WebSocket, within this time.
    websocket: Option<(WebSocketOptions, Duration)>,
    max_handshakes: usize,
    under_way: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    next: u64,
    /// In the order they began; one that is not spawned yet has no handle.
    openings: BTreeMap<u64, Option<AbortHandle>>,
}

impl Entrance {
    pub(crate) fn new(options: &ListenerOptions, certificates: Option<Arc<Certificates>>) -> Self {
        let timeout = options.handshake_timeout;
        let for_tls = options.tls.as_ref().and_then(|tls| tls.handshake_timeout).unwrap_or(timeout);
        Self {
            proxy: options.proxy_protocol,
            tls: certificates.map(|certificates| (certificates, for_tls)),
            websocket: options.websocket.clone().map(|websocket| (websocket, timeout)),
            max_handshakes: options.max_handshakes.max(1),
            under_way: Mutex::default(),
        }
    }

    /// Nothing comes before MQTT.
    pub(crate) fn is_open(&self) -> bool {
        self.proxy.is_none() && self.tls.is_none() && self.websocket.is_none()
    }
}

/// An opening among those of its listener, until it is dropped.
struct Turn {
    id: u64,
    place: Option<ListenerSlot>,
    shared: Arc<Shared>,
    supervisor: ActorRef<Notice>,
    address: SocketAddr,
    _memory: Held,
    /// It led to a connection, or has been counted as what it ended with.
    settled: bool,
}

impl Turn {
    fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            place.listener().entrance.under_way.lock().openings.remove(&self.id);
            Stats::subtract(&self.shared.stats.handshakes_open, 1);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.leave();
        if !self.settled {
            Stats::add(&self.shared.stats.handshakes_failed, 1);
        }
        if std::thread::panicking() {
            report_panic(&self.supervisor, &self.shared, self.address);
        }
    }
}

/// Begins an opening.
pub(crate) fn begin(
    shared: &Arc<Shared>,
    supervisor: &ActorRef<Notice>,
    place: ListenerSlot,
    socket: TcpStream,
    address: SocketAddr,
) {
    let listener = place.listener().clone();
    let under_way = &listener.entrance.under_way;
    let (id, oldest) = {
        let mut under_way = under_way.lock();
        let id = under_way.next;
        under_way.next += 1;
        under_way.openings.insert(id, None);
        let too_many = under_way.openings.len() > listener.entrance.max_handshakes;
        (id, if too_many { under_way.openings.pop_first() } else { None })
    };
    if let Some((_, Some(oldest))) = oldest {
        oldest.abort();
        Stats::add(&shared.stats.handshakes_displaced, 1);
    }
    Stats::add(&shared.stats.handshakes_open, 1);
    let turn = Turn {
        id,
        place: Some(place),
        shared: shared.clone(),
        supervisor: supervisor.clone(),
        address,
        _memory: Held::new(shared.router.memory(), HANDSHAKE),
        settled: false,
    };
    let task = super::super::spawn(run(turn, socket));
    if let Some(slot) = under_way.lock().openings.get_mut(&id) {
        *slot = Some(task.abort_handle());
    }
}

/// Why an opening did not lead to a connection.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Proxy(#[from] proxy::Error),
    #[error("no PROXY protocol header in time")]
    ProxyTimeout,
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
    #[error("TLS handshake not done in time")]
    TlsTimeout,
    #[error(transparent)]
    WebSocket(#[from] upgrade::Error),
    #[error("no WebSocket request in time")]
    WebSocketTimeout,
}

async fn run(mut turn: Turn, socket: TcpStream) {
    let Some(listener) = turn.place.as_ref().map(|place| place.listener().clone()) else { return };
    let shared = turn.shared.clone();
    let stop = shared.stop.notified();
    if shared.stopping.load(Ordering::Acquire) {
        return;
    }
    let opened = tokio::select! {
        opened = Box::pin(open(&listener.entrance, &shared, socket, turn.address)) => opened,
        () = stop => return,
    };
    match opened {
        Ok((_, peer)) if shared.options.access.is_banned(peer.address.ip()) => {
            // A proxy told an address that accept did not see.
            Stats::add(&shared.stats.connections_banned, 1);
        }
        Ok((transport, peer)) => {
            let Some(place) = turn.place.take() else { return };
            listener.entrance.under_way.lock().openings.remove(&turn.id);
            Stats::subtract(&shared.stats.handshakes_open, 1);
            turn.settled = true;
            // A task of its own: this one has grown with the handshake.
            let connection = Supervised::new(&shared, &turn.supervisor, place, transport, peer);
            super::super::spawn(connection);
        }
        Err(failed) => {
            let stats = &shared.stats;
            let (counter, what) = match &failed {
                Failed::Proxy(_) => (&stats.proxy_headers_refused, Opening::Proxy),
                Failed::Tls(_) => (&stats.tls_handshakes_failed, Opening::Tls),
                Failed::WebSocket(_) => (&stats.websocket_handshakes_failed, Opening::WebSocket),
                Failed::ProxyTimeout | Failed::TlsTimeout | Failed::WebSocketTimeout => {
                    (&stats.handshakes_timed_out, Opening::Late)
                }
            };
            Stats::add(counter, 1);
            shared.refusals.opening(what, listener.id(), turn.address, &failed.to_string());
        }
    }
}

async fn open(
    entrance: &Entrance,
    shared: &Shared,
    mut socket: TcpStream,
    address: SocketAddr,
) -> Result<(Transport, Peer), Failed> {
    let mut peer = Peer { address, certificate: None };
    if let Some(time) = entrance.proxy {
        let told = timeout(time, proxy::read(&mut socket))
            .await
            .map_err(|Elapsed { .. }| Failed::ProxyTimeout)??;
        peer.address = told.address.unwrap_or(address);
        peer.certificate = told.certificate;
    }
    let mut stream = match &entrance.tls {
        None => Stream::Tcp(socket),
        Some((certificates, time)) => {
            let failed = |error| Failed::Tls(io::Error::other(error));
            let mut tls = Box::new(TlsStream::new(socket, certificates.current()).map_err(failed)?);
            match timeout(*time, tls.handshake(&shared.arithmetic)).await {
                Err(Elapsed { .. }) => return Err(Failed::TlsTimeout),
                Ok(Err(error)) => {
                    // The alert says why, where it is heard.
                    say_goodbye(tls.socket(), shared.options.linger).await;
                    return Err(Failed::Tls(error));
                }
                Ok(Ok(())) => {}
            }
            if let Some(der) = tls.peer_certificates().and_then(<[_]>::first) {
                peer.certificate = tls::client_certificate(der).map(Arc::new);
            }
            Stream::Tls(tls)
        }
    };
    let Some((options, time)) = &entrance.websocket else { return Ok((Transport::Plain(stream), peer)) };
    let upgraded = timeout(*time, upgrade::upgrade(&mut stream, options, peer.address)).await;
    match upgraded.map_err(|Elapsed { .. }| Failed::WebSocketTimeout)? {
        Ok(upgraded) => {
            peer.address = upgraded.forwarded.unwrap_or(peer.address);
            let websocket = WebSocket::new(stream, upgraded.early);
            Ok((Transport::WebSocket(Box::new(websocket)), peer))
        }
        Err(error) => {
            let _ = timeout(shared.options.linger, stream.shutdown()).await;
            say_goodbye(stream.socket(), shared.options.linger).await;
            Err(error.into())
        }
    }
}

/// Closes our half and waits for the client to close its own: closing with unread input would reset the
/// connection, and what was said last would be lost.
async fn say_goodbye(socket: &mut TcpStream, patience: Duration) {
    let goodbye = async {
        socket.shutdown().await?;
        let mut ignored = [0; 1024];
        while socket.read(&mut ignored).await? > 0 {}
        io::Result::Ok(())
    };
    // Who does not close in time is cut off, who is gone already does not mind.
    let _ = timeout(patience, goodbye).await;
}
