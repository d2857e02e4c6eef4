//! One MQTT 3.1.1 connection of a try-it client, on the codec of `mqttbytes`.
//!
//! [`Link::next`] may be cancelled at any time; what it has read stays. Packets are queued and go out with
//! [`Link::flush`], which must not be cancelled.

use std::io;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use mqttbytes::v4::{self, ConnectReturnCode, Packet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::CONNECT_TIMEOUT;
use crate::dial;

/// The largest packet we take.
const MAX_PACKET: usize = 64 << 20;
/// Seconds the broker waits for a sign of life; we give one three times as often.
const KEEP_ALIVE: u16 = 30;
/// Between two signs of life.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Time for the broker to take or answer what needs no Kafka.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that may wait for a flush before a caller should do one.
pub(super) const FLUSH_AT: usize = 64 << 10;

pub(super) struct Link {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
    /// A PINGREQ has not been answered.
    ping_pending: bool,
    last_identifier: u16,
}

impl Link {
    /// Connects with a clean session.
    pub(super) async fn open(host: &str, port: u16, client_id: Option<&str>) -> Result<Self> {
        let stream = match dial::connect(host, port, CONNECT_TIMEOUT).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => bail!(
                "nobody listens for MQTT on {host}:{port}: start `causeway dev` in another terminal, or name \
                 the broker with --host and --port"
            ),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => bail!(
                "no answer from {host}:{port} within {CONNECT_TIMEOUT:?}: is --host right, and is there no firewall \
                 in between?"
            ),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot connect to the MQTT broker {host}:{port}"));
            }
        };
        stream.set_nodelay(true)?;
        let client_id =
            client_id.map_or_else(|| format!("causeway-try-{:08x}", rand::random::<u32>()), str::to_owned);
        let mut link = Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            ping_pending: false,
            last_identifier: 0,
        };
        let mut connect = v4::Connect::new(client_id);
        connect.keep_alive = KEEP_ALIVE;
        connect.clean_session = true;
        link.queue(|output| connect.write(output))?;
        link.flush().await?;
        match link.answer("CONNACK").await? {
            Packet::ConnAck(connack) if connack.code == ConnectReturnCode::Success => Ok(link),
            Packet::ConnAck(connack) => bail!("the broker refuses the connection: {}", refusal(connack.code)),
            other => bail!("the broker answered CONNECT with {other:?}: is {host}:{port} an MQTT broker?"),
        }
    }

    /// The next packet; an error when the broker closed the connection.
    pub(super) async fn next(&mut self) -> Result<Packet> {
        loop {
            match v4::read(&mut self.input, MAX_PACKET) {
                Ok(Packet::PingResp) => {
                    self.ping_pending = false;
                    continue;
                }
                Ok(packet) => return Ok(packet),
                Err(mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => bail!("the broker sent something that is not MQTT 3.1.1: {error:?}"),
            }
            let read = self.stream.read_buf(&mut self.input).await.context("the connection broke")?;
            if read == 0 {
                bail!("the broker closed the connection: its log says why");
            }
        }
    }

    /// The next packet, which needs nothing but the broker and so must come soon.
    pub(super) async fn answer(&mut self, expected: &str) -> Result<Packet> {
        timeout(ANSWER_TIMEOUT, self.next())
            .await
            .with_context(|| format!("no {expected} from the broker within {ANSWER_TIMEOUT:?}"))?
    }

    /// Writes a packet into the queue.
    pub(super) fn queue(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> Result<usize, mqttbytes::Error>,
    ) -> Result<()> {
        match write(&mut self.output) {
            Ok(_) => Ok(()),
            Err(error) => bail!("mqttbytes cannot write the packet: {error:?}"),
        }
    }

    /// Bytes in the queue.
    pub(super) fn queued(&self) -> usize {
        self.output.len()
    }

    /// Sends what is queued.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        timeout(ANSWER_TIMEOUT, self.stream.write_all(&self.output))
            .await
            .with_context(|| format!("the broker has taken nothing for {ANSWER_TIMEOUT:?}"))?
            .context("the connection broke")?;
        self.output.clear();
        Ok(())
    }

    /// Queues a sign of life; an error when the last one was not answered.
    pub(super) fn ping(&mut self) -> Result<()> {
        if self.ping_pending {
            bail!("the broker does not answer a ping within {PING_INTERVAL:?}");
        }
        self.ping_pending = true;
        self.queue(|output| v4::PingReq.write(output))
    }

    /// An identifier that `taken` does not hold. There are 65,535; callers use far fewer at a time.
    pub(super) fn identifier(&mut self, taken: impl Fn(u16) -> bool) -> u16 {
        loop {
            self.last_identifier = self.last_identifier.checked_add(1).unwrap_or(1);
            if !taken(self.last_identifier) {
                return self.last_identifier;
            }
        }
    }

    /// Says good-bye and waits until the broker has taken everything.
    pub(super) async fn close(mut self) -> Result<()> {
        self.queue(|output| v4::Disconnect.write(output))?;
        self.flush().await?;
        self.stream.shutdown().await.context("the connection broke")?;
        let mut rest = [0; 1024];
        let drained = timeout(ANSWER_TIMEOUT, async {
            while self.stream.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        });
        match drained.await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::ConnectionReset => {
                Err(error).context("the connection broke")
            }
            Ok(_) => Ok(()),
            Err(_) => {
                bail!("the broker does not close the connection within {ANSWER_TIMEOUT:?} of DISCONNECT")
            }
        }
    }
}

fn refusal(code: ConnectReturnCode) -> &'static str {
    match code {
        ConnectReturnCode::Success => "success",
        ConnectReturnCode::RefusedProtocolVersion => "it does not speak MQTT 3.1.1",
        ConnectReturnCode::BadClientId => {
            "it does not take this client identifier, choose another with --client-id"
        }
        ConnectReturnCode::ServiceUnavailable => "it is not available now, try again later",
        ConnectReturnCode::BadUserNamePassword => "it wants a user name and password",
        ConnectReturnCode::NotAuthorized => "this client is not allowed to connect",
    }
}

/// A QoS from the command line.
pub(super) fn qos(number: u8) -> mqttbytes::QoS {
    match number {
        0 => mqttbytes::QoS::AtMostOnce,
        1 => mqttbytes::QoS::AtLeastOnce,
        _ => mqttbytes::QoS::ExactlyOnce,
    }
}
