//! One [`ConnectionSupervisor`] a core: it keeps the accept loops of its core running and hears of every
//! connection whose task panicked.
//!
//! A connection is a task, not an actor (an idle actor would be three times the size of an idle
//! connection). Its panic ends the task alone: its lease gives the session back on the way out, and the
//! guard around it tells the supervisor.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::AbortHandle;

use super::{
    connection::Connection,
    listener::{self, Acceptor, Place},
    shared::Shared,
    stats::Stats,
    transport::{Peer, Transport},
};

/// Messages to a supervisor; all of them rare.
pub(crate) enum Notice {
    /// A connection's task panicked.
    ConnectionPanicked(SocketAddr),
    /// An accept loop ended, which it never should.
    AcceptorEnded(Arc<Acceptor>),
}

/// See the module.
pub(crate) struct ConnectionSupervisor;

/// The accept loops a supervisor runs.
pub(crate) struct Running {
    shared: Arc<Shared>,
    loops: Vec<AbortHandle>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for accept_loop in &self.loops {
            accept_loop.abort();
        }
    }
}

impl Actor for ConnectionSupervisor {
    type Msg = Notice;
    type State = Running;
    type Arguments = (Arc<Shared>, Vec<Arc<Acceptor>>);

    async fn pre_start(
        &self,
        myself: ActorRef<Notice>,
        (shared, acceptors): Self::Arguments,
    ) -> Result<Running, ActorProcessingErr> {
        let mut running = Running { shared, loops: Vec::new() };
        for acceptor in acceptors {
            running.start(acceptor, &myself);
        }
        Ok(running)
    }

    async fn handle(
        &self,
        myself: ActorRef<Notice>,
        notice: Notice,
        running: &mut Running,
    ) -> Result<(), ActorProcessingErr> {
        match notice {
            Notice::ConnectionPanicked(peer) => {
                Stats::add(&running.shared.stats.connections_panicked, 1);
                tracing::error!(%peer, "a connection panicked; its client was cut off");
            }
            Notice::AcceptorEnded(acceptor) => {
                tracing::error!(
                    listener = acceptor.listener.id(),
                    "an accept loop ended; it is started again"
                );
                running.loops.retain(|accept_loop| !accept_loop.is_finished());
                running.start(acceptor, &myself);
            }
        }
        Ok(())
    }
}

impl Running {
    fn start(&mut self, acceptor: Arc<Acceptor>, supervisor: &ActorRef<Notice>) {
        let guard = AcceptorGuard { acceptor: acceptor.clone(), supervisor: supervisor.clone() };
        let (shared, supervisor) = (self.shared.clone(), supervisor.clone());
        let accept_loop = super::spawn(async move {
            let _guard = guard;
            listener::accept(&acceptor, &shared, &supervisor).await;
        });
        self.loops.push(accept_loop.abort_handle());
    }
}

struct AcceptorGuard {
    acceptor: Arc<Acceptor>,
    supervisor: ActorRef<Notice>,
}

impl Drop for AcceptorGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Fails only when the supervisor is gone as well, and then nothing is to be restarted.
            let _ = self.supervisor.cast(Notice::AcceptorEnded(self.acceptor.clone()));
        }
    }
}

/// A connection with the guard that reports its panic.
pub(crate) struct Supervised {
    connection: Connection,
    supervisor: ActorRef<Notice>,
}

impl Supervised {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        supervisor: &ActorRef<Notice>,
        place: Place,
        transport: Transport,
        peer: Peer,
    ) -> Self {
        Self {
            connection: Connection::new(shared.clone(), place, transport, peer),
            supervisor: supervisor.clone(),
        }
    }
}

impl Future for Supervised {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.connection).poll(cx)
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // A connection counts until its session is back with the keeper.
        self.connection.let_go();
        if std::thread::panicking() {
            // Fails only while the front stops.
            let _ = self.supervisor.cast(Notice::ConnectionPanicked(self.connection.peer.address));
        }
    }
}
