//! The disk buffer of a producer bridge: where it lies, and how what it holds comes back after a restart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use causeway_protocol::kafka::batch::BatchBuilder;

use super::service::BridgeContext;
use crate::config::ProducerBridgeConfig;
use crate::kafka::buffer::disk::Directory;
use crate::kafka::buffer::log::{Found, survey};
use crate::kafka::buffer::{Buffer, Seal};
use crate::kafka::producer::{Restored, Routes};
use crate::template::has_placeholder;

/// Folder of the disk buffers in the data directory.
pub const FOLDER: &str = "buffers";

/// The directory of a bridge's buffer. A character that a file name should not have stands as `%XX`.
pub fn directory(data_dir: &Path, bridge: &str) -> PathBuf {
    let mut name = String::new();
    for byte in bridge.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "%{byte:02X}");
        }
    }
    data_dir.join(FOLDER).join(name)
}

/// Opens the buffer of a bridge. A buffer with records for another topic is refused: they would go to the
/// wrong one, or nowhere.
pub(super) fn open(
    surroundings: &BridgeContext,
    name: &str,
    config: &ProducerBridgeConfig,
) -> Result<(Arc<Buffer>, Found), String> {
    let path = directory(&surroundings.data_dir, name);
    let segment_bytes = config.kafka.buffer.segment_bytes.bytes();
    let (buffer, found) = Buffer::open(&path, segment_bytes)
        .map_err(|error| format!("its disk buffer {} cannot be used: {error}", path.display()))?;
    // Where messages name their topic, those on the disk have done so.
    let mut others: BTreeMap<Arc<str>, u64> = BTreeMap::new();
    if !has_placeholder(&config.kafka.topic) {
        let places = found.places();
        for (place, records) in places.iter().filter(|(place, _)| *place.topic != *config.kafka.topic) {
            *others.entry(place.topic.clone()).or_default() += records;
        }
    }
    if let Some((topic, records)) = others.first_key_value() {
        buffer.close_unused();
        return Err(format!(
            "its disk buffer {} holds {records} records for topic {topic:?}; set kafka.topic back until they are \
             sent, or move the directory away",
            path.display()
        ));
    }
    if found.records() > 0 || !found.damage.is_empty() {
        tracing::info!(
            bridge = name,
            records = found.records(),
            torn = found.torn,
            "records in the disk buffer"
        );
    }
    for damage in &found.damage {
        tracing::error!(
            bridge = name,
            file = %path.join(&damage.name).display(),
            offset = damage.gap.offset,
            bytes = damage.gap.len,
            "part of the disk buffer cannot be read; a copy of the file is kept as damaged-*"
        );
    }
    let unsealed: u64 = found.unsealed.values().sum();
    if found.lost > 0 || unsealed > 0 {
        tracing::error!(
            bridge = name,
            lost = found.lost,
            possible_duplicates = unsealed,
            "records are missing in the disk buffer; others may have been sent before and are sent again"
        );
    }
    Ok((buffer, found))
}

/// Records and bytes in the disk buffer of a bridge that does not run.
pub(super) fn left(data_dir: &Path, name: &str) -> (u64, u64) {
    let Ok(mut directory) = Directory::look(&directory(data_dir, name)) else { return (0, 0) };
    let Ok((files, found)) = survey(&mut directory) else { return (0, 0) };
    let records = found.records();
    (records, if records > 0 { files.iter().map(|file| file.bytes).sum() } else { 0 })
}

/// Deletes the disk buffer of a bridge that is deleted; one that is not there is no error. Afterwards it
/// stays away through a crash.
pub(super) fn delete(data_dir: &Path, name: &str) -> io::Result<()> {
    let absent = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    std::fs::remove_dir_all(directory(data_dir, name)).or_else(absent)?;
    File::open(data_dir.join(FOLDER)).and_then(|folder| folder.sync_all()).or_else(absent)
}

/// Says so where a bridge without disk buffer has left records in one.
pub(super) fn warn_of_leftovers(data_dir: &Path, name: &str) {
    let (records, _) = left(data_dir, name);
    if records > 0 {
        tracing::warn!(
            bridge = name,
            records,
            path = %directory(data_dir, name).display(),
            "records wait in a disk buffer that the bridge no longer uses; set buffer.mode = disk to send them"
        );
    }
}

/// Gives records that were never in a batch to the routes, and the batches back. The files must stay as they
/// are meanwhile ([`Buffer::pause`]).
///
/// # Errors
/// Restores what was found. An error means that it cannot be read now: nothing of it is to be sent.
pub(super) fn restore(found: &Found, path: &Path, routes: &Routes) -> io::Result<Restored> {
    // First number of a range to (end, batch).
    let mut sealed: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
    let mut batches: Vec<(i32, Seal, BatchBuilder)> = Vec::new();
    for (place, seals) in &found.seals {
        for seal in seals {
            for numbers in &seal.numbers {
                sealed.insert(numbers.first, (numbers.end(), batches.len()));
            }
            batches.push((place.partition, seal.clone(), BatchBuilder::new()));
        }
    }
    found.for_each(&mut Directory::look(path)?, |number, _, record| {
        let batch = sealed.range(..=number).next_back();
        let batch = batch.filter(|(_, (end, _))| number < *end).map(|(_, (_, batch))| *batch);
        match batch.and_then(|batch| batches.get_mut(batch)) {
            Some((_, _, builder)) => {
                builder.append_ref(record);
            }
            None => routes.restore(record, number),
        }
        ControlFlow::Continue(())
    })?;
    routes.note_possible_duplicates(found.unsealed.values().sum());
    let mut restored = Restored::default();
    for (partition, seal, builder) in batches {
        restored.sealed.entry(partition).or_default().push((seal, builder));
    }
    Ok(restored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_bridge_leads_out_of_the_folder() {
        let of = |name| directory(Path::new("/d"), name);
        assert_eq!(of("a-b_1"), Path::new("/d/buffers/a-b_1"));
        assert_eq!(of("../x"), Path::new("/d/buffers/%2E%2E%2Fx"));
        assert_eq!(of("."), Path::new("/d/buffers/%2E"));
    }
}
