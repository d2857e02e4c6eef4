//! Stored sessions: the node is killed with -9 at moments that a seed chooses, while publishers and
//! subscribers with sessions that survive do what MQTT tells them. What was acknowledged must have reached
//! every session.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::wire::{Connect, Publish, Version, ack, first};
use causeway_tests::mqtt::{Client, Trace};
use causeway_tests::node::Node;
use causeway_tests::say;

const PUBLISHERS: u64 = 4;
const EACH: u64 = 1500;
const KILLS: u64 = 5;

/// Retained messages, one a topic.
const RETAINED: u64 = 20;

/// Everything ends within this.
const LIMIT: Duration = Duration::from_mins(3);

struct Ground<'a> {
    address: &'a str,
    deadline: Instant,
    acknowledged: AtomicU64,
    published: AtomicBool,
}

impl Ground<'_> {
    /// A connection of a session that survives, as soon as there is a node.
    fn connect(&self, name: &str) -> Result<Client> {
        loop {
            ensure!(Instant::now() < self.deadline, "{name} was not served in time");
            let connect = Connect::new(Version::V5, name).lasting(3600);
            let connected = Client::open(self.address, name, Version::V5, &Trace::default())
                .and_then(|mut client| client.connect(&connect).map(|connack| (client, connack)));
            match connected {
                Ok((client, connack)) if connack.reason == 0 => return Ok(client),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// Publishes 1 to [`EACH`], one after the other; what was not acknowledged is sent again.
fn publisher(ground: &Ground<'_>, number: u64) -> Result<()> {
    let name = format!("publisher-{number}");
    let qos = if number.is_multiple_of(2) { 1 } else { 2 };
    let topic = format!("d/{number}");
    let mut client = ground.connect(&name)?;
    for message in 1..=EACH {
        let identifier = (message % 1000) as u16 + 1;
        let publish = Publish::new(Version::V5, &topic, message.to_string()).qos(qos, identifier);
        // MQTT-4.4.0-1: first PUBLISH, then PUBREL, each again after a reconnect.
        let (mut packet, mut awaited) =
            (publish.clone().bytes(), if qos == 1 { first::PUBACK } else { first::PUBREC });
        loop {
            let answer = client.send(&packet).and_then(|()| client.acked(awaited, identifier));
            match answer {
                Ok(reason) if awaited == first::PUBREC => {
                    ensure!(reason < 0x80, "PUBREC {reason:#04x}");
                    (packet, awaited) = (ack(first::PUBREL, identifier), first::PUBCOMP);
                }
                Ok(reason) => {
                    ensure!(reason < 0x80 || awaited == first::PUBCOMP, "PUBACK {reason:#04x}");
                    break;
                }
                Err(_) => {
                    client = ground.connect(&name)?;
                    if awaited != first::PUBCOMP {
                        packet = publish.clone().dup().bytes();
                    }
                }
            }
        }
        ground.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Takes what comes until it has the last message of every publisher and nothing follows; numbers by topic.
fn subscriber(ground: &Ground<'_>, name: &str, leaves: bool) -> Result<BTreeMap<String, Vec<u64>>> {
    let mut taken: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    // Identifiers of QoS 2 deliveries that are not released: they outlive a connection, as the session does.
    let mut received = HashSet::new();
    let mut turns = 0_u64;
    'connection: loop {
        let mut client = ground.connect(name)?;
        client.set_patience(Duration::from_secs(2));
        loop {
            ensure!(Instant::now() < ground.deadline, "{name} did not get everything in time");
            turns += 1;
            if leaves && turns.is_multiple_of(997) {
                drop(client);
                std::thread::sleep(Duration::from_millis(150));
                continue 'connection;
            }
            let Ok(packet) = client.packet() else {
                let whole = taken.values().filter(|numbers| numbers.contains(&EACH)).count() as u64;
                if ground.published.load(Ordering::Acquire) && whole == PUBLISHERS {
                    return Ok(taken);
                }
                continue 'connection;
            };
            let done = match packet.first & 0xF0 {
                0x30 => {
                    let published = packet.publish(Version::V5)?;
                    let identifier = published.packet_identifier;
                    let new = published.qos < 2 || received.insert(identifier);
                    if new {
                        let number = String::from_utf8(published.payload)?.parse()?;
                        taken.entry(published.topic).or_default().push(number);
                    }
                    match published.qos {
                        1 => client.send(&ack(first::PUBACK, identifier)),
                        2 => client.send(&ack(first::PUBREC, identifier)),
                        _ => Ok(()),
                    }
                }
                0x60 => {
                    let identifier = u16::from_be_bytes([packet.body[0], packet.body[1]]);
                    received.remove(&identifier);
                    client.send(&ack(first::PUBCOMP, identifier))
                }
                // The node says why it closes.
                _ => Err(anyhow::anyhow!("{packet}")),
            };
            if done.is_err() {
                continue 'connection;
            }
        }
    }
}

/// The first copies of the numbers, which must be in order, and how many came more than once.
fn first_copies(numbers: &[u64]) -> (Vec<u64>, usize) {
    let mut seen = HashSet::new();
    let firsts: Vec<u64> = numbers.iter().copied().filter(|number| seen.insert(*number)).collect();
    let again = numbers.len() - firsts.len();
    (firsts, again)
}

#[test]
fn what_was_acknowledged_is_in_every_session_after_kill_9() -> Result<()> {
    let mut seed = std::env::var("CAUSEWAY_SEED").ok().map_or(Ok(0x5EED), |seed| seed.parse::<u64>())?;
    say(&format!("CAUSEWAY_SEED={seed}"));
    let mut node = Node::start("")?;
    let address = node.mqtt().to_owned();
    let ground = Ground {
        address: &address,
        deadline: Instant::now() + LIMIT,
        acknowledged: AtomicU64::new(0),
        published: AtomicBool::new(false),
    };
    let subscribers = [
        ("stays-1", 1, false),
        ("comes-and-goes-1", 1, true),
        ("stays-2", 2, false),
        ("comes-and-goes-2", 2, true),
    ];
    for (name, qos, _) in subscribers {
        ground.connect(name)?.subscribe("d/#", qos)?;
    }
    let mut retaining = ground.connect("retaining")?;
    for number in 0..RETAINED {
        retaining.publish_retained(&format!("r/{number}"), number.to_string(), 1)?;
    }
    std::thread::scope(|scope| -> Result<()> {
        let ground = &ground;
        let publishers: Vec<_> =
            (0..PUBLISHERS).map(|number| scope.spawn(move || publisher(ground, number))).collect();
        let subscribers: Vec<_> = subscribers
            .map(|(name, qos, leaves)| (name, qos, scope.spawn(move || subscriber(ground, name, leaves))))
            .into();
        for kill in 1..=KILLS {
            let from = PUBLISHERS * EACH * kill / (KILLS + 1);
            while ground.acknowledged.load(Ordering::Relaxed) < from && Instant::now() < ground.deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(Duration::from_millis((seed >> 33) % 100));
            node.kill()?;
            node.start_again()?;
        }
        for publisher in publishers {
            publisher.join().expect("a publisher does not panic")?;
        }
        ground.published.store(true, Ordering::Release);
        for (name, qos, subscriber) in subscribers {
            let taken = subscriber.join().expect("a subscriber does not panic")?;
            for number in 0..PUBLISHERS {
                let numbers =
                    taken.get(&format!("d/{number}")).with_context(|| format!("{name}: nothing"))?;
                let (firsts, again) = first_copies(numbers);
                say(&format!("{name}, publisher {number}: {} messages, {again} again", firsts.len()));
                ensure!(firsts == (1..=EACH).collect::<Vec<_>>(), "{name}: publisher {number}: {firsts:?}");
                // QoS 2 all the way is exactly once.
                ensure!(
                    qos < 2 || number.is_multiple_of(2) || again == 0,
                    "{name}: publisher {number}: {again} twice"
                );
            }
        }
        Ok(())
    })?;
    let mut late = ground.connect("late")?;
    late.subscribe("r/#", 1)?;
    let mut kept = HashSet::new();
    for _ in 0..RETAINED {
        let published = late.published()?;
        late.acknowledge(&published)?;
        ensure!(published.retain, "{} is not retained", published.topic);
        kept.insert(published.topic);
    }
    assert_eq!(kept.len() as u64, RETAINED);
    node.stop()?;
    Ok(())
}
