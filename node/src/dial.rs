//! TCP connections to a host name that stands for several addresses.
//!
//! Attempts are staggered, in the spirit of RFC 8305: where one address has not answered for a moment the
//! next one is tried beside it, and the first that answers wins. An address that swallows connections so
//! costs [`STAGGER`], not the whole time. Which one failed last is remembered by host and port, and the next
//! attempt begins behind it.
//!
//! Every outgoing connection of the node is made here, `doctor`'s too: what it finds is what a bridge would.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Head start of an address before the next one is tried as well (RFC 8305 section 5). Less where the time
/// would not be enough for all addresses.
const STAGGER: Duration = Duration::from_millis(250);

/// Most hosts that are remembered; all are forgotten beyond it, which costs a head start each.
const MAX_REMEMBERED: usize = 1024;

/// Addresses by host and port.
type Addresses = HashMap<(Box<str>, u16), SocketAddr>;

/// The address of a host and port that failed last.
static FAILED_LAST: Mutex<Option<Addresses>> = Mutex::new(None);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The name has no address.
    #[error("the name has no address ({0})")]
    Unresolvable(io::Error),
    /// The last address that was tried.
    #[error("{0}: {1}")]
    Failed(std::net::IpAddr, io::Error),
}

impl Error {
    /// True where the connection is refused.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Failed(_, error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// The addresses of a host, in the order in which they are to be tried. The caller bounds the time.
pub(crate) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
    let resolved = tokio::net::lookup_host((host, port)).await.map_err(Error::Unresolvable)?;
    let mut addresses: Vec<_> = resolved.collect();
    if addresses.is_empty() {
        return Err(Error::Unresolvable(io::ErrorKind::NotFound.into()));
    }
    begin_behind(&mut addresses, failed_last(host, port));
    Ok(addresses)
}

/// Remembers that an address of a host did not do what it should, if only after it was connected.
pub(crate) fn remember_failure(host: &str, port: u16, address: SocketAddr) {
    let mut failed = FAILED_LAST.lock();
    let failed = failed.get_or_insert_default();
    if failed.len() >= MAX_REMEMBERED {
        failed.clear();
    }
    failed.insert((host.into(), port), address);
}

/// The address of a host that failed last.
pub(crate) fn failed_last(host: &str, port: u16) -> Option<SocketAddr> {
    FAILED_LAST.lock().as_ref().and_then(|failed| failed.get(&(host.into(), port)).copied())
}

fn begin_behind(addresses: &mut [SocketAddr], failed: Option<SocketAddr>) {
    if let Some(at) = addresses.iter().position(|address| Some(*address) == failed) {
        addresses.rotate_left(at + 1);
    }
}

/// Between the attempts at `count` addresses: half of the time is left for the last one.
fn stagger(count: usize, budget: Duration) -> Duration {
    let shares = u32::try_from(count).unwrap_or(u32::MAX).max(1).saturating_mul(2);
    STAGGER.min(budget / shares)
}

/// Connects with `connect` to the first of a host's addresses that answers. `budget` is the time that the
/// caller allows, for all addresses together; the caller ends the attempt after it.
pub(crate) async fn dial<F>(
    host: &str,
    port: u16,
    addresses: Vec<SocketAddr>,
    budget: Duration,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<TcpStream, Error>
where
    F: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    let stagger = stagger(addresses.len(), budget);
    let mut waiting = addresses.into_iter().peekable();
    let mut attempts = JoinSet::new();
    let mut last = Error::Unresolvable(io::ErrorKind::NotFound.into());
    while let Some(address) = waiting.next() {
        let attempt = connect(address);
        attempts.spawn(async move { (address, attempt.await) });
        let head_start = tokio::time::sleep(stagger);
        tokio::pin!(head_start);
        // Until the next one's turn, or the end of all where this was the last.
        loop {
            let ended = tokio::select! {
                ended = attempts.join_next() => ended,
                () = &mut head_start, if waiting.peek().is_some() => {
                    remember_failure(host, port, address);
                    break;
                }
            };
            match ended {
                Some(Ok((_, Ok(stream)))) => return Ok(stream),
                Some(Ok((failed, Err(error)))) => {
                    remember_failure(host, port, failed);
                    last = Error::Failed(failed.ip(), error);
                }
                // A panic of an attempt, which counts as its failure.
                Some(Err(_)) => {}
                None => break,
            }
            if waiting.peek().is_some() {
                break;
            }
        }
    }
    Err(last)
}

