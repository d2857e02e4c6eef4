//! A mixture of everything for minutes, and the server's memory meanwhile.
//!
//! Under it runs a steady stream that is checked message by message; over it visitors come and go: they
//! subscribe, publish, retain, resume sessions, and leave with or without a word. What they may leave behind
//! is bounded (names are few), so after a while the memory must not grow any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use causeway_benches::brokers::{Broker, Kind};
use causeway_benches::load::Meter;
use causeway_benches::load::link::Link;
use causeway_benches::load::publisher::{Publishing, publish};
use causeway_benches::load::subscriber::{Subscribers, Subscribing};
use causeway_benches::procfs;
use clap::Args;
use mqttbytes::QoS;
use mqttbytes::v4::{self, Packet};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Publishers of the steady stream, and their messages per second.
const STREAM: (u32, f64) = (20, 2_000.0);

/// Visitors at the same time.
const VISITORS: u64 = 16;

/// Names that visitors share: client ids of persistent sessions, topics with a retained message.
const NAMES: u32 = 200;

/// Growth that counts as flat: this part of the memory, and this many bytes where that is more.
const FLAT: (f64, f64) = (0.03, 524_288.0);

/// Added to the configuration of a server of our own: queues that hold what comes within two seconds, and not
/// what a forgotten session could collect.
const QUEUES: &str = "mqtt { max_mqueue = 5000, max_mqueue_bytes = 4MB }\n";

