//! The MQTT front: listeners, connections, sessions, router.
//!
//! ```text
//! listener -> supervisor -> (opening) -> connection -> publisher -> route -> sinks (bridges), inboxes (sessions)
//!                              |  ^            |
//!                              |  |            +-> ack tracker <- completions, through the inbox
//!                              v  |
//!                            session <-> keeper (while the client is away)
//! ```
//!
//! MQTT 3.1, 3.1.1 and 5.0 over TCP, TLS and WebSocket. [`Front::start`] opens it, the [`Router`] is how the
//! rest of the node takes part: message sinks by topic filter, and publications from inside.

mod ack_tracker;
mod authentication;
mod clients;
mod clock;
mod connection;
mod explain;
mod handshake;
mod inbox;
mod keeper;
mod lazy_deque;
mod level_tree;
mod listener;
mod memory;
mod options;
mod out_buffer;
mod outbox;
mod publication;
mod publisher;
mod rate;
mod read_ahead;
mod refusals;
mod releases;
mod requests;
mod retained;
mod route;
mod router;
mod session;
mod share;
mod shared;
mod stamps;
mod standstill;
mod stats;
mod store;
mod stored;
mod supervisor;
mod sys;
mod topic_aliases;
mod transport;
mod will;

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use crate::supervision::{Child, Root};
use crate::{access::Access, flow::Lives};
use causeway_protocol::mqtt::ReasonCode;
pub use clients::{ClientRow, Clients, ClientsPage};
use listener::Acceptor;
pub use listener::{ListenError, Listener};
pub use memory::half_of_memory;
pub use options::{
    CertificateFiles, CertificateUsername, ClientCertificates, ListenerKind, ListenerOptions, Options,
    QueueFull, TlsOptions, WebSocketOptions,
};
use ractor::Actor;
pub use rate::Rate;
pub use retained::RetainedLimits;
pub use route::{Route, RouteCache};
pub use router::{PublishProgress, Published, Router, SinkId};
pub use share::ShareStrategy;
use shared::Shared;
pub use stats::{Stats, StatsSnapshot};
pub use store::{FILE_NAME as SESSION_FILE, OpenError as StoreError};
use store::{LoadedSession, Store};
use supervisor::{ConnectionSupervisor, Notice};
pub use sys::SysEvents;
pub(crate) use sys::reserved_prefix;
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinHandle},
};
use transport::Certificates;
pub use transport::{ClientCertificate, Peer, TlsError, check as check_tls};

/// Why the front did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The certificates of a listener cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The stored sessions cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A supervisor could not be started.
    #[error("cannot start a connection supervisor: {0}")]
    Supervisor(#[from] ractor::SpawnErr),
}

/// Where the tasks of connections go: the one place to change for another runtime layout.
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(task)
}

/// The device side of the node.
pub struct Front;

impl Front {
    /// Opens the listeners and serves them until [`FrontHandle::stop`], or until the handle is dropped.
    /// Stored sessions are restored before the first of them opens.
    pub async fn start(options: Options, router: Arc<Router>) -> Result<FrontHandle, Error> {
        let sessions = StoredSessions::read(options.session_store.as_deref(), None, &router).await?;
        let root = Root::start().await?;
        let started = Self::start_with(options, router, sessions, &root).await;
        match started {
            Ok(mut handle) => {
                handle.own_root = Some(root);
                Ok(handle)
            }
            Err(error) => {
                root.stop();
                Err(error)
            }
        }
    }

