//! A TCP proxy on loopback between the node and a broker, which cuts, delays and swallows on command.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::{block_on, runtime};

/// What it does with what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weather {
    /// Every piece is held back by so much, in each direction.
    pub delay: Duration,
    /// Nothing passes from the node to the broker.
    pub to_broker_stands: bool,
    /// Nothing passes from the broker to the node: requests arrive, answers do not.
    pub from_broker_stands: bool,
    /// Nobody is let in.
    pub is_shut: bool,
    /// Connections of an earlier number are cut.
    pub generation: u64,
}

/// See the module. It ends when it is dropped.
pub struct Proxy {
    port: u16,
    target: watch::Sender<Option<SocketAddr>>,
    weather: Arc<watch::Sender<Weather>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.weather.send_modify(|weather| weather.generation += 1);
    }
}

impl Proxy {
    /// On a free port of loopback; it leads nowhere until [`Self::lead_to`].
    pub fn open() -> Result<Self> {
        let [port] = crate::kafka::free_ports()?;
        let listener = block_on(TcpListener::bind(("127.0.0.1", port)))?;
        let (target, _) = watch::channel(None);
        let weather = Arc::new(watch::channel(Weather::default()).0);
        let task = runtime().spawn(serve(listener, target.subscribe(), Arc::clone(&weather)));
        Ok(Self { port, target, weather, task })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where connections go from now on, `HOST:PORT`.
    pub fn lead_to(&self, address: &str) -> Result<()> {
        let address = address.parse().with_context(|| format!("not an address: {address}"))?;
        self.target.send_replace(Some(address));
        Ok(())
    }

    /// Cuts every connection; new ones are welcome.
    pub fn cut(&self) {
        self.change(|weather| weather.generation += 1);
    }

    /// Changes what it does.
    pub fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }

    /// Lets everything pass again.
    pub fn clear(&self) {
        self.change(|weather| *weather = Weather { generation: weather.generation, ..Weather::default() });
    }
}

async fn serve(
    listener: TcpListener,
    target: watch::Receiver<Option<SocketAddr>>,
    weather: Arc<watch::Sender<Weather>>,
) {
    while let Ok((near, _)) = listener.accept().await {
        let now = *weather.borrow();
        let Some(address) = *target.borrow() else { continue };
        if now.is_shut {
            continue;
        }
        let mut changes = weather.subscribe();
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(address).await else { return };
            // Without it small packets wait for one another; whether it can be set changes nothing else.
            drop((near.set_nodelay(true), far.set_nodelay(true)));
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            let to_broker = pass(near_in, far_out, changes.clone(), |weather| weather.to_broker_stands);
            let from_broker = pass(far_in, near_out, changes.clone(), |weather| weather.from_broker_stands);
            let cut = changes.wait_for(|weather| weather.generation != now.generation || weather.is_shut);
            tokio::select! {
                () = to_broker => {}
                () = from_broker => {}
                // An error is the end of the proxy.
                _ = cut => {}
            }
        });
    }
}

/// Carries one direction to its end.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    stands: fn(&Weather) -> bool,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let delay = weather.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if weather.wait_for(|weather| !stands(weather)).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_passes_is_delayed_held_and_cut_as_told() -> Result<()> {
        let echo = std::net::TcpListener::bind("127.0.0.1:0")?;
        let proxy = Proxy::open()?;
        proxy.lead_to(&echo.local_addr()?.to_string())?;
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = echo.accept() {
                std::thread::spawn(move || {
                    let mut byte = [0; 1];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                });
            }
        });
        let connect = || -> Result<std::net::TcpStream> {
            let stream = std::net::TcpStream::connect(("127.0.0.1", proxy.port()))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(stream)
        };
        let exchange = |stream: &mut std::net::TcpStream| -> std::io::Result<()> {
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0; 1])
        };
        let mut stream = connect()?;
        exchange(&mut stream)?;
        proxy.change(|weather| weather.delay = Duration::from_millis(60));
        let began = std::time::Instant::now();
        exchange(&mut stream)?;
        assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
        proxy.clear();
        proxy.change(|weather| weather.from_broker_stands = true);
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        assert!(exchange(&mut stream).is_err());
        proxy.clear();
        stream.read_exact(&mut [0; 1])?;
        proxy.cut();
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        assert!(exchange(&mut stream).is_err());
        proxy.change(|weather| weather.is_shut = true);
        assert!(connect().and_then(|mut stream| Ok(exchange(&mut stream)?)).is_err());
        proxy.clear();
        exchange(&mut connect()?)?;
        Ok(())
    }
}
