//! The node's hand changes what the node runs with: restarts with another configuration, bridges that start
//! late, partitions that are added while the node is down.
//!
//! Each of these is undone before the hand goes on: then every bridge is enabled, with its own buffer. What
//! stays are limits, topics and partitions.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::RngExt;
use rand::rngs::StdRng;

use super::Tally;
use super::configuration::{Buffer, Consumer};
use super::kinds::Kind;
use super::node_hand::NodeHand;
use super::signals::Leniency;
use super::way_back;
use crate::kafka::free_ports;
use crate::node::Node;

/// What a bridge may do whose disk buffer was not there for a while: the marks of QoS 2 messages that were
/// under way are believed only where nothing can have passed unseen.
const FORGETFUL: Leniency = Leniency { may_double_by_death: true, may_reorder: false, may_recount: false };

/// How long the end of a device's session is waited for.
const REST_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
enum Act {
    DisableForALife,
    DisableConsumerForALife,
    ChangeBuffer,
    ChangeLimits,
    AddTopic,
    EnableLate,
    DisableAtRunTime,
    HoldBuffer,
    StartWithoutKafka,
    AddPartitions,
    EndAfterSessions,
}

impl NodeHand<'_> {
    /// Does one of the changes that this episode has; says whether there was one.
    pub(super) fn change(&mut self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<bool> {
        let mut acts = Vec::new();
        let has = |kind| self.kinds.contains(&kind);
        if has(Kind::Configuration) && self.may_die {
            acts.extend([Act::DisableForALife, Act::ChangeBuffer, Act::ChangeLimits]);
            if self.configuration.consumer.is_some() {
                acts.push(Act::DisableConsumerForALife);
            }
            if self.more.is_some() {
                acts.extend([Act::AddTopic, Act::AddTopic]);
            }
        }
        if has(Kind::LateBridge) {
            acts.push(Act::DisableAtRunTime);
            if self.may_die {
                acts.extend([Act::EnableLate, Act::EnableLate, Act::HoldBuffer, Act::StartWithoutKafka]);
            }
        }
        if self.growing.is_some() && self.may_die {
            acts.push(Act::AddPartitions);
        }
        if has(Kind::SessionEnd) && self.may_die {
            acts.extend([Act::EndAfterSessions; 2]);
        }
        if acts.is_empty() {
            return Ok(false);
        }
        match acts[rng.random_range(0..acts.len())] {
            Act::DisableForALife => self.disable_for_a_life(node, rng, tally)?,
            Act::DisableConsumerForALife => self.disable_consumer_for_a_life(node, rng, tally)?,
            Act::ChangeBuffer => self.change_buffer(node, rng, tally)?,
            Act::ChangeLimits => self.change_limits(node, rng, tally)?,
            Act::AddTopic => self.add_topic(node, rng, tally)?,
            Act::EnableLate => self.enable_late(node, rng, tally)?,
            Act::DisableAtRunTime => self.disable_at_run_time(node, rng, tally)?,
            Act::HoldBuffer => return self.hold_buffer(node, rng, tally),
            Act::StartWithoutKafka => self.start_without_kafka(node, rng, tally)?,
            Act::AddPartitions => self.add_partitions(node, rng, tally)?,
            Act::EndAfterSessions => self.end_after_sessions(node, rng, tally)?,
        }
        Ok(true)
    }

    fn log(&self, what: &str) {
        self.signals.log(format!("node: {what}"));
    }

    /// Ends the node and starts it with another text; what is done meanwhile is done while it is down.
    fn restart_with(
        &self,
        node: &mut Node,
        text: &str,
        rng: &mut StdRng,
        tally: &mut Tally,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.end(node, rng, tally)?;
        meanwhile()?;
        node.configure(text);
        self.start(node)
    }

    fn doze(&self, rng: &mut StdRng) {
        self.signals.doze(Duration::from_millis(rng.random_range(200..3000)));
    }

    /// Any producer bridge; one with a disk buffer rather than another.
    fn any_bridge(&self, rng: &mut StdRng) -> usize {
        let bridges = &self.configuration.bridges;
        let place = rng.random_range(0..bridges.len());
        if bridges[place].buffer == Buffer::Disk {
            return place;
        }
        rng.random_range(0..bridges.len())
    }

    fn disable_for_a_life(&self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let place = self.any_bridge(rng);
        let name = self.configuration.bridges[place].name;
        let changed = self.configuration.with(|changed| changed.bridges[place].is_enabled = false);
        self.signals.allow(name, FORGETFUL);
        self.signals.switch_off(name);
        self.log(&format!("restart with bridge {name} disabled"));
        self.restart_with(node, &changed.text(), rng, tally, || Ok(()))?;
        tally.count("bridge disabled for a life");
        self.doze(rng);
        self.log(&format!("restart with bridge {name} enabled"));
        self.restart_with(node, &self.configuration.text(), rng, tally, || Ok(()))?;
        self.signals.switch_on(name);
        Ok(())
    }

    fn disable_consumer_for_a_life(
        &self,
        node: &mut Node,
        rng: &mut StdRng,
        tally: &mut Tally,
    ) -> Result<()> {
        let changed = self.configuration.with(|changed| {
            if let Some(consumer) = &mut changed.consumer {
                consumer.is_enabled = false;
            }
        });
        self.log(&format!("restart with bridge {} disabled", Consumer::NAME));
        self.restart_with(node, &changed.text(), rng, tally, || Ok(()))?;
        tally.count("bridge disabled for a life");
        self.doze(rng);
        self.log(&format!("restart with bridge {} enabled", Consumer::NAME));
        self.restart_with(node, &self.configuration.text(), rng, tally, || Ok(()))
    }

    /// A disk buffer gives way to another one and comes back. A buffer in memory does not become a disk
    /// buffer: what is acknowledged then would wait on the disk for a bridge that does not look there.
    fn change_buffer(&self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let place = self.any_bridge(rng);
        let bridge = &self.configuration.bridges[place];
        let (name, before) = (bridge.name, bridge.buffer);
        let after = match before {
            Buffer::Disk if rng.random_bool(0.5) => Buffer::Hybrid,
            Buffer::Disk | Buffer::Hybrid => Buffer::Memory,
            Buffer::Memory => Buffer::Hybrid,
        };
        let changed = self.configuration.with(|changed| changed.bridges[place].buffer = after);
        if before == Buffer::Disk {
            self.signals.allow(name, Leniency { may_reorder: true, ..FORGETFUL });
        }
        self.log(&format!("restart with bridge {name} and buffer {}", after.name()));
        self.restart_with(node, &changed.text(), rng, tally, || Ok(()))?;
        tally.count("buffer mode changed");
        self.doze(rng);
        self.log(&format!("restart with bridge {name} and buffer {}", before.name()));
        self.restart_with(node, &self.configuration.text(), rng, tally, || Ok(()))
    }

    fn change_limits(&mut self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let limits = &mut self.configuration.limits;
        limits.queue = limits.least_queue + rng.random_range(0..500);
        limits.inflight = [5, 20, 128][rng.random_range(0..3)];
        limits.partition = ["2MB", "8MB", "32MB"][rng.random_range(0..3)];
        let text = format!("restart with {limits:?}");
        self.log(&text);
        self.restart_with(node, &self.configuration.text(), rng, tally, || Ok(()))?;
        tally.count("limits changed");
        Ok(())
    }

    fn add_topic(&mut self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let (Some(more), Some(consumer)) = (self.more.take(), &mut self.configuration.consumer) else {
            return Ok(());
        };
        let text = format!("restart with topic {} added to bridge {}", more.topic, Consumer::NAME);
        consumer.mappings.push(more);
        self.log(&text);
        self.restart_with(node, &self.configuration.text(), rng, tally, || Ok(()))?;
        self.signals.add_topic();
        tally.count("topic added");
        Ok(())
    }

    /// The node starts with a bridge disabled; it is enabled while devices go on.
    fn enable_late(&self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let place = self.any_bridge(rng);
        let name = self.configuration.bridges[place].name;
        let changed = self.configuration.with(|changed| changed.bridges[place].is_enabled = false);
        self.signals.allow(name, Leniency { may_recount: true, ..FORGETFUL });
        self.signals.switch_off(name);
        self.log(&format!("restart with bridge {name} disabled"));
        self.restart_with(node, &changed.text(), rng, tally, || Ok(()))?;
        tally.count("bridge enabled late");
        self.doze(rng);
        self.enable(node, name)?;
        // At the next start this counts, not what was done at run time.
        node.configure(&self.configuration.text());
        Ok(())
    }

    fn enable(&self, node: &Node, name: &'static str) -> Result<()> {
        self.log(&format!("ctl bridges enable {name}"));
        node.ctl(&["bridges", "enable", name], "")?.successful()?;
        self.signals.switch_on(name);
        self.log(&format!("bridge {name} is enabled"));
        Ok(())
    }

    fn disable_at_run_time(&self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let name = self.configuration.bridges[self.any_bridge(rng)].name;
        self.signals.allow(name, Leniency { may_recount: true, ..FORGETFUL });
        self.signals.switch_off(name);
        self.log(&format!("ctl bridges disable {name}"));
        node.ctl(&["bridges", "disable", name], "")?.successful()?;
        tally.count("bridge disabled at run time");
        self.doze(rng);
        if self.may_die && rng.random_bool(0.4) {
            self.end(node, rng, tally)?;
            self.start(node)?;
        }
        self.enable(node, name)
    }

    /// Another process has the disk buffer of a bridge when the node starts.
    fn hold_buffer(&self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<bool> {
        let disk: Vec<&'static str> = (self.configuration.bridges.iter())
            .filter(|bridge| bridge.buffer == Buffer::Disk)
            .map(|bridge| bridge.name)
            .collect();
        if disk.is_empty() {
            return Ok(false);
        }
        let name = disk[rng.random_range(0..disk.len())];
        self.signals.allow(name, FORGETFUL);
        self.log(&format!("restart with the buffer of bridge {name} in the hands of another process"));
        self.end(node, rng, tally)?;
        let path = self.data.join("buffers").join(name).join("lock");
        let lock = File::create(&path).with_context(|| format!("{}", path.display()))?;
        lock.try_lock().with_context(|| format!("locking {}", path.display()))?;
        self.start(node)?;
        tally.count("disk buffer opened late");
        self.signals.doze(Duration::from_millis(rng.random_range(200..2500)));
        drop(lock);
        self.log(&format!("the buffer of bridge {name} is free"));
        Ok(true)
    }

    /// A bridge is led to an address where no Kafka is, and to the right one at run time.
    fn start_without_kafka(&self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let place = self.any_bridge(rng);
        let name = self.configuration.bridges[place].name;
        let [port] = free_ports()?;
        let wrong = format!("127.0.0.1:{port}");
        let changed = self.configuration.with(|changed| changed.bridges[place].wrong_bootstrap = Some(wrong));
        self.signals.allow(name, Leniency { may_recount: true, ..FORGETFUL });
        self.log(&format!("restart with bridge {name} where no Kafka is"));
        self.restart_with(node, &changed.text(), rng, tally, || Ok(()))?;
        tally.count("Kafka unreachable at the start");
        self.doze(rng);
        self.log(&format!("ctl bridges change: bridge {name} finds Kafka"));
        node.change_bridges(&self.configuration.bridge(place))?;
        self.log(&format!("bridge {name} is changed"));
        node.configure(&self.configuration.text());
        Ok(())
    }

    fn add_partitions(&mut self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let Some((topic, count)) = self.growing.take() else { return Ok(()) };
        let wanted = count + rng.random_range(1..3_usize);
        self.end(node, rng, tally)?;
        // A Kafka that is under faults itself may refuse.
        match way_back::add_partitions(&self.direct, &topic, wanted) {
            Ok(()) => {
                self.log(&format!("topic {topic} has {wanted} partitions now"));
                tally.count("partitions added while down");
                self.growing = (wanted < 6).then_some((topic, wanted));
            }
            Err(error) => {
                self.log(&format!("partitions cannot be added: {error:#}"));
                self.growing = Some((topic, count));
            }
        }
        self.start(node)
    }

    /// The node ends when those that end their sessions now and then have none, so that the next life may
    /// begin some with what was theirs.
    fn end_after_sessions(&self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let until = Instant::now() + REST_PATIENCE;
        self.signals.end_sessions(true);
        while self.signals.without_session() < self.sessions_end
            && Instant::now() < until
            && !self.signals.is_calm()
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let count = self.signals.without_session();
        // The end of a session is on the disk after 20 ms.
        std::thread::sleep(Duration::from_millis(50));
        self.log(&format!("{count} devices have ended their sessions"));
        let outcome = self.end(node, rng, tally);
        self.signals.end_sessions(false);
        outcome?;
        tally.count("ended between two sessions");
        self.start(node)
    }
}
