//! `causeway dev publish`: sends messages and waits for the acknowledgement of each.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use mqttbytes::v4::{self, Packet};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep_until};

use super::link::{self, FLUSH_AT, Link, PING_INTERVAL};
use super::{counted, readable, seconds, show};

/// Messages sent and not yet acknowledged: enough to keep a bridge busy.
const WINDOW: usize = 100;
/// Lines read ahead from standard input.
const READ_AHEAD: usize = 100;

/// Publish MQTT messages and wait until each is acknowledged.
#[derive(Args, Debug, Clone)]
pub struct PublishArgs {
    /// Host of the MQTT broker.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port of the MQTT broker.
    #[arg(long, short, default_value_t = 1883)]
    pub port: u16,
    /// Topic to publish to.
    #[arg(long, short, default_value = "t/1")]
    pub topic: String,
    /// The message.
    #[arg(long, short, default_value = r#"{"msg":"Hello Kafka"}"#)]
    pub message: String,
    /// Publish each line of standard input instead.
    #[arg(long, conflicts_with_all = ["message", "count"])]
    pub stdin: bool,
    /// Quality of service: 0, 1 or 2.
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// How many times to publish the message.
    #[arg(long, default_value_t = 1)]
    pub count: u64,
    /// Ask the broker to keep the message for later subscribers.
    #[arg(long)]
    pub retain: bool,
    /// Client identifier; a random one if not given.
    #[arg(long)]
    pub client_id: Option<String>,
    /// Give up when no acknowledgement came for this many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub timeout: Duration,
}

impl PublishArgs {
    /// Publishes and waits.
    ///
    /// # Errors
    /// No broker, an illegal topic, or a message that was not acknowledged in time.
    pub async fn run(self) -> Result<()> {
        self.run_to(&mut io::stdout()).await
    }

    pub(super) async fn run_to(self, out: &mut (impl Write + Send)) -> Result<()> {
        if self.topic.is_empty() || !mqttbytes::valid_topic(&self.topic) {
            bail!(
                "`{}` is no topic name: at least one character, without `+` and `#`",
                readable(self.topic.as_bytes())
            );
        }
        let link = Link::open(&self.host, self.port, self.client_id.as_deref()).await?;
        let source = if self.stdin {
            Source::Lines(lines()?)
        } else {
            Source::Repeat { message: Bytes::from(self.message.clone().into_bytes()), left: self.count }
        };
        let mut publisher = Publisher {
            link,
            args: &self,
            source: Some(source),
            in_flight: HashMap::new(),
            sent: 0,
            acknowledged: 0,
        };
        let result = publisher.publish_all().await;
        let Publisher { link, sent, acknowledged, .. } = publisher;
        if let Err(error) = result {
            let sent = counted(sent, "message");
            return Err(error.context(format!("{acknowledged} of {sent} to {} acknowledged", self.topic)));
        }
        link.close().await?;
        let fate = if self.qos == 0 {
            "QoS 0 is never acknowledged".to_owned()
        } else {
            format!("{acknowledged} acknowledged")
        };
        show(
            out,
            format_args!(
                "published {} to {} with QoS {}: {fate}",
                counted(sent, "message"),
                self.topic,
                self.qos
            ),
        )?;
        Ok(())
    }
}

/// Where messages come from.
enum Source {
    Repeat { message: Bytes, left: u64 },
    Lines(mpsc::Receiver<io::Result<Vec<u8>>>),
}

/// Packet that a message with QoS 1 or 2 waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaits {
    /// PUBACK.
    Acknowledgement,
    /// PUBREC.
    Receipt,
    /// PUBCOMP.
    Completion,
}

struct Publisher<'a> {
    link: Link,
    args: &'a PublishArgs,
    /// `None` at its end.
    source: Option<Source>,
    in_flight: HashMap<u16, Awaits>,
    sent: u64,
    acknowledged: u64,
}