    /// As [`Self::start`], with the sessions that were read before, under the supervisor of the node.
    pub async fn start_with(
        options: Options,
        router: Arc<Router>,
        mut sessions: StoredSessions,
        root: &Root,
    ) -> Result<FrontHandle, Error> {
        let count = match options.acceptors {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let found = std::mem::take(&mut sessions.found);
        let shared = Shared::new(options, router);
        // Dropped on the way out, it closes what is open.
        let mut handle = FrontHandle {
            listeners: Vec::new(),
            shared: shared.clone(),
            tasks: Vec::new(),
            reload: Arc::default(),
            supervisors: Vec::new(),
            acceptors: Vec::new(),
            own_root: None,
        };
        if let Some(store) = sessions.store.take() {
            shared.keeper.restore(&store, found);
        }
        let mut certificates_of_all = Vec::new();
        let mut shares: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
        for listener in &shared.options.listeners {
            let certificates = listener
                .tls
                .as_ref()
                .map(|tls| Certificates::load(&listener.id(), tls).map(Arc::new))
                .transpose()?;
            certificates_of_all.extend(certificates.clone());
            let (listener, acceptors) = listener::open(listener, count, certificates, &shared.stats)?;
            tracing::info!(node = shared.options.node, listener = listener.id(), address = %listener.address, "MQTT listener open");
            handle.listeners.push(listener);
            for (share, acceptor) in shares.iter_mut().zip(acceptors) {
                share.push(acceptor);
            }
        }
        let routes = Arc::downgrade(&shared.router);
        shared.options.access.on_reload(move || {
            // Publishers keep verdicts beside their routes: new routes, new verdicts.
            if let Some(router) = routes.upgrade() {
                router.changed();
            }
        });
        let keeper = Arc::downgrade(&shared.keeper);
        shared.options.access.on_revoke(move |user| {
            if let Some(keeper) = keeper.upgrade() {
                keeper.close_user(user, ReasonCode::AdministrativeAction);
            }
        });
        handle.tasks.push(spawn(shared.keeper.clone().run()).abort_handle());
        let watch = transport::keep_up_to_date(
            certificates_of_all,
            shared.options.certificate_poll,
            handle.reload.clone(),
            shared.stats.clone(),
        );
        handle.tasks.push(spawn(watch).abort_handle());
        let interval = shared.options.sys_interval;
        if !interval.is_zero() {
            handle.tasks.push(spawn(sys::run(shared.clone(), interval)).abort_handle());
        }
        for acceptors in shares {
            let shared = handle.shared.clone();
            let listening: Vec<_> = acceptors.iter().map(Arc::downgrade).collect();
            handle.acceptors.extend(acceptors);
            let start = move |root| -> Pin<Box<dyn Future<Output = _> + Send>> {
                let acceptors = listening.iter().filter_map(Weak::upgrade).collect();
                let arguments = (shared.clone(), acceptors);
                Box::pin(async move {
                    Ok(Actor::spawn_linked(None, ConnectionSupervisor, arguments, root).await?.0)
                })
            };
            handle.supervisors.push(root.supervise("supervisor of connections", start).await?);
        }
        Ok(handle)
    }
}

/// The stored sessions of a front that is about to start. They are read first: whether they are those of the
/// last run says what bridges may believe of what they remember.
#[derive(Default)]
pub struct StoredSessions {
    store: Option<Arc<Store>>,
    found: Vec<LoadedSession>,
    continues: bool,
}

impl StoredSessions {
    /// Reads the file at `path`, if there is one to be used, and hands its retained messages to the router.
    /// Without `lives` the file is taken for what the process before left.
    ///
    /// # Errors
    /// The file cannot be used, see [`StoreError`].
    pub async fn read(
        path: Option<&Path>,
        lives: Option<Lives>,
        router: &Arc<Router>,
    ) -> Result<Self, Error> {
        match path {
            Some(path) => read_store(path.to_owned(), lives, router).await,
            None => Ok(Self::default()),
        }
    }