#[derive(Args)]
pub(crate) struct Soak {
    /// How long, in minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// A running server, HOST:PORT, with --server-pid; without it a causeway is started.
    #[arg(long)]
    broker: Option<String>,
    /// Seed of the visitors' doings.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) async fn soak(scenario: &Soak, server_pid: &[u32]) -> Result<()> {
    let (own, address, pid) = match (&scenario.broker, server_pid) {
        (Some(address), &[pid]) => (None, address.clone(), pid),
        (None, []) => {
            let program = Kind::Causeway.find(&[]).context("no causeway beside this program; build it")?;
            let broker = Broker::start(Kind::Causeway, &program, QUEUES).await?;
            let (address, pid) = (broker.address().to_string(), broker.pid());
            (Some(broker), address, pid)
        }
        _ => bail!("--broker and --server-pid go together"),
    };
    println!("soak: {} minutes on {address}, seed {}", scenario.minutes, scenario.seed);
    let duration = Duration::from_secs_f64(scenario.minutes * 60.0);
    let subscribers = Subscribers::start(&Subscribing {
        broker: address.clone().into(),
        clients: 2,
        prefix: "soak-subscriber-".into(),
        filter: "steady/#".into(),
        qos: QoS::AtLeastOnce,
        clean: true,
        patience: Duration::from_secs(10),
    })
    .await?;
    let stop = Arc::new(AtomicBool::new(false));
    let visits = Arc::new(AtomicU64::new(0));
    let mut visitors = JoinSet::new();
    for number in 0..VISITORS {
        let (address, stop, visits) = (address.clone(), Arc::clone(&stop), Arc::clone(&visits));
        let mut random = StdRng::seed_from_u64(scenario.seed << 8 | number);
        visitors.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                visit(&address, &mut random).await?;
                visits.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    let stream = Publishing {
        broker: address.clone().into(),
        clients: STREAM.0,
        prefix: "soak-publisher-".into(),
        topic: "steady/{client}".into(),
        topics_per_client: 1,
        qos: QoS::AtLeastOnce,
        payload: 100,
        window: 100,
        messages: (STREAM.1 * duration.as_secs_f64()) as u64 / u64::from(STREAM.0),
        first_sequence: 0,
        rate: Some(STREAM.1),
        stamp_at_write: false,
        ahead: None,
        resend: false,
        patience: duration + Duration::from_secs(30),
    };
    let meter = Arc::new(Meter::default());
    let publishing = {
        let (meter, stop) = (Arc::clone(&meter), Arc::new(AtomicBool::new(false)));
        tokio::spawn(async move { publish(&Arc::new(stream), &meter, &stop).await })
    };

    let samples = watch(pid, duration, &visits).await?;
    stop.store(true, Ordering::Relaxed);
    while let Some(visitor) = visitors.join_next().await {
        visitor?.context("a visitor was turned away")?;
    }
    let published = publishing.await??;
    let expected: u64 = published.iter().map(|client| client.acknowledged.len()).sum();
    subscribers.wait_for(expected * 2, Duration::from_secs(5)).await;
    println!("steady stream: {expected} messages, {}", subscribers.meter.latency());
    for (number, judge) in subscribers.stop().await? {
        let verdict = judge.judge(&published);
        println!("subscriber {number}: {verdict}");
        if !verdict.is_perfect() {
            bail!("the steady stream did not come through");
        }
    }
    drop(own);
    let (third, fourth) = quarters(&samples)?;
    println!(
        "{} visits; resident in the third quarter {third:.0}, in the fourth {fourth:.0} bytes ({:+.2} %)",
        visits.load(Ordering::Relaxed),
        (fourth - third) * 100.0 / third
    );
    if fourth > third + FLAT.1.max(third * FLAT.0) {
        bail!("the memory of the server grows");
    }
    Ok(())
}

/// Samples the resident memory once a second, and prints it twenty times.
async fn watch(pid: u32, duration: Duration, visits: &AtomicU64) -> Result<Vec<u64>> {
    let start = Instant::now();
    let mut samples = Vec::new();
    let mut print = Duration::ZERO;
    while start.elapsed() < duration {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let usage = procfs::usage(pid).context("the server has ended")?;
        samples.push(usage.resident);
        if start.elapsed() >= print {
            println!(
                "{:6.0} s: {:7.2} MiB, {:.1} CPU s, {} visits",
                start.elapsed().as_secs_f64(),
                usage.resident as f64 / f64::from(1 << 20),
                usage.cpu_seconds,
                visits.load(Ordering::Relaxed)
            );
            print += duration / 20;
        }
    }
    Ok(samples)
}

/// Mean memory of the third and of the fourth quarter of the time.
fn quarters(samples: &[u64]) -> Result<(f64, f64)> {
    let quarter = samples.len() / 4;
    if quarter == 0 {
        bail!("too short: 4 seconds at least");
    }
    let mean = |of: &[u64]| of.iter().sum::<u64>() as f64 / of.len() as f64;
    let last = samples.len() - quarter;
    Ok((mean(&samples[last - quarter..last]), mean(&samples[last..])))
}

/// One visitor: comes, does a few things, goes.
async fn visit(broker: &str, random: &mut StdRng) -> Result<()> {
    let name = random.random_range(0..NAMES);
    let persistent = random.random_bool(0.3);
    // Two visitors with one persistent name are a takeover, which ends one of them: that is part of it.
    let id =
        if persistent { format!("soak-known-{name}") } else { format!("soak-{:x}", random.random::<u64>()) };
    let mut link = match Link::connect(&broker.into(), &id, !persistent, Duration::from_secs(10)).await {
        Ok(link) => link,
        Err(_) if persistent => return Ok(()),
        Err(error) => return Err(error),
    };
    let written = |result: Result<usize, mqttbytes::Error>| match result {
        Ok(_) => Ok(()),
        Err(error) => Err(anyhow!("mqttbytes: {error:?}")),
    };
    let mut answers = 0;
    for identifier in 1..=random.random_range(1..4_u16) {
        // What a session keeps must be bounded: a known one subscribes to few things.
        let filter = match random.random_range(0..4) {
            0 => format!("soak/{name}/#"),
            _ if persistent => format!("soak/{name}/{}", random.random_range(0..8)),
            1 => format!("soak/+/{}", random.random_range(0..8)),
            2 => format!("soak/{:x}/+", random.random::<u32>()),
            _ => format!("soak/{name}/{}", random.random_range(0..8)),
        };
        let mut subscribe = v4::Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = identifier;
        written(subscribe.write(&mut link.out))?;
        answers += 1;
    }
    for identifier in 10..random.random_range(11..30_u16) {
        let topic = format!("soak/{}/{}", random.random_range(0..NAMES), random.random_range(0..8));
        let payload = vec![b'x'; random.random_range(0..2_000)];
        let qos = if random.random_bool(0.5) { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let mut publish = v4::Publish::new(topic, qos, payload);
        publish.retain = random.random_bool(0.1);
        if qos == QoS::AtLeastOnce {
            publish.pkid = identifier;
            answers += 1;
        }
        written(publish.write(&mut link.out))?;
    }
    let end = Instant::now() + Duration::from_secs(5);
    let acknowledges = random.random_bool(0.8);
    while (answers > 0 || !link.out.is_empty()) && Instant::now() < end {
        if link.turn(Some(end)).await.is_err() {
            // Somebody else came under the same name.
            return if persistent { Ok(()) } else { Err(anyhow!("{id} was cut off")) };
        }
        while let Some(packet) = link.take()? {
            match packet {
                Packet::Publish(publish) if publish.qos == QoS::AtLeastOnce && acknowledges => {
                    written(v4::PubAck::new(publish.pkid).write(&mut link.out))?;
                }
                Packet::SubAck(_) | Packet::PubAck(_) => answers -= 1,
                _ => {}
            }
        }
    }
    if answers > 0 && !persistent {
        bail!("{id}: {answers} requests were not answered within 5 s");
    }
    tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
    if random.random_bool(0.5) {
        // It may have been cut off meanwhile.
        drop(link.close().await);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_two_quarters_are_compared() {
        assert_eq!(quarters(&[9, 9, 9, 2, 4, 6, 8]).unwrap(), (6.0, 8.0));
        assert_eq!(quarters(&[9, 9, 9, 9, 2, 4, 6, 8]).unwrap(), (3.0, 7.0));
        assert!(quarters(&[1, 2, 3]).is_err());
    }
}
