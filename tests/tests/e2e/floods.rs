//! Floods: what some clients do too much of leaves others alone, and memory where it was.
//!
//! While a flood runs, a client that has nothing to do with it sends itself messages of QoS 1 and measures
//! how long they take. The bounds are generous: the flood, the node and the test share the machine.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::wire::{Connect, PINGREQ, Publish, Version, first, subscribe};
use causeway_tests::mqtt::{Client, Trace};
use causeway_tests::node::Node;
use causeway_tests::process::resident_mb;
use causeway_tests::{eventually, need};

/// The 99th percentile of the bystander's round trips.
const P99: Duration = Duration::from_millis(500);

/// Resident memory that a flood may leave behind or take while it runs, in MB.
const GROWTH: u64 = 128;

const SOON: Duration = Duration::from_secs(30);

/// A client of 5.0.
fn client(node: &Node, name: &str) -> Result<Client> {
    let mut client = Client::open(node.mqtt(), name, Version::V5, &Trace::default())?;
    let connack = client.connect(&Connect::new(Version::V5, name).keep_alive(0))?;
    ensure!(connack.reason == 0, "{name} is not connected: {connack:?}");
    Ok(client)
}

/// Sends itself messages until `over`; the round trips in ascending order and the most memory that was seen,
/// in MB.
fn bystander(node: &Node, over: &AtomicBool) -> Result<(Vec<Duration>, u64)> {
    let mut client = client(node, "bystander")?;
    client.subscribe("bystander", 1)?;
    let (mut round_trips, mut most, pid) = (Vec::new(), 0, node.pid()?);
    for turn in 0_u16.. {
        let started = Instant::now();
        client.send(&Publish::new(Version::V5, "bystander", turn.to_string()).qos(1, turn + 1).bytes())?;
        let (mut acknowledged, mut delivered) = (false, false);
        while !(acknowledged && delivered) {
            let packet = client.packet()?;
            if packet.first == first::PUBACK {
                acknowledged = true;
            } else {
                client.acknowledge(&packet.publish(Version::V5)?)?;
                delivered = true;
            }
        }
        round_trips.push(started.elapsed());
        most = most.max(resident_mb(pid)?);
        if over.load(Ordering::Relaxed) && round_trips.len() >= 100 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    round_trips.sort_unstable();
    Ok((round_trips, most))
}

/// Runs `flood` for some seconds beside the bystander and looks at both.
fn under(node: &Node, flood: impl Fn(&AtomicBool) -> Result<()> + Sync) -> Result<()> {
    const SECONDS: u64 = 4;
    let before = resident_mb(node.pid()?)?;
    let over = AtomicBool::new(false);
    let (flooded, seen) = std::thread::scope(|scope| {
        let flood: ScopedJoinHandle<'_, Result<()>> = scope.spawn(|| flood(&over));
        let seen = scope.spawn(|| bystander(node, &over));
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(SECONDS) && !flood.is_finished() && !seen.is_finished()
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Relaxed);
        (flood.join(), seen.join())
    });
    let panicked = |_| anyhow::anyhow!("a thread panicked");
    flooded.map_err(panicked)?.context("the flood")?;
    let (round_trips, most) = seen.map_err(panicked)?.context("the bystander")?;
    let p99 = round_trips[(round_trips.len() - 1) * 99 / 100];
    ensure!(p99 <= P99, "the 99th percentile of {} round trips is {p99:?}", round_trips.len());
    ensure!(most <= before + GROWTH, "resident memory went from {before} MB to {most} MB");
    eventually(SOON, || {
        let counters = node.mqtt_counters()?;
        need(counters.get("connections") == Some(&0), || format!("connections are left: {counters:?}"))?;
        need(counters.get("connections_panicked") == Some(&0), || format!("{counters:?}"))
    })?;
    let after = resident_mb(node.pid()?)?;
    ensure!(after <= before + GROWTH, "resident memory went from {before} MB to {after} MB");
    Ok(())
}

fn node() -> Result<Node> {
    Node::start("mqtt { connect_timeout = 1s, max_mqueue_bytes = 4MB }")
}

/// Connections are opened as fast as it goes: some say nothing, some CONNECT and go.
#[test]
fn a_flood_of_connections_leaves_others_alone() -> Result<()> {
    let node = node()?;
    let accepted = || -> Result<u64> { Ok(*node.mqtt_counters()?.get("connections_accepted").unwrap_or(&0)) };
    under(&node, |over| {
        let mut silent = Vec::new();
        for n in 0_u32.. {
            if over.load(Ordering::Relaxed) {
                break;
            }
            let mut socket = TcpStream::connect(node.mqtt())?;
            if n % 2 == 0 {
                // Half-open: nothing is ever said. At most some hundred at a time, for the sake of open
                // files.
                silent.push(socket);
                if silent.len() == 400 {
                    silent.clear();
                }
                continue;
            }
            socket.write_all(&Connect::new(Version::V311, &format!("flood{}", n % 50)).bytes())?;
            let mut answer = [0; 4];
            // It may be taken over by then.
            drop(socket.read(&mut answer));
        }
        Ok(())
    })?;
    let connections = accepted()?;
    ensure!(connections > 1000, "only {connections} connections were no flood");
    Ok(())
}

