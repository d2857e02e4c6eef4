//! Files that may change while the node runs: looked at now and then, read anew when they are others.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::Mutex;

use super::{jwt::Jwt, password_file::PasswordFile, rules::Rule};

/// Use of a watched file.
pub(super) enum Purpose {
    Passwords(Arc<PasswordFile>),
    Keys(Arc<Jwt>),
    Rules(fn(&Path) -> Result<Vec<Rule>, String>),
}

impl Purpose {
    fn name(&self) -> &'static str {
        match self {
            Self::Passwords(_) => "password file",
            Self::Keys(_) => "key file",
            Self::Rules(_) => "file of rules",
        }
    }
}

/// Signs that tell one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(path).ok()?;
        Some(Self { length: metadata.len(), modified: metadata.modified().ok(), inode: metadata.ino() })
    }
}

/// A file that is looked at.
pub(super) struct Watched {
    path: PathBuf,
    purpose: Purpose,
    stamp: Mutex<Option<Stamp>>,
}

impl Watched {
    /// Call before the file is read for the first time: a change in between is then seen.
    pub(super) fn new(path: &Path, purpose: Purpose) -> Self {
        Self { path: path.to_owned(), purpose, stamp: Mutex::new(Stamp::of(path)) }
    }

    /// Reads the file with `read` if it has changed. An error is logged once a change, and what was read
    /// before stays.
    pub(super) fn look(&self, read: impl FnOnce(&Purpose, &Path) -> Result<usize, String>) {
        let now = Stamp::of(&self.path);
        let mut stamp = self.stamp.lock();
        if *stamp == now {
            return;
        }
        *stamp = now;
        let (what, path) = (self.purpose.name(), self.path.display());
        match read(&self.purpose, &self.path) {
            Ok(entries) => tracing::info!(file = %path, entries, "{what} read anew"),
            Err(error) => {
                tracing::warn!(file = %path, error, "{what} changed and cannot be used; what was read before stays in force");
            }
        }
    }
}
