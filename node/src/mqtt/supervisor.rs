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
    listener::{self, Acceptor, ListenerSlot},
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
    /// A panic, for tests.
    #[cfg(test)]
    Panic,
}

/// Tells the supervisor of a connection's panic; where that has failed, its successor does not know the
/// connection, and the panic is counted here.
pub(crate) fn report_panic(supervisor: &ActorRef<Notice>, shared: &Shared, peer: SocketAddr) {
    if supervisor.cast(Notice::ConnectionPanicked(peer)).is_err() {
        note_panic(shared, peer);
    }
}

fn note_panic(shared: &Shared, peer: SocketAddr) {
    Stats::add(&shared.stats.connections_panicked, 1);
    tracing::error!(%peer, "a connection panicked; its client was cut off");
}

/// Supervisor of the connections of one core.
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

    /// The state goes to the supervisor; no connection is accepted any more when the end is known.
    async fn post_stop(&self, _: ActorRef<Notice>, running: &mut Running) -> Result<(), ActorProcessingErr> {
        for accept_loop in running.loops.drain(..) {
            accept_loop.abort();
        }
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Notice>,
        notice: Notice,
        running: &mut Running,
    ) -> Result<(), ActorProcessingErr> {
        match notice {
            Notice::ConnectionPanicked(peer) => note_panic(&running.shared, peer),
            #[cfg(test)]
            Notice::Panic => std::panic::resume_unwind(Box::new("on purpose")),
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
        place: ListenerSlot,
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
            report_panic(&self.supervisor, &self.connection.shared, self.connection.peer.address);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::timeout,
    };

    use super::super::{Front, FrontHandle, ListenerOptions, Options, RetainedLimits, Router, StatsSnapshot};

    /// A publication to this topic makes its connection panic, in unit tests.
    pub(in crate::mqtt) const PANIC: &str = "test/panic";

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A client of MQTT 3.1.1 with this client id of one letter, a will for the topic `w` and a session that
    /// lasts; is the session there?
    async fn connect(front: &FrontHandle, id: u8) -> (TcpStream, bool) {
        let mut socket = TcpStream::connect(front.addresses()[0]).await.unwrap();
        let packet =
            [b"\x10\x13\x00\x04MQTT\x04\x0c\x00\x00\x00\x01", &[id][..], b"\x00\x01w\x00\x01x"].concat();
        socket.write_all(&packet).await.unwrap();
        let mut answer = [0; 4];
        timeout(PATIENCE, socket.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!([answer[0], answer[1], answer[3]], [0x20, 2, 0], "{answer:?}");
        (socket, answer[2] == 1)
    }

    /// What comes next is this.
    async fn reads(socket: &mut TcpStream, expected: &[u8]) {
        let mut answer = vec![0; expected.len()];
        timeout(PATIENCE, socket.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, expected);
    }

    async fn is_served(socket: &mut TcpStream) {
        socket.write_all(b"\xC0\x00").await.unwrap();
        let mut answer = [0; 2];
        timeout(PATIENCE, socket.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, [0xD0, 0]);
    }

    async fn until(front: &FrontHandle, condition: impl Fn(&StatsSnapshot) -> bool) {
        let wait = async {
            while !condition(&front.stats()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(timeout(PATIENCE, wait).await.is_ok(), "{:#?}", front.stats());
    }

    #[tokio::test]
    async fn a_panic_is_the_loss_of_one_connection_and_is_counted() {
        let options = Options {
            listeners: vec![ListenerOptions::new("test", "127.0.0.1:0".parse().unwrap())],
            ..Options::default()
        };
        let front = Front::start(options, Router::new(RetainedLimits::default())).await.unwrap();
        let (mut bystander, _) = connect(&front, b'b').await;
        bystander.write_all(b"\x82\x06\x00\x01\x00\x01w\x00").await.unwrap();
        reads(&mut bystander, b"\x90\x03\x00\x01\x00").await;
        for count in 1..=3 {
            let (mut victim, present) = connect(&front, b'v').await;
            assert_eq!(present, count > 1);
            if present {
                // What it had not acknowledged, and what came while it was away.
                reads(&mut victim, &[0x3a, 0x06, 0, 1, b'v', 0, count as u8 * 2 - 3, b'1']).await;
                reads(&mut victim, &[0x32, 0x06, 0, 1, b'v', 0, count as u8 * 2 - 2, b'2']).await;
                for identifier in [count as u8 * 2 - 3, count as u8 * 2 - 2] {
                    victim.write_all(&[0x40, 2, 0, identifier]).await.unwrap();
                }
            } else {
                victim.write_all(b"\x82\x06\x00\x01\x00\x01v\x01").await.unwrap();
                reads(&mut victim, b"\x90\x03\x00\x01\x01").await;
            }
            is_served(&mut victim).await;
            bystander.write_all(b"\x32\x06\x00\x01v\x00\x011").await.unwrap();
            reads(&mut bystander, b"\x40\x02\x00\x01").await;
            reads(&mut victim, &[0x32, 0x06, 0, 1, b'v', 0, count as u8 * 2 - 1, b'1']).await;
            victim.write_all(&[b"\x30\x0c\x00\x0a", PANIC.as_bytes()].concat()).await.unwrap();
            let mut rest = Vec::new();
            let _ = timeout(PATIENCE, victim.read_to_end(&mut rest)).await.expect("the connection ends");
            until(&front, |stats| stats.connections_panicked == count && stats.connections == 1).await;
            assert_eq!(front.stats().sessions, 2);
            assert_eq!(front.listeners()[0].connections(), 1);
            reads(&mut bystander, b"\x30\x04\x00\x01wx").await;
            bystander.write_all(b"\x32\x06\x00\x01v\x00\x022").await.unwrap();
            reads(&mut bystander, b"\x40\x02\x00\x02").await;
            is_served(&mut bystander).await;
        }
        front.stop().await;
    }

    #[tokio::test]
    async fn a_supervisor_that_panics_cuts_no_client_off_and_its_listeners_stay_open() {
        let options = Options {
            listeners: vec![ListenerOptions::new("test", "127.0.0.1:0".parse().unwrap())],
            acceptors: 1,
            ..Options::default()
        };
        let front = Front::start(options, Router::new(RetainedLimits::default())).await.unwrap();
        let (mut before, _) = connect(&front, b'b').await;
        before.write_all(b"\x82\x06\x00\x01\x00\x01v\x01").await.unwrap();
        reads(&mut before, b"\x90\x03\x00\x01\x01").await;
        let failed = front.supervisors[0].actor();
        failed.cast(super::Notice::Panic).unwrap();
        until(&front, |_| front.supervisors[0].actor().get_id() != failed.get_id()).await;
        is_served(&mut before).await;
        let (mut after, _) = connect(&front, b'a').await;
        after.write_all(b"\x32\x06\x00\x01v\x00\x011").await.unwrap();
        reads(&mut after, b"\x40\x02\x00\x01").await;
        reads(&mut before, &[0x32, 0x06, 0, 1, b'v', 0, 1, b'1']).await;
        // The successor hears of new connections; those of before are counted all the same.
        before.write_all(&[b"\x30\x0c\x00\x0a", PANIC.as_bytes()].concat()).await.unwrap();
        until(&front, |stats| stats.connections_panicked == 1).await;
        after.write_all(&[b"\x30\x0c\x00\x0a", PANIC.as_bytes()].concat()).await.unwrap();
        until(&front, |stats| stats.connections_panicked == 2 && stats.connections == 0).await;
        front.stop().await;
    }
}
