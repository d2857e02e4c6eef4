//! One node: the parts put together, started in the order in which nothing is lost, and stopped in the
//! reverse of it.
//!
//! * Stored sessions are read before a bridge opens its disk buffer: they say whether what it remembers of
//!   them is still meant.
//! * Producer bridges are registered before a listener opens: no publication finds them missing.
//! * Listeners are open before a consumer bridge fetches its first record: no record is published to
//!   nobody because its subscribers could not connect yet.
//! * On a stop consumers go first (they commit what was handed over), then the listeners (what was promised
//!   to publishers is waited for), then the producer bridges.

use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::access::Access;
use crate::admin::{AdminHandle, AdminServer};
use crate::bridge::loops;
use crate::bridge::overlay::{self, Overlay};
use crate::bridge::service::{BridgeContext, Bridges, Kind};
use crate::config::Config;
use crate::flow::Lives;
use crate::kafka::producer::NodeMemory;
use crate::life;
use crate::mqtt::{self, Front, FrontHandle, Listener, Router, StoredSessions};
use crate::operations::NodeAdmin;
use crate::supervision::Root;
use crate::sysmon;

/// How long bridges may take to finish what they hold when the node stops.
const DRAIN: Duration = Duration::from_secs(10);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error("the data directory {path} (node.data_dir) cannot be used: {source}")]
    DataDir {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another node has the data directory.
    #[error("another causeway is using the data directory {0}; give this one its own with node.data_dir")]
    DataDirTaken(PathBuf),
    /// Access control cannot be set up.
    #[error(transparent)]
    Access(#[from] crate::access::Error),
    /// A listener cannot be opened.
    #[error(transparent)]
    Front(#[from] crate::mqtt::Error),
    /// The admin link cannot be opened.
    #[error("the admin link (admin.bind) cannot be opened: {0}")]
    Admin(crate::admin::StartError),
    /// Changes made at run time cannot be read.
    #[error(transparent)]
    Overlay(#[from] crate::bridge::overlay::Error),
    /// Bridges of the configuration file and bridges that were changed at run time send messages in a loop.
    #[error(
        "{}\nbridges that were changed at run time are in {overlay}; one that is described anew in the configuration file is what that says",
        .loops.join("\n")
    )]
    Loops {
        /// Each of them, and what to do about it.
        loops: Vec<String>,
        /// File of the changes.
        overlay: PathBuf,
    },
    /// An actor could not be spawned.
    #[error("a part of the node did not start: {0}")]
    Service(#[from] ractor::SpawnErr),
}

/// A running node.
pub struct Node {
    bridges: Bridges,
    front: FrontHandle,
    admin: Option<AdminHandle>,
    root: Root,
    /// Held as long as the node runs; the system lets go of it when the process ends, however it ends.
    _lock: File,
}

impl Node {
    /// Starts everything that the configuration names.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let lock = lock_data_dir(&config.node.data_dir)?;
        let access = Access::start(config.access_options(&config.node.data_dir))?;
        access.watch();
        let options = mqtt::Options { access: access.clone(), ..config.mqtt_options() };
        let router = Router::new(config.retained_limits());
        let stats = router.stats().clone();
        let memory =
            NodeMemory::new(usize::try_from(config.node.max_buffer_memory.bytes()).unwrap_or(usize::MAX));
        let sysmon = &config.sysmon.os;
        let (watermark, interval) = (sysmon.sysmem_high_watermark, sysmon.mem_check_interval);
        tokio::spawn(sysmon::watch(memory.clone(), watermark, interval, sysmon::memory_use));
        let lives = life::begin(&config.node.data_dir)
            .map_err(|source| Error::DataDir { path: config.node.data_dir.clone(), source })?;
        let sessions = StoredSessions::read(options.session_store.as_deref(), Some(lives), &router).await?;
        // The bridges' memory of sessions is worth as much as the sessions.
        let before = lives.before.filter(|_| sessions.continue_the_last_run());
        let surroundings = BridgeContext {
            router: router.clone(),
            clients: Arc::default(),
            node: config.node.name.as_str().into(),
            data_dir: config.node.data_dir.as_path().into(),
            lives: Lives { before, ..lives },
            memory: memory.clone(),
            drain: DRAIN,
        };
        let possible = loops::possible(&config.bridges);
        let (overlay, wanted) = Overlay::open(&config.node.data_dir, config.bridges)?;
        let wrong = loops::at_start(&wanted, &possible);
        if !wrong.is_empty() {
            return Err(Error::Loops { loops: wrong, overlay: config.node.data_dir.join(overlay::FILE) });
        }
        let (producers, consumers): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|(id, _)| id.kind == Kind::Producer);
        let root = Root::start().await?;
        let bridges = Bridges::start_under(surroundings, Some(overlay), &root).await?;
        // A bridge that cannot be started is logged, shown with its reason and tried again; the others go on.
        for (id, definition) in producers {
            let _ = bridges.put(&id.name, definition).await;
        }
        let front = Front::start_with(options, router, sessions, &root).await?;
        for (id, definition) in consumers {
            let _ = bridges.put(&id.name, definition).await;
        }
        let admin = if config.admin.enable {
            let service = Arc::new(NodeAdmin::new(config.node.name, bridges.clone(), &front, stats));
            Some(AdminServer::start(config.admin.bind, service).await.map_err(Error::Admin)?)
        } else {
            None
        };
        Ok(Self { bridges, front, admin, root, _lock: lock })
    }

    /// Addresses of the MQTT listeners, by name.
    pub fn mqtt_addresses(&self) -> Vec<(String, SocketAddr)> {
        let listeners = self.front.listeners().iter();
        listeners.map(|listener| (listener.name.clone(), listener.address)).collect()
    }

    /// The MQTT listeners.
    pub fn listeners(&self) -> &[Listener] {
        self.front.listeners()
    }

    /// Reads the certificate files of all listeners again, on each call.
    pub fn certificate_reload(&self) -> impl Fn() + Send + Sync + use<> {
        self.front.certificate_reload()
    }

    /// Address of the admin link.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(AdminHandle::local_addr)
    }

    /// The bridges.
    pub fn bridges(&self) -> &Bridges {
        &self.bridges
    }

    /// Resolves when parts of the node have failed so often that the process is to end, with the reason in
    /// words.
    pub async fn failed(&self) -> String {
        self.root.failed().await
    }

    /// Stops everything, waiting a bounded time for what is under way.
    pub async fn stop(self) {
        let _ = self.bridges.stop_all(Kind::Consumer).await;
        self.front.stop().await;
        let _ = self.bridges.stop_all(Kind::Producer).await;
        if let Some(admin) = self.admin {
            admin.shutdown().await;
        }
        self.root.stop();
    }
}