impl Publisher<'_> {
    async fn publish_all(&mut self) -> Result<()> {
        let mut ping = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        let mut progress = Instant::now();
        loop {
            self.fill_window()?;
            self.link.flush().await?;
            if self.source.is_none() && self.in_flight.is_empty() {
                return Ok(());
            }
            if self.args.qos == 0 && matches!(self.source, Some(Source::Repeat { .. })) {
                continue;
            }
            let room = self.in_flight.len() < WINDOW;
            let deadline = progress + self.args.timeout;
            tokio::select! {
                packet = self.link.next() => {
                    self.on_packet(packet?)?;
                    progress = Instant::now();
                }
                line = next_line(&mut self.source), if room => {
                    match line.transpose().context("standard input cannot be read")? {
                        Some(line) => {
                            if self.in_flight.is_empty() {
                                progress = Instant::now();
                            }
                            self.send(Bytes::from(line))?;
                        }
                        None => self.source = None,
                    }
                }
                () = sleep_until(deadline), if !self.in_flight.is_empty() => bail!(
                    "no acknowledgement for {:?}: a bridge acknowledges when Kafka has the message; is Kafka \
                     running, and does its topic exist?",
                    self.args.timeout
                ),
                _ = ping.tick() => self.link.ping()?,
            }
        }
    }

    /// Sends what needs no waiting.
    fn fill_window(&mut self) -> Result<()> {
        while self.in_flight.len() < WINDOW && self.link.queued() < FLUSH_AT {
            let Some(Source::Repeat { message, left }) = &mut self.source else {
                return Ok(());
            };
            let Some(rest) = left.checked_sub(1) else {
                self.source = None;
                return Ok(());
            };
            *left = rest;
            let message = message.clone();
            self.send(message)?;
        }
        Ok(())
    }

    fn send(&mut self, message: Bytes) -> Result<()> {
        let mut publish =
            v4::Publish::from_bytes(self.args.topic.as_str(), link::qos(self.args.qos), message);
        publish.retain = self.args.retain;
        if self.args.qos > 0 {
            let in_flight = &self.in_flight;
            publish.pkid = self.link.identifier(|identifier| in_flight.contains_key(&identifier));
            let awaits = if self.args.qos == 1 { Awaits::Acknowledgement } else { Awaits::Receipt };
            self.in_flight.insert(publish.pkid, awaits);
        }
        self.sent += 1;
        self.link.queue(|output| publish.write(output))
    }

    fn on_packet(&mut self, packet: Packet) -> Result<()> {
        let (identifier, kind) = match packet {
            Packet::PubAck(ack) => (ack.pkid, Awaits::Acknowledgement),
            Packet::PubRec(ack) => (ack.pkid, Awaits::Receipt),
            Packet::PubComp(ack) => (ack.pkid, Awaits::Completion),
            other => bail!("the broker sent {other:?}, which a publisher does not expect"),
        };
        if self.in_flight.get(&identifier) != Some(&kind) {
            bail!("the broker acknowledged packet {identifier}, which does not wait for it");
        }
        if kind == Awaits::Receipt {
            self.in_flight.insert(identifier, Awaits::Completion);
            return self.link.queue(|output| v4::PubRel::new(identifier).write(output));
        }
        self.in_flight.remove(&identifier);
        self.acknowledged += 1;
        Ok(())
    }
}

/// The next line of standard input; waits for ever where there is nothing to wait for.
async fn next_line(source: &mut Option<Source>) -> Option<io::Result<Vec<u8>>> {
    match source {
        Some(Source::Lines(lines)) => lines.recv().await,
        _ => std::future::pending().await,
    }
}

/// Reads standard input on a thread of its own: a read from a terminal cannot be cancelled, and must not
/// keep the runtime from ending.
fn lines() -> Result<mpsc::Receiver<io::Result<Vec<u8>>>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            for line in io::stdin().lock().split(b'\n') {
                let line = line.map(|mut line| {
                    line.pop_if(|last| *last == b'\r');
                    line
                });
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        })
        .context("no thread for standard input")?;
    Ok(receiver)
}
