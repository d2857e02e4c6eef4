//! What happens to the node: killed, restarted, stopped where it stands, left without room on its disk.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rand::RngExt;
use rand::rngs::StdRng;

use super::Tally;
use super::configuration::{Configuration, Mapping};
use super::disk::SmallDisk;
use super::kinds::Kind;
use super::signals::Signals;
use crate::node::Node;

/// How long absentees may take to leave when calm is called.
const LEAVING: Duration = Duration::from_secs(3);

/// How long devices go on after the restart that absentees miss at the end.
const AFTERMATH: Duration = Duration::from_millis(1500);

/// Strikes at the node until calm is called; then it runs, with every bridge enabled, and its disk has room.
/// The configuration that it runs with changes in `changes`.
pub struct NodeHand<'a> {
    /// The node.
    pub node: &'a Mutex<Node>,
    /// Its disk, if it has one of its own.
    pub disk: Option<&'a SmallDisk>,
    /// Whether its process may end.
    pub may_die: bool,
    /// What everybody knows.
    pub signals: &'a Signals,
    /// Kinds of trouble of this episode.
    pub kinds: &'a [Kind],
    /// The configuration of the next start, with every bridge enabled.
    pub configuration: Configuration,
    /// Where a disk buffer has its directory, by the name of its bridge.
    pub data: PathBuf,
    /// Where Kafka is without the proxies.
    pub direct: String,
    /// A Kafka topic that may be added to the consumer bridge.
    pub more: Option<Mapping>,
    /// Devices that end their sessions now and then.
    pub sessions_end: usize,
    /// The topic that may get partitions, and how many it has.
    pub growing: Option<(String, usize)>,
}

impl NodeHand<'_> {
    /// See the type.
    pub fn strike_on(&mut self, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        self.signals.doze(Duration::from_millis(rng.random_range(1000..2500)));
        while !self.signals.is_calm() {
            self.strike(rng, tally)?;
            self.signals.doze(Duration::from_millis(rng.random_range(200..4000)));
        }
        if self.may_die && self.kinds.contains(&Kind::Absence) {
            self.restart_without_absentees(rng, tally)?;
        }
        Ok(())
    }

    /// So that a restart lies between the last absence and the return, and devices go on after it.
    fn restart_without_absentees(&self, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let deadline = Instant::now() + LEAVING;
        while self.signals.absentees() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        self.end(&mut node, rng, tally)?;
        self.start(&mut node)?;
        std::thread::sleep(AFTERMATH);
        panics(&node)
    }

    /// Ends the node, in order or not.
    pub(super) fn end(&self, node: &mut Node, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        if rng.random_bool(0.6) {
            self.signals.log("node: kill -9");
            tally.count("node killed");
            node.kill()
        } else {
            self.signals.log("node: SIGTERM");
            tally.count("node restarted");
            panics(node)?;
            node.stop()
        }
    }

    fn strike(&mut self, rng: &mut StdRng, tally: &mut Tally) -> Result<()> {
        let node = self.node;
        let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(node.is_running(), "the node has ended by itself:\n{}", node.log_tail());
        if rng.random_bool(0.5) && self.change(&mut node, rng, tally)? {
            return panics(&node);
        }
        let log = |text: String| self.signals.log(format!("node: {text}"));
        match rng.random_range(0..10) {
            0..=3 if self.may_die => {
                log("kill -9".to_owned());
                node.kill()?;
                tally.count("node killed");
                self.signals.doze(Duration::from_millis(rng.random_range(0..600)));
                self.start(&mut node)?;
            }
            4 if self.may_die => {
                log("SIGTERM".to_owned());
                panics(&node)?;
                node.stop()?;
                tally.count("node restarted");
                self.start(&mut node)?;
            }
            5 | 6 if self.disk.is_some() => {
                let Some(disk) = self.disk else { return Ok(()) };
                let time = Duration::from_millis(rng.random_range(300..3000));
                log(format!("its disk is full for {time:.1?}"));
                disk.fill()?;
                tally.count("disk filled");
                self.signals.doze(time);
                let dies = self.may_die && rng.random_bool(0.3);
                if dies {
                    log("kill -9 with a full disk".to_owned());
                    node.kill()?;
                    tally.count("node killed");
                }
                disk.empty()?;
                log("its disk has room".to_owned());
                if dies {
                    self.start(&mut node)?;
                }
            }
            _ => {
                let time = Duration::from_millis(rng.random_range(100..3000));
                log(format!("stands still for {time:.1?}"));
                node.pause()?;
                tally.count("node paused");
                self.signals.doze(time);
                node.resume()?;
                log("goes on".to_owned());
            }
        }
        panics(&node)
    }

    pub(super) fn start(&self, node: &mut Node) -> Result<()> {
        self.signals.next_life();
        let began = Instant::now();
        node.start_again()?;
        self.signals.log(format!("node: life {} after {:.1?}", self.signals.life(), began.elapsed()));
        Ok(())
    }
}

/// A task of the node that panicked is a finding, whatever became of the messages.
pub fn panics(node: &Node) -> Result<()> {
    let panics = node.log_lines_with("panicked");
    if !panics.is_empty() {
        bail!("the node panicked: {}", panics.join("\n"));
    }
    Ok(())
}