fn lock_data_dir(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::DataDir { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(failed)?;
    let file = File::create(path.join("causeway.lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::DataDirTaken(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Runs a node until the process is told to end (SIGTERM, SIGINT), then stops it.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let node = Node::start(config).await?;
    for listener in node.listeners() {
        println!("listening {} {} ({})", listener.kind().scheme(), listener.address, listener.name);
    }
    if let Some(address) = node.admin_address() {
        println!("listening admin {address}");
    }
    let reload = node.certificate_reload();
    tokio::select! {
        end = until_end(&node) => return stop(node, end?).await,
        failed = on_hangup(reload) => failed?,
    }
    stop(node, None).await
}

/// Waits until the process is told to end, or the node [fails](Node::failed); then answers why.
pub async fn until_end(node: &Node) -> std::io::Result<Option<String>> {
    tokio::select! {
        end = wait_for_end() => end.map(|()| None),
        reason = node.failed() => Ok(Some(reason)),
    }
}

/// Stops a node.
///
/// # Errors
/// `failure`, if there is one.
pub async fn stop(node: Node, failure: Option<String>) -> anyhow::Result<()> {
    println!("stopping");
    let Some(reason) = failure else {
        node.stop().await;
        return Ok(());
    };
    // Its parts may not answer any more.
    let _ = tokio::time::timeout(DRAIN * 2, node.stop()).await;
    anyhow::bail!(
        "{reason}. The process ends so that it is started again with nothing left of the failure (systemd does that with \
         Restart=on-failure); please report the first error in the log"
    )
}

/// Does something on each SIGHUP; returns only if it cannot.
async fn on_hangup(act: impl Fn()) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup())?;
    while hangup.recv().await.is_some() {
        act();
    }
    Ok(())
}

/// Returns when the process is told to end.
async fn wait_for_end() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervision::MAX_FAILURES;

    #[tokio::test]
    async fn a_node_whose_parts_fail_too_often_ends_with_the_reason() {
        let data_dir = tempfile::tempdir().unwrap();
        let text = format!(
            "node.data_dir = {:?}, listeners.tcp.default.bind = \"127.0.0.1:0\", admin.enable = false",
            data_dir.path()
        );
        let node = Node::start(crate::config::load_text("test", &text).unwrap().value).await.unwrap();
        for _ in 0..=MAX_FAILURES {
            node.bridges.panic().await;
        }
        let reason = until_end(&node).await.unwrap();
        let error = stop(node, reason).await.unwrap_err().to_string();
        for part in ["bridge service: on purpose", "6 times within 60 s", "Restart=on-failure"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
