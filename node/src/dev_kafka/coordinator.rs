//! The shell around the group state machine: waiting requests, the timer, committed offsets on disk.
//!
//! Invariants: a waiting request is answered or its connection ends; a change of a group wakes the timer
//! task, so that no deadline passes unseen; the lock is held for single calls only.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use kafka_protocol::ResponseError;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tracing::warn;

use super::cluster::Cluster;
use super::groups::{Answer, Caller, Commit, Coordinator, Join, Joined, Limits, Sync, Synced, Token};
use super::store::OffsetLine;

/// The timer looks at the groups at least this often.
const LONGEST_SLEEP: Duration = Duration::from_mins(1);

#[derive(Debug)]
struct Inner {
    coordinator: Coordinator,
    waiting: HashMap<Token, oneshot::Sender<Answer>>,
    next_token: Token,
}

/// All consumer groups of a development Kafka.
#[derive(Debug)]
pub(super) struct Groups {
    inner: Mutex<Inner>,
    changed: Notify,
}

/// A line that restores or, below zero, deletes a committed offset.
fn line(group: &str, topic: &str, partition: i32, committed: Option<&super::CommittedOffset>) -> OffsetLine {
    OffsetLine {
        group: group.to_owned(),
        topic: topic.to_owned(),
        partition,
        offset: committed.map_or(-1, |committed| committed.offset),
        leader_epoch: committed.map_or(-1, |committed| committed.leader_epoch),
        metadata: committed.map(|committed| committed.metadata.clone()).unwrap_or_default(),
    }
}

impl Groups {
    pub(super) fn new(limits: Limits, offsets: Vec<OffsetLine>) -> Self {
        let mut coordinator = Coordinator::new(limits, rand::random());
        for line in offsets {
            let committed = super::CommittedOffset {
                offset: line.offset,
                leader_epoch: line.leader_epoch,
                metadata: line.metadata,
            };
            coordinator.restore(&line.group).commit(Commit {
                topic: line.topic,
                partition: line.partition,
                committed,
            });
        }
        let inner = Inner { coordinator, waiting: HashMap::new(), next_token: 0 };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }

    /// Runs the timers until it is dropped.
    pub(super) async fn run_timers(&self) {
        loop {
            let deadline = self.with(|coordinator, _| coordinator.next_deadline());
            let longest = Instant::now() + LONGEST_SLEEP;
            let until = deadline.unwrap_or(longest).min(longest);
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => self.with(Coordinator::poll),
                () = self.changed.notified() => {}
            }
        }
    }

    /// Calls the state machine and delivers what became ready.
    pub(super) fn with<T>(&self, call: impl FnOnce(&mut Coordinator, Instant) -> T) -> T {
        let mut inner = self.inner.lock();
        let result = call(&mut inner.coordinator, Instant::now());
        for (token, answer) in inner.coordinator.take_answers() {
            if let Some(waiting) = inner.waiting.remove(&token) {
                // Who asked may be gone with its connection.
                drop(waiting.send(answer));
            }
        }
        result
    }

    async fn wait(&self, call: impl FnOnce(&mut Coordinator, Instant, Token)) -> Option<Answer> {
        let (sender, receiver) = oneshot::channel();
        let token = {
            let mut inner = self.inner.lock();
            inner.next_token += 1;
            let token = inner.next_token;
            inner.waiting.insert(token, sender);
            token
        };
        self.with(|coordinator, now| call(coordinator, now, token));
        self.changed.notify_one();
        receiver.await.ok()
    }

    /// JoinGroup; waits for the rebalance.
    pub(super) async fn join(&self, join: Join) -> Joined {
        let member_id = join.member_id.clone();
        match self.wait(|coordinator, now, token| coordinator.join(now, token, join)).await {
            Some(Answer::Join(joined)) => joined,
            _ => Joined::failed(ResponseError::CoordinatorNotAvailable, &member_id),
        }
    }

    /// SyncGroup; waits for the leader's assignment.
    pub(super) async fn sync(&self, sync: Sync) -> Result<Synced, ResponseError> {
        match self.wait(|coordinator, now, token| coordinator.sync(now, token, sync)).await {
            Some(Answer::Sync(synced)) => synced,
            _ => Err(ResponseError::CoordinatorNotAvailable),
        }
    }

    /// Heartbeat.
    pub(super) fn heartbeat(&self, caller: &Caller) -> Result<(), ResponseError> {
        self.with(|coordinator, now| coordinator.heartbeat(now, caller))
    }

    /// LeaveGroup of one member.
    pub(super) fn leave(&self, caller: &Caller) -> Result<String, ResponseError> {
        let left = self.with(|coordinator, now| coordinator.leave(now, caller));
        self.changed.notify_one();
        left
    }

    /// OffsetCommit: checks the caller and stores `commits`, on disk first.
    pub(super) fn commit(
        &self,
        cluster: &Cluster,
        caller: &Caller,
        commits: Vec<Commit>,
    ) -> Result<(), ResponseError> {
        self.with(|coordinator, now| {
            let group = coordinator.check_commit(now, caller)?;
            let lines: Vec<_> = commits
                .iter()
                .map(|commit| line(&caller.group, &commit.topic, commit.partition, Some(&commit.committed)))
                .collect();
            write(cluster, &lines)?;
            for commit in commits {
                group.commit(commit);
            }
            Ok(())
        })
    }

    /// Forgets committed offsets that `wanted` names, in one group.
    pub(super) fn forget(
        &self,
        cluster: &Cluster,
        group: &str,
        wanted: impl Fn(&str, i32) -> bool,
    ) -> Result<Vec<(String, i32)>, ResponseError> {
        self.with(|coordinator, _| {
            let found = coordinator.group_mut(group).ok_or(ResponseError::GroupIdNotFound)?;
            let gone = found.forget(wanted);
            let lines: Vec<_> =
                gone.iter().map(|(topic, partition)| line(group, topic, *partition, None)).collect();
            write(cluster, &lines)?;
            Ok(gone)
        })
    }

    /// DeleteGroups of one group.
    pub(super) fn delete(&self, cluster: &Cluster, group: &str) -> Result<(), ResponseError> {
        self.with(|coordinator, _| {
            let deleted = coordinator.delete(group)?;
            let lines: Vec<_> = deleted
                .offsets()
                .keys()
                .map(|(topic, partition)| line(group, topic, *partition, None))
                .collect();
            write(cluster, &lines)
        })
    }
}

fn write(cluster: &Cluster, lines: &[OffsetLine]) -> Result<(), ResponseError> {
    let Some(store) = cluster.store().filter(|_| !lines.is_empty()) else { return Ok(()) };
    store.lock().commit(lines).map_err(|error| {
        warn!(%error, "cannot write committed offsets");
        ResponseError::KafkaStorageError
    })
}
