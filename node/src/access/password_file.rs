//! The password file: one `USER:HASH` a line, as `causeway passwd USER` prints it.
//!
//! ```text
//! # comments and empty lines are left out
//! meter-17:$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$...
//! ```
//!
//! A user name may hold anything but `:` and line ends. The file is read anew when it changes; one with an
//! error changes nothing.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use hashbrown::HashMap;

use super::passwords::PasswordHash;
use crate::byte_order_mark;

type Entries = HashMap<Box<str>, Arc<PasswordHash>>;

/// A file of users and password hashes.
pub(super) struct PasswordFile {
    path: PathBuf,
    entries: ArcSwap<Entries>,
}

fn read(text: &str) -> Result<Entries, String> {
    let mut entries = Entries::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((user, hash)) = line.split_once(':') else {
            return Err(format!("line {number}: not USER:HASH, as `causeway passwd USER` prints it"));
        };
        if user.is_empty() {
            return Err(format!("line {number}: the user name is missing"));
        }
        // The rest of the line is not shown: it may be a password that somebody wrote there.
        let hash =
            PasswordHash::read(hash).map_err(|error| format!("line {number}, user {user:?}: {error}"))?;
        if entries.insert(user.into(), Arc::new(hash)).is_some() {
            return Err(format!("line {number}: the user {user:?} is there twice"));
        }
    }
    Ok(entries)
}

fn load(path: &Path) -> Result<Entries, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    read(byte_order_mark::skip(&text))
}

impl PasswordFile {
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        Ok(Self { path: path.to_owned(), entries: ArcSwap::from_pointee(load(path)?) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn reload(&self) -> Result<(), String> {
        self.entries.store(Arc::new(load(&self.path)?));
        Ok(())
    }

    pub(super) fn get(&self, user: &str) -> Option<Arc<PasswordHash>> {
        self.entries.load().get(user).cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.load().len()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::passwords::Cost, *};

    #[test]
    fn users_are_read_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let line = |user: &str, password: &str| {
            format!("{user}:{}\n", PasswordHash::new(password.as_bytes(), Cost::LEAST).unwrap())
        };
        std::fs::write(&path, format!("# users\n\n{}{}", line("ann", "one"), line("bob smith", "two")))
            .unwrap();
        let file = PasswordFile::open(&path).unwrap();
        assert!(file.get("ann").unwrap().verify(b"one").unwrap());
        assert!(file.get("bob smith").unwrap().verify(b"two").unwrap());
        assert!(file.get("eve").is_none() && file.len() == 2);
        std::fs::write(&path, line("ann", "new")).unwrap();
        file.reload().unwrap();
        assert!(file.get("ann").unwrap().verify(b"new").unwrap() && file.get("bob smith").is_none());
        // As an editor on Windows writes it.
        std::fs::write(&path, format!("\u{feff}{}", line("ann", "three").replace('\n', "\r\n"))).unwrap();
        file.reload().unwrap();
        assert!(file.get("ann").unwrap().verify(b"three").unwrap() && file.len() == 1);
        std::fs::write(&path, "ann").unwrap();
        assert!(file.reload().is_err());
        assert!(file.get("ann").is_some(), "a broken file changes nothing");
    }

    #[test]
    fn errors_name_the_line_and_show_no_password() {
        let hash = PasswordHash::new(b"x", Cost::LEAST).unwrap();
        for (text, why) in [
            ("ann\n".to_owned(), "line 1: not USER:HASH"),
            ("\nann:tiger\n".to_owned(), "line 2, user \"ann\": not an argon2id hash"),
            ("ann:$2b$12$tiger\n".to_owned(), "another scheme"),
            (format!(":{hash}\n"), "line 1: the user name is missing"),
            (format!("a:{hash}\na:{hash}\n"), "line 2: the user \"a\" is there twice"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(why) && !error.contains("tiger"), "{error}");
        }
    }
}