/// Resolves and connects within `budget`, with a plain socket.
pub(crate) async fn connect(host: &str, port: u16, budget: Duration) -> io::Result<TcpStream> {
    let attempt = async {
        let addresses = resolve(host, port).await?;
        dial(host, port, addresses, budget, TcpStream::connect).await
    };
    match tokio::time::timeout(budget, attempt).await {
        Ok(result) => result.map_err(|error| match error {
            Error::Unresolvable(error) | Error::Failed(_, error) => error,
        }),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 9))
    }

    /// Connects to `open` and refuses or swallows every other address.
    async fn among(
        host: &str,
        addresses: &[SocketAddr],
        open: Option<SocketAddr>,
        swallowed: &[SocketAddr],
        budget: Duration,
    ) -> (Result<TcpStream, Error>, Vec<SocketAddr>) {
        let swallowed = swallowed.to_vec();
        let tried = Mutex::new(Vec::new());
        let result = dial(host, 9, addresses.to_vec(), budget, |address| {
            tried.lock().push(address);
            let is_swallowed = swallowed.contains(&address);
            async move {
                if is_swallowed {
                    std::future::pending::<()>().await;
                }
                if Some(address) != open {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                TcpStream::connect(listener.local_addr()?).await
            }
        })
        .await;
        (result, tried.into_inner())
    }

    #[tokio::test]
    async fn an_address_that_swallows_connections_costs_a_head_start_and_is_the_last_next_time() {
        let (host, addresses) = ("swallows.test", [address(1), address(2)]);
        let (result, tried) = among(host, &addresses, Some(address(2)), &[address(1)], LONG).await;
        assert!(result.is_ok());
        assert_eq!(tried, addresses);
        let mut order = addresses;
        begin_behind(&mut order, failed_last(host, 9));
        assert_eq!(order, [address(2), address(1)]);
    }

    #[tokio::test]
    async fn a_short_time_is_shared_among_many_addresses() {
        assert_eq!(stagger(1, LONG), STAGGER);
        assert_eq!(stagger(20, LONG), STAGGER);
        assert_eq!(stagger(20, Duration::from_secs(1)), Duration::from_millis(25));
        assert_eq!(stagger(2, Duration::ZERO), Duration::ZERO);
        let addresses: Vec<_> = (1..=20).map(address).collect();
        let budget = Duration::from_millis(200);
        let attempt = among("many.test", &addresses, Some(address(20)), &addresses[..19], budget);
        let (result, tried) = tokio::time::timeout(LONG, attempt).await.unwrap();
        assert!(result.is_ok());
        assert_eq!(tried.len(), 20);
    }

    #[tokio::test]
    async fn a_refusal_moves_on_at_once_and_an_earlier_attempt_may_still_win() {
        let addresses: Vec<_> = (1..=5).map(address).collect();
        let (result, tried) = among("refuses.test", &addresses, Some(address(5)), &[], LONG).await;
        assert!(result.is_ok());
        assert_eq!(tried.len(), 5);
        let (result, _) = among("refuses.test", &addresses, None, &[], LONG).await;
        assert!(result.unwrap_err().is_refused());

        // The first answers only after the second has failed.
        let slow = |address: SocketAddr| async move {
            if address.ip() == std::net::Ipv4Addr::new(127, 0, 0, 2) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            tokio::time::sleep(STAGGER * 4).await;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            TcpStream::connect(listener.local_addr()?).await
        };
        assert!(dial("slow.test", 9, addresses[..2].to_vec(), LONG, slow).await.is_ok());
    }

    /// A listener whose queue is full: the system drops what else wants to connect.
    #[tokio::test]
    async fn a_real_port_that_swallows_connections_does_not_stand_before_one_that_answers() {
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = open.local_addr().unwrap();
        let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        hole.bind(&SocketAddr::from(([127, 0, 0, 2], open.port())).into()).unwrap();
        hole.listen(0).unwrap();
        let hole_address = hole.local_addr().unwrap().as_socket().unwrap();
        let mut filling = Vec::new();
        let fill = || tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(hole_address));
        while let Ok(stream) = fill().await {
            filling.push(stream.unwrap());
        }
        let addresses = vec![hole_address, open];
        let stream = dial("hole.test", open.port(), addresses, LONG, TcpStream::connect).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
        assert_eq!(failed_last("hole.test", open.port()), Some(hole_address));
    }

    #[test]
    fn the_next_attempt_begins_behind_the_address_that_failed_last() {
        for (failed, first) in [(1, 2), (2, 3), (3, 1), (9, 1)] {
            let mut addresses = [address(1), address(2), address(3)];
            begin_behind(&mut addresses, Some(address(failed)));
            assert_eq!(addresses[0], address(first), "{failed}");
        }
    }
}