/// Clients take every file descriptor of a node and more of them wait to be accepted: `causeway ctl` gets in,
/// again and again, and so do clients when others have left.
#[test]
fn a_node_without_file_descriptors_lets_its_administrator_in() -> Result<()> {
    let node = Node::start("")?;
    let pid = node.pid()?;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let limit = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--nofile={}:", open + 8)])
        .status()
        .context("prlimit of util-linux")?;
    ensure!(limit.success(), "prlimit says {limit}");
    let clients = (0..40)
        .map(|n| {
            let mut socket = TcpStream::connect(node.mqtt())?;
            let connect = Connect::new(Version::V5, &format!("taker{n}")).keep_alive(0);
            socket.write_all(&connect.bytes())?;
            Ok(socket)
        })
        .collect::<Result<Vec<_>>>()?;
    node.wait_for_line(SOON, "cannot accept connections")?;
    for turn in 0..5 {
        let answer = node.ctl(&["stats"], "")?;
        ensure!(answer.status.success(), "ctl for the {turn}th time: {answer:?}");
    }
    let counters = node.mqtt_counters()?;
    ensure!(counters.get("accept_errors").is_some_and(|count| *count > 0), "{counters:?}");
    drop(clients);
    eventually(SOON, || {
        let counters = node.mqtt_counters()?;
        need(counters.get("connections") == Some(&0), || format!("connections are left: {counters:?}"))
    })?;
    client(&node, "afterwards")?.disconnect()
}

/// One client subscribes and unsubscribes as fast as it goes, with many filters each time.
#[test]
fn a_flood_of_subscriptions_leaves_others_alone() -> Result<()> {
    let node = node()?;
    under(&node, |over| {
        let mut flooder = client(&node, "flooder")?;
        let mut rounds = 0;
        while !over.load(Ordering::Relaxed) {
            let filters: Vec<String> = (0..500).map(|n| format!("flood/{rounds}/{n}/+/#")).collect();
            let wanted: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
            flooder.try_subscribe(&wanted)?;
            // Beyond its limit a session's subscriptions are refused: make room.
            flooder.unsubscribe(&filters.iter().map(String::as_str).collect::<Vec<_>>())?;
            rounds += 1;
        }
        ensure!(rounds > 3, "only {rounds} rounds were no flood");
        flooder.disconnect()
    })
}

/// One that wants everything and reads nothing, and others who publish as fast as it goes.
#[test]
fn a_flood_of_messages_to_one_who_does_not_read_leaves_others_alone() -> Result<()> {
    let node = node()?;
    under(&node, |over| {
        let mut slow = client(&node, "slow")?;
        slow.subscribe("flood/#", 1)?;
        let mut publisher = client(&node, "publisher")?;
        let batch: Vec<u8> =
            (0..50).flat_map(|_| Publish::new(Version::V5, "flood/x", vec![0; 1000]).bytes()).collect();
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            publisher.send(&batch)?;
            publisher.quiet()?;
            sent += 50;
        }
        ensure!(sent > 5000, "only {sent} messages were no flood");
        let counters = node.mqtt_counters()?;
        ensure!(
            counters.get("dropped_slow").is_some_and(|count| *count > 0),
            "nothing was dropped: {counters:?}"
        );
        // It is still there: what it was not sent is gone, nothing else.
        drop(slow.packet()?.publish(Version::V5)?);
        slow.reset()?;
        publisher.disconnect()
    })
}

/// Two hundred clients whose packets come byte by byte.
#[test]
fn clients_that_send_byte_by_byte_leave_others_alone() -> Result<()> {
    let node = node()?;
    under(&node, |over| {
        let mut clients: Vec<Client> =
            (0..200).map(|n| client(&node, &format!("byte{n}"))).collect::<Result<_>>()?;
        let packet = [
            subscribe(Version::V5, 7, &[("flood/+/x", 1)]),
            Publish::new(Version::V5, "elsewhere", "payload").bytes(),
        ]
        .concat();
        let mut at = 0;
        while !over.load(Ordering::Relaxed) || at % packet.len() > 0 {
            let byte = packet[at % packet.len()];
            for client in &mut clients {
                client.send(&[byte])?;
            }
            at += 1;
        }
        ensure!(at > packet.len(), "not even one packet in {at} bytes");
        let packets = at / packet.len();
        for mut client in clients {
            for _ in 0..packets {
                client.suback(7)?;
            }
            client.send(&PINGREQ)?;
            client.expect(&[first::PINGRESP, 0])?;
            client.disconnect()?;
        }
        Ok(())
    })
}

/// Half of a packet that claims to be as large as allowed, on many connections: what is not there takes no
/// memory.
#[test]
fn lengths_that_are_claimed_take_no_memory() -> Result<()> {
    let node = node()?;
    under(&node, |over| {
        let mut clients: Vec<Client> =
            (0..300).map(|n| client(&node, &format!("claim{n}"))).collect::<Result<_>>()?;
        for client in &mut clients {
            // A PUBLISH of a megabyte, of which some bytes come.
            client.send(&[0x30, 0xF0, 0xFF, 0x3F, 0, 1, b'x', 0])?;
        }
        while !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        clients.into_iter().try_for_each(Client::vanish)
    })
}
