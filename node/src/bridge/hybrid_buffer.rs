//! The hybrid buffer of a producer bridge: where its files lie, and what becomes of those that a dead node
//! left.
//!
//! Files hold what does not fit into the memory, and only while the node lives: publishers of QoS 1 and 2 are
//! answered when Kafka has their messages, so whatever was in a file when the node died is sent again by its
//! device. To send it from the file as well would double it. So such files are removed at the next start, and
//! the log says what was in them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk_buffer;
use crate::config::ProducerBridgeConfig;
use crate::kafka::producer::SpillOptions;
use crate::kafka::spill::{Leftover, Spill, sweep};

/// Folder of the hybrid buffers in the data directory.
pub const FOLDER: &str = "spill";

/// The directory of a bridge's files.
pub fn directory(data_dir: &Path, bridge: &str) -> PathBuf {
    let path = disk_buffer::directory(data_dir, bridge);
    data_dir.join(FOLDER).join(path.file_name().unwrap_or_default())
}

/// Files for a bridge; there are none before something does not fit into the memory.
pub(super) fn open(data_dir: &Path, name: &str, config: &ProducerBridgeConfig) -> SpillOptions {
    let bytes = config.kafka.buffer.segment_bytes.bytes();
    let spill: Arc<Spill> = Spill::new(directory(data_dir, name), bytes);
    SpillOptions { spill, memory: usize::try_from(bytes).unwrap_or(usize::MAX) }
}

/// Removes what a node that did not stop in order has left, bridge by bridge. Only before bridges are
/// started.
pub(super) fn remove_leftovers(data_dir: &Path) {
    let folder = data_dir.join(FOLDER);
    let Ok(entries) = std::fs::read_dir(&folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        let bridge = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match sweep(&path) {
            Ok(Leftover { files: 0, .. }) => {}
            Ok(Leftover { records, bytes, .. }) => tracing::warn!(
                bridge,
                records,
                bytes,
                "files of a hybrid buffer were left by a node that did not stop in order, and are removed: of these records, devices \
                 send again what has QoS 1 or 2 and is not in Kafka; what has QoS 0 and is not in Kafka is lost"
            ),
            Err(error) => tracing::error!(
                bridge,
                path = %path.display(),
                %error,
                "files that a hybrid buffer has left cannot be removed; nobody will read them: delete them"
            ),
        }
    }
    let _ = std::fs::remove_dir(&folder);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::spill::{FileSystem, Storage};

    #[test]
    fn leftovers_of_all_bridges_are_removed_and_other_files_are_not() {
        let root = tempfile::tempdir().unwrap();
        assert!(directory(root.path(), "../x").ends_with("spill/%2E%2E%2Fx"));
        for name in ["a", "b"] {
            let file = directory(root.path(), name).join("1.spill");
            FileSystem.write(&file, 0, b"CWSPILL1 and a torn batch").unwrap();
        }
        let mine = directory(root.path(), "b").join("mine");
        FileSystem.write(&mine, 0, b"?").unwrap();
        remove_leftovers(root.path());
        assert!(!directory(root.path(), "a").exists() && mine.exists());
        std::fs::remove_file(mine).unwrap();
        remove_leftovers(root.path());
        assert!(!root.path().join(FOLDER).exists());
        // Where there never were any.
        remove_leftovers(root.path());
    }
}
