//! `causeway dev subscribe`: shows what arrives on topic filters.

use std::collections::HashSet;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use mqttbytes::v4::{self, Packet, SubscribeReasonCode};
use tokio::time::{Instant, interval_at, sleep_until};

use super::link::{self, Link, PING_INTERVAL};
use super::{counted, readable, seconds, show};

/// Subscribe to MQTT topics and show the messages.
#[derive(Args, Debug, Clone)]
pub struct SubscribeArgs {
    /// Host of the MQTT broker.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port of the MQTT broker.
    #[arg(long, short, default_value_t = 1883)]
    pub port: u16,
    /// Topic filter to subscribe to; may be given several times.
    #[arg(long, short, default_value = "from-kafka")]
    pub topic: Vec<String>,
    /// Highest quality of service to receive with: 0, 1 or 2.
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// End after this many messages.
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this many seconds: with an error if --count messages have not come by then.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Client identifier; a random one if not given.
    #[arg(long)]
    pub client_id: Option<String>,
}

impl SubscribeArgs {
    /// Subscribes and shows messages until there are enough.
    ///
    /// # Errors
    /// No broker, a refused topic filter, or too few messages in time.
    pub async fn run(self) -> Result<()> {
        self.run_to(&mut io::stdout()).await
    }

    pub(super) async fn run_to(self, out: &mut (impl Write + Send)) -> Result<()> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        if let Some(bad) = self.topic.iter().find(|filter| !mqttbytes::valid_filter(filter)) {
            bail!(
                "`{}` is no topic filter: `#` must be the whole last level, as in `a/#`",
                readable(bad.as_bytes())
            );
        }
        let mut link = Link::open(&self.host, self.port, self.client_id.as_deref()).await?;
        self.subscribe(&mut link).await?;
        eprintln!("subscribed to {} with QoS {}; Ctrl-C ends", self.topic.join(", "), self.qos);
        let mut ping = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        let mut received = 0;
        // QoS 2 messages that were shown and may come again until they are released.
        let mut unreleased = HashSet::new();
        while self.count.is_none_or(|count| received < count) {
            let packet = tokio::select! {
                packet = link.next() => packet?,
                () = until(deadline) => break,
                _ = ping.tick() => {
                    link.ping()?;
                    link.flush().await?;
                    continue;
                }
            };
            match packet {
                Packet::Publish(publish) => {
                    let again =
                        publish.qos == mqttbytes::QoS::ExactlyOnce && !unreleased.insert(publish.pkid);
                    if !again {
                        received += 1;
                        if !show_message(out, &publish)? {
                            break;
                        }
                    }
                    let identifier = publish.pkid;
                    match publish.qos {
                        mqttbytes::QoS::AtMostOnce => {}
                        mqttbytes::QoS::AtLeastOnce => {
                            link.queue(|output| v4::PubAck::new(identifier).write(output))?;
                        }
                        mqttbytes::QoS::ExactlyOnce => {
                            link.queue(|output| v4::PubRec::new(identifier).write(output))?;
                        }
                    }
                }
                Packet::PubRel(release) => {
                    unreleased.remove(&release.pkid);
                    link.queue(|output| v4::PubComp::new(release.pkid).write(output))?;
                }
                other => bail!("the broker sent {other:?}, which a subscriber does not expect"),
            }
            link.flush().await?;
        }
        link.close().await?;
        match self.count {
            Some(count) if received < count => {
                bail!("only {received} of {} arrived in time", counted(count, "message"))
            }
            _ => Ok(()),
        }
    }

    async fn subscribe(&self, link: &mut Link) -> Result<()> {
        let filters =
            self.topic.iter().map(|filter| v4::SubscribeFilter::new(filter.clone(), link::qos(self.qos)));
        let mut subscribe = v4::Subscribe::new_many(filters);
        subscribe.pkid = link.identifier(|_| false);
        link.queue(|output| subscribe.write(output))?;
        link.flush().await?;
        // A clean session has nothing to deliver before its first subscription is acknowledged, except
        // retained messages of a hasty broker: those are not acknowledged and come again.
        match link.answer("SUBACK").await? {
            Packet::SubAck(suback) => {
                for (filter, code) in self.topic.iter().zip(suback.return_codes) {
                    if code == SubscribeReasonCode::Failure {
                        bail!("the broker refuses the topic filter `{}`", readable(filter.as_bytes()));
                    }
                }
                Ok(())
            }
            other => bail!("the broker answered SUBSCRIBE with {other:?}"),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn show_message(out: &mut impl Write, publish: &v4::Publish) -> io::Result<bool> {
    let retained = if publish.retain { ", retained" } else { "" };
    let again = if publish.dup { ", sent again" } else { "" };
    let qos = publish.qos as u8;
    let topic = readable(publish.topic.as_bytes());
    show(out, format_args!("{topic} (QoS {qos}{retained}{again}): {}", readable(&publish.payload)))
}
