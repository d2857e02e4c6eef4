//! The node's side of the admin link.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use causeway_protocol::wire;
use serde::Serialize;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::link::{Link, LinkError, Patience};
use super::reserve::{ACCEPT_PAUSE, Reserve};
use super::service::AdminService;
use super::v1::{self, AdminError, Answer, Request};
use crate::listening;
use crate::throttle::Doublings;

/// Limits of the admin link.
#[derive(Debug, Clone, Copy)]
pub struct AdminOptions {
    /// Connections at one time; one more is told so and closed.
    pub max_connections: usize,
    /// Operations at one time, those without a waiting caller included.
    pub max_operations: usize,
    /// How long a connection may be silent between two requests.
    pub idle: Duration,
    /// How long a request may take to arrive once it has begun.
    pub read: Duration,
    /// How long an answer may take to be taken.
    pub write: Duration,
    /// How long the caller of an operation is kept waiting.
    pub operation: Duration,
    /// How long a stop waits for connections to end.
    pub stop: Duration,
}

impl Default for AdminOptions {
    fn default() -> Self {
        Self {
            max_connections: 32,
            max_operations: 32,
            idle: Duration::from_mins(5),
            read: Duration::from_secs(5),
            write: Duration::from_secs(5),
            operation: Duration::from_secs(30),
            stop: Duration::from_secs(2),
        }
    }
}

/// Connections that the system keeps while others are accepted.
const BACKLOG: i32 = 128;
/// Refusals at one time; what comes beyond them is closed without a word.
const MAX_REFUSALS: usize = 8;
/// Why the admin link cannot be opened.
#[derive(Debug, Error)]
pub enum StartError {
    /// Reachable from elsewhere.
    #[error(
        "admin address {0} is not on loopback: the admin link has no authentication, use 127.0.0.1 or [::1]"
    )]
    NotLoopback(SocketAddr),
    /// The address cannot be used.
    #[error("cannot listen for the admin link on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
}

/// Starts the admin link of a node.
#[derive(Debug)]
pub struct AdminServer;

impl AdminServer {
    /// Listens on `bind` (port 0: a free one) and serves `service` until the handle is shut down or
    /// dropped.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(bind: SocketAddr, service: Arc<dyn AdminService>) -> Result<AdminHandle, StartError> {
        Self::start_with(bind, service, AdminOptions::default()).await
    }

    /// [`start`](Self::start) with other limits.
    ///
    /// # Errors
    /// [`StartError`].
    #[expect(clippy::unused_async, reason = "it needs a running Tokio, which async makes hard to forget")]
    pub async fn start_with(
        bind: SocketAddr,
        service: Arc<dyn AdminService>,
        options: AdminOptions,
    ) -> Result<AdminHandle, StartError> {
        if !bind.ip().to_canonical().is_loopback() {
            return Err(StartError::NotLoopback(bind));
        }
        let failed = |source| StartError::Bind { address: bind, source };
        let listener = listen(bind).map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = watch::channel(());
        let server =
            Server { service, options, operations: Arc::new(Semaphore::new(options.max_operations)) };
        let task = tokio::spawn(accept(listener, server, stopped));
        Ok(AdminHandle { local_addr, stop, task })
    }
}

