//! Which life of the node this is, so that what one life wrote is not taken for what the one before left.
//!
//! The file `life` in the data directory holds a random number that each start replaces. Disk buffers write it beside the QoS 2
//! publications that they remember: those of the life before count, unless the stored sessions are gone.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use crate::kafka::buffer::Lives;
use crate::mqtt::SESSION_FILE;

/// Name of the file.
const FILE: &str = "life";

/// Begins a life. Called once a start, before anything else uses the data directory.
///
/// # Errors
/// The file cannot be replaced.
pub(crate) fn begin(data_dir: &Path) -> io::Result<Lives> {
    let path = data_dir.join(FILE);
    let before = fs::read_to_string(&path).ok().and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let now = rand::random();
    let new = data_dir.join(format!("{FILE}.new"));
    let mut file = fs::File::create(&new)?;
    writeln!(file, "{now:016x}")?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    fs::File::open(data_dir)?.sync_all()?;
    let sessions_are_there = data_dir.join(SESSION_FILE).exists();
    Ok(Lives { before: before.filter(|_| sessions_are_there), now })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_knows_the_one_before_unless_the_sessions_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = begin(folder.path()).unwrap();
        assert_eq!(first.before, None);
        fs::write(folder.path().join(SESSION_FILE), "").unwrap();
        let second = begin(folder.path()).unwrap();
        assert_eq!(second.before, Some(first.now));
        fs::remove_file(folder.path().join(SESSION_FILE)).unwrap();
        assert_eq!(begin(folder.path()).unwrap().before, None);
    }
}