    /// Whether these are all sessions as the life before left them. Not where sessions are kept in memory
    /// alone, where the file is new, or one from a backup.
    pub fn continue_the_last_run(&self) -> bool {
        self.continues
    }
}

impl Drop for StoredSessions {
    fn drop(&mut self) {
        if let Some(store) = &self.store {
            store.close();
        }
    }
}

async fn read_store(
    path: PathBuf,
    lives: Option<Lives>,
    router: &Arc<Router>,
) -> Result<StoredSessions, Error> {
    let start = std::time::Instant::now();
    let (memory, stats) = (router.memory(), router.stats().clone());
    let (sender, answer) = tokio::sync::oneshot::channel();
    // Its own thread: reading may take seconds, and nothing else is to wait for it.
    let opening = std::thread::Builder::new().name("causeway-load".to_owned()).spawn({
        let path = path.clone();
        move || drop(sender.send(Store::open(&path, lives, memory, stats)))
    });
    let io = |source| StoreError::Io { path: path.clone(), source };
    opening.map_err(io)?;
    let opened = answer.await.map_err(|_| io(std::io::Error::other("the reading thread ended")))?;
    let (store, loaded) = opened?;
    let (sessions, retained) = (loaded.sessions.len(), loaded.retained.len());
    router.use_store(&store, loaded.retained, clock::steady_now());
    let seconds = start.elapsed().as_secs_f32();
    tracing::info!(path = %path.display(), sessions, retained, seconds, "stored sessions read");
    Ok(StoredSessions { store: Some(store), found: loaded.sessions, continues: loaded.continues })
}

/// A running front.
pub struct FrontHandle {
    listeners: Vec<Listener>,
    shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
    /// Looks at certificate files.
    reload: Arc<Notify>,
    supervisors: Vec<Child<Notice>>,
    /// Keeps the sockets open while a supervisor is replaced.
    acceptors: Vec<Arc<Acceptor>>,
    /// The supervisor of the supervisors, where it is not the node's.
    own_root: Option<Root>,
}

impl FrontHandle {
    /// Where it listens, in the order of the options, with the ports that were taken for 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }

    /// The listeners, in the order of the options.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Who may connect and do what.
    pub fn access(&self) -> Arc<Access> {
        self.shared.options.access.clone()
    }

    /// All counters now.
    pub fn stats(&self) -> StatsSnapshot {
        self.shared.stats.snapshot()
    }

    /// The sessions, to look at.
    pub fn clients(&self) -> Clients {
        Clients::new(self.shared.keeper.clone())
    }

    /// Reads all certificate files again, now; new handshakes are served with them. Returns before that is
    /// done.
    pub fn reload_certificates(&self) {
        self.reload.notify_one();
    }

    /// Does the same as [`Self::reload_certificates`], for as long as the front lives, on each call.
    pub fn certificate_reload(&self) -> impl Fn() + Send + Sync + use<> {
        let reload = self.reload.clone();
        move || reload.notify_one()
    }

    /// Stops accepting, waits for the acknowledgements that sinks owe (at most `shutdown_drain`), tells MQTT
    /// 5 clients that the server shuts down (0x8B), and closes all connections. Stored sessions stay, others
    /// end.
    pub async fn stop(mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.stop.notify_waiters();
        for supervisor in &self.supervisors {
            // Its accept loops end with it.
            let timeout = Some(Duration::from_secs(1));
            if let Err(error) = supervisor.actor().stop_and_wait(None, timeout).await {
                tracing::warn!(%error, "a connection supervisor did not stop");
            }
        }
        self.acceptors.clear();
        let options = &self.shared.options;
        let patience = options.shutdown_drain + options.linger * 2;
        let deadline = tokio::time::Instant::now() + patience;
        self.shared.keeper.close_all(ReasonCode::ServerShuttingDown);
        while self.shared.stats.snapshot().connections > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let left = self.shared.stats.snapshot().connections;
        if left > 0 {
            tracing::warn!(connections = left, "connections did not close in time");
        }
        if let Some(store) = self.shared.router.store().cloned()
            && tokio::task::spawn_blocking(move || store.close_and_wait()).await.is_err()
        {
            tracing::error!("the stored sessions were not closed");
        }
    }
}

impl Drop for FrontHandle {
    fn drop(&mut self) {
        for supervisor in &self.supervisors {
            supervisor.actor().stop(None);
        }
        if let Some(root) = &self.own_root {
            root.stop();
        }
        // After a stop there is no receiver.
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.stop.notify_waiters();
        self.shared.keeper.close_all(ReasonCode::ServerShuttingDown);
        for task in &self.tasks {
            task.abort();
        }
        if let Some(store) = self.shared.router.store() {
            store.close();
        }
    }
}
