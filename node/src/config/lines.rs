//! Where keys stand in configuration text.

use std::collections::HashMap;

use super::hocon::{Data, Value};

/// A file and a line in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SourceLine {
    /// Number of the file in the [`LineIndex`].
    pub file: u16,
    /// Counted from 1; 0 where it is not known.
    pub line: u32,
}

/// The place of every key path, the last one where a key is given several times.
#[derive(Debug, Default)]
pub(super) struct LineIndex {
    files: Vec<String>,
    places: HashMap<String, SourceLine>,
}

/// Appends a key to a path, quoted where it would not read as one plain key.
pub(super) fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let dot = if path.is_empty() { "" } else { "." };
    if plain { format!("{path}{dot}{key}") } else { format!("{path}{dot}{key:?}") }
}

impl LineIndex {
    /// Adds a file and returns its number.
    pub(super) fn add_file(&mut self, name: &str) -> u16 {
        let file = self.files.len().min(usize::from(u16::MAX)) as u16;
        self.files.push(name.to_owned());
        file
    }

    /// Number of files.
    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    /// Notes the places of everything under `root`.
    pub(super) fn index(&mut self, root: &Value) {
        self.index_under("", root);
    }

    fn index_under(&mut self, path: &str, value: &Value) {
        let mut note = |path: String, value: &Value| {
            self.index_under(&path, value);
            self.places.insert(path, value.place);
        };
        match &value.data {
            Data::Object(entries) => {
                for (key, value) in entries {
                    note(join(path, key), value);
                }
            }
            Data::List(items) => {
                for (at, value) in items.iter().enumerate() {
                    note(format!("{path}[{at}]"), value);
                }
            }
            Data::Null | Data::Text { .. } => {}
        }
    }

    /// Where the key path stands.
    pub(super) fn get(&self, path: &str) -> Option<SourceLine> {
        self.places.get(path).copied()
    }

    /// Name of the file of a place.
    pub(super) fn file(&self, place: SourceLine) -> &str {
        self.files.get(usize::from(place.file)).map_or("", String::as_str)
    }
}