fn listen(bind: SocketAddr) -> io::Result<TcpListener> {
    let socket = listening::socket(bind)?;
    socket.bind(&bind.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A running admin link; dropping it stops it.
#[derive(Debug)]
pub struct AdminHandle {
    local_addr: SocketAddr,
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl AdminHandle {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops listening, ends the connections and waits until they have ended
    /// ([`AdminOptions::stop`] at most).
    pub async fn shutdown(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            warn!(%error, "the admin link ended badly");
        }
    }
}

/// State that every connection needs.
#[derive(Clone)]
struct Server {
    service: Arc<dyn AdminService>,
    options: AdminOptions,
    operations: Arc<Semaphore>,
}

async fn accept(listener: TcpListener, server: Server, mut stopped: watch::Receiver<()>) {
    let places = Arc::new(Semaphore::new(server.options.max_connections));
    let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
    let mut connections = JoinSet::new();
    let mut reserve = Reserve::take();
    let failures = Doublings::default();
    loop {
        reserve.fill();
        let accepted = tokio::select! {
            // Nothing is ever sent: the sender's end is the signal.
            _ = stopped.changed() => break,
            Some(ended) = connections.join_next() => {
                if let Ok(stream) = ended {
                    reserve.keep(stream);
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let accepted = match accepted {
            Ok((stream, _)) => Ok(stream),
            Err(error) => reserve.accept(&listener, error).await,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                if let Some(times) = failures.count() {
                    warn!(%error, times, "the admin link cannot accept a connection");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            connections.spawn(connection(stream, server.clone(), stopped.clone(), place));
        } else if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
            connections.spawn(refuse(stream, server.options, place));
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(server.options.stop, all_ended).await.is_err() {
        connections.shutdown().await;
    }
}

async fn refuse(stream: TcpStream, options: AdminOptions, _place: OwnedSemaphorePermit) -> TcpStream {
    let busy = AdminError::Busy { what: "admin connections".into(), limit: options.max_connections as u64 };
    let mut link = Link::new(stream, v1::requests(), v1::answers());
    last_word(&mut link, &busy, options).await;
    link.into_stream()
}

/// Sends an error and ends the connection.
async fn last_word(link: &mut Link, error: &AdminError, options: AdminOptions) {
    match link.send(v1::VERSION, v1::KIND_ERROR, error, options.write).await {
        Ok(()) => link.close().await,
        Err(error) => debug!(%error, "admin connection ended before it was told why"),
    }
}

/// Serves a connection to its end and returns its socket.
async fn connection(
    stream: TcpStream,
    server: Server,
    stopped: watch::Receiver<()>,
    _place: OwnedSemaphorePermit,
) -> TcpStream {
    let mut link = Link::new(stream, v1::requests(), v1::answers());
    converse(&mut link, &server, stopped).await;
    link.into_stream()
}

async fn converse(link: &mut Link, server: &Server, mut stopped: watch::Receiver<()>) {
    let options = server.options;
    let patience = Patience { first: options.idle, rest: options.read };
    loop {
        let received = tokio::select! {
            _ = stopped.changed() => return,
            received = link.receive(patience) => received,
        };
        let request = match received {
            Ok(Some(frame)) => read_request(&frame),
            Ok(None) => return,
            Err(LinkError::Wire(error)) => Err(refusal(error)),
            Err(error) => return debug!(%error, "admin connection ended"),
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => return last_word(link, &error, options).await,
        };
        let sent = match server.serve(request).await {
            Ok(answer) => send_answer(link, &answer, options).await,
            Err(error) => link.send(v1::VERSION, v1::KIND_ERROR, &error, options.write).await,
        };
        if let Err(error) = sent {
            return debug!(%error, "admin connection ended before its answer was taken");
        }
    }
}

fn refusal(error: wire::Error) -> AdminError {
    match error {
        wire::Error::Version { got, first, last, .. } => AdminError::Version { got, first, last },
        error => AdminError::Malformed { detail: error.to_string() },
    }
}

fn read_request(frame: &wire::Frame) -> Result<Request, AdminError> {
    if frame.envelope.kind != v1::KIND_REQUEST {
        let detail = format!("kind {} is no request, {} is", frame.envelope.kind, v1::KIND_REQUEST);
        return Err(AdminError::Malformed { detail });
    }
    frame.header().map_err(refusal)
}

async fn send_answer<T: Serialize>(
    link: &mut Link,
    answer: &T,
    options: AdminOptions,
) -> Result<(), LinkError> {
    match link.send(v1::VERSION, v1::KIND_ANSWER, answer, options.write).await {
        Err(LinkError::Wire(error)) => {
            let error = AdminError::failed(format_args!("{error}: ask for less at one time"));
            link.send(v1::VERSION, v1::KIND_ERROR, &error, options.write).await
        }
        sent => sent,
    }
}

impl Server {
    /// Runs the operation in a task of its own, so that it ends properly whatever becomes of the caller.
    async fn serve(&self, request: Request) -> Result<Answer, AdminError> {
        let Ok(place) = Arc::clone(&self.operations).try_acquire_owned() else {
            let limit = self.options.max_operations as u64;
            return Err(AdminError::Busy { what: "admin operations".into(), limit });
        };
        let service = Arc::clone(&self.service);
        let operation = tokio::spawn(async move {
            let _place = place;
            match request {
                Request::Node => service.node().await.map(Answer::Node),
                Request::Bridges => service.bridges().await.map(Answer::Bridges),
                Request::Stats { bridge, partitions } => {
                    service.stats(bridge, partitions).await.map(Answer::Stats)
                }
                Request::BridgeRestart { id } => service.restart_bridge(id).await.map(Answer::Bridge),
                Request::BridgeEnable { id, on } => service.enable_bridge(id, on).await.map(Answer::Bridge),
                Request::Clients { client_id, after, limit } => {
                    service.clients(client_id, after, limit).await.map(Answer::Clients)
                }
                Request::Mqtt => service.mqtt().await.map(Answer::Mqtt),
                Request::Access(request) => service.access(request).await.map(Answer::Access),
                Request::Bridge(request) => service.bridge(request).await.map(Answer::BridgeDone),
            }
        });
        match timeout(self.options.operation, operation).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(AdminError::failed(format_args!("the operation ended badly: {error}"))),
            Err(_) => Err(AdminError::Timeout { seconds: self.options.operation.as_secs() }),
        }
    }
}
