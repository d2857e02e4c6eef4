//! Which life of the node this is, so that what one life wrote is not taken for what the one before left.
//!
//! The file `life` in the data directory holds a random number that each start replaces. The stored sessions
//! and the disk buffers carry the number of the life that used them last: only what was used by the life
//! before this one is known to be up to date, and a file that was left out, put back from a backup or brought
//! from elsewhere is not. Without the file nothing is.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use crate::flow::Lives;

/// Name of the file.
const FILE: &str = "life";

/// Begins a life. Called once a start, before anything else uses the data directory.
///
/// # Errors
/// The file cannot be replaced.
pub(crate) fn begin(data_dir: &Path) -> io::Result<Lives> {
    let path = data_dir.join(FILE);
    let before = fs::read_to_string(&path).ok().and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let now = rand::random_range(1..=u64::MAX);
    let new = data_dir.join(format!("{FILE}.new"));
    let mut file = fs::File::create(&new)?;
    writeln!(file, "{now:016x}")?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    fs::File::open(data_dir)?.sync_all()?;
    Ok(Lives { before, now })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_knows_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let first = begin(folder.path()).unwrap();
        assert_eq!(first.before, None);
        let second = begin(folder.path()).unwrap();
        assert_eq!(second.before, Some(first.now));
        assert!(![0, first.now].contains(&second.now));
        fs::remove_file(folder.path().join(FILE)).unwrap();
        assert_eq!(begin(folder.path()).unwrap().before, None);
    }
}
