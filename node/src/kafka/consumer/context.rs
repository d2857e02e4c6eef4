//! State that the tasks of one assignment share. Another assignment gets another context, so nothing that a
//! task of the last one still says or asks for reaches it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::ConsumerOptions;
use super::placement::Placement;
use super::status::StatusBoard;
use super::topics::Topics;
use crate::kafka::client::Client;

/// A fetch never asks for more than this in all.
const MOST_FETCH_BYTES: usize = 50 * 1024 * 1024;

/// State that the tasks of one assignment share.
pub(super) struct Context {
    pub client: Client,
    /// Of the connections, see [`Purpose`].
    pub lane: u32,
    pub options: Arc<ConsumerOptions>,
    pub topics: Arc<Mutex<Topics>>,
    pub status: Faults,
    pub placement: Placement,
}

/// Says what is wrong with partitions, as long as they are ours.
pub(super) struct Faults {
    board: Arc<StatusBoard>,
    era: u64,
}

impl Faults {
    /// Begins the era in which faults of the new assignment count.
    pub(super) fn begin(board: Arc<StatusBoard>) -> Self {
        let era = board.forget_faults();
        Self { board, era }
    }

    pub(super) fn fault(&self, about: &str, reason: String) {
        self.board.fault(self.era, about, reason);
    }

    pub(super) fn assigned(&self, about: &str) {
        self.board.assigned(self.era, about);
    }

    pub(super) fn placed(&self, about: &str) {
        self.board.placed(self.era, about);
    }

    pub(super) fn well(&self, about: &str) {
        self.board.well(self.era, about);
    }
}

impl Context {
    /// Most bytes of a fetch of this many partitions.
    pub(super) fn fetch_bytes(&self, partitions: usize) -> i32 {
        let bytes = self.options.max_batch_bytes.saturating_mul(partitions).min(MOST_FETCH_BYTES);
        i32::try_from(bytes).unwrap_or(i32::MAX).min(self.largest_fetch())
    }

    /// The most that one partition's part of an answer may be: the connection refuses larger answers.
    pub(super) fn largest_fetch(&self) -> i32 {
        i32::try_from(self.client.options().max_response_bytes / 2).unwrap_or(i32::MAX)
    }
}
