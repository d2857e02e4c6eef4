//! Deletion of a bridge: refused while it holds messages, unless it is forced; stored before anything is
//! lost.

use std::time::Duration;

use tokio::time::timeout;

use super::bridge::{Bridge, run_dry};
use super::disk_buffer;
use super::overlay::Change;
use super::service::{Deleted, Error, Kind, Status};
use crate::flow::ledger::Ledger;
use crate::kafka::consumer::Leave;

impl Bridge {
    /// Drains the bridge and forgets it, with its disk buffer. One that then still holds messages stays as it
    /// was, unless `force`.
    pub(super) async fn delete(&self, force: bool) -> Result<Deleted, Error> {
        let id = self.id();
        // From here on nothing comes in, so that what is counted stays counted.
        let (producers, gate) = self.parts();
        if let Some(gate) = &gate {
            gate.hold();
        }
        let reopen = || {
            if let (Some(gate), Some(last)) = (&gate, producers.last()) {
                gate.lead_to(last.sink());
            }
        };
        let connected = producers.iter().all(|producer| producer.status() == Status::Connected);
        if connected && timeout(self.surroundings().drain, run_dry(&producers)).await.is_ok() {
            tracing::debug!(bridge = %id, "nothing is left of a bridge that is deleted");
        }
        let mut held = Ledger::default();
        for producer in &producers {
            held += producer.ledger();
        }
        let data_dir = &self.surroundings().data_dir;
        let mut records = held.queuing + held.inflight;
        if producers.is_empty() && id.kind == Kind::Producer {
            let (stored, bytes) = disk_buffer::left(data_dir, &id.name);
            records += stored;
            held.queuing_bytes += bytes;
        }
        let is_stored = producers.is_empty() || producers.iter().any(|producer| producer.is_stored());
        if records > 0 && !force {
            reopen();
            return Err(Error::NotEmpty { id: id.clone(), records, bytes: held.queuing_bytes });
        }
        let stored = match &mut *self.shared.overlay.lock().await {
            Some(overlay) => overlay.store(&[(id.clone(), Change::Deleted)]),
            None => Ok(()),
        };
        if let Err(error) = stored {
            reopen();
            return Err(Error::Store(error.to_string()));
        }
        drop(producers);
        let last = self.stop(Leave::Final, Duration::ZERO).await;
        let removed = match &mut *self.shared.overlay.lock().await {
            Some(overlay) => overlay.remove_buffer_of(id).map_err(|error| error.to_string()),
            None if id.kind == Kind::Producer => {
                disk_buffer::delete(data_dir, &id.name).map_err(|error| error.to_string())
            }
            None => Ok(()),
        };
        if let Err(error) = removed {
            tracing::error!(bridge = %id, error, "its disk buffer is removed at the next start");
        }
        self.shared.entries.write().remove(id);
        self.retire(last);
        let dropped = last.dropped().saturating_sub(held.dropped()).min(records);
        let failed = last.failed.saturating_sub(held.failed).min(records);
        if is_stored {
            // A stop leaves what is on the disk out of the ledger.
            let gone = records.saturating_sub(failed + dropped);
            self.retire(Ledger { matched: gone, dropped_resource_stopped: gone, ..Ledger::default() });
        }
        let deleted = Deleted {
            records,
            bytes: held.queuing_bytes,
            // Publishers of what was on the disk have their answer.
            dropped: if is_stored { records - failed } else { dropped },
            failed,
        };
        if records > 0 {
            tracing::warn!(bridge = %id, ?deleted, "bridge deleted with what it held");
        } else {
            tracing::info!(bridge = %id, "bridge deleted");
        }
        Ok(deleted)
    }
}
