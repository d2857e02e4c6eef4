//! The walk over a configuration's value tree: where we are, and everything found wrong so far.
//!
//! A walk never stops at the first problem: each reader reports into the [`Walk`] and answers `None`,
//! and its siblings are read all the same.

use std::fmt;

use super::hocon::{Data, Value};
use super::lines::{LineIndex, SourceLine, join};

/// One thing to tell the user about a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File (or what the text was called).
    pub file: String,
    /// Line of the key, counted from 1; 0 where it is not known.
    pub line: u32,
    /// Key path, such as `bridges.kafka.NAME.kafka.compression`; empty for the whole text.
    pub key: String,
    /// The value, as far as it may be shown.
    pub value: Option<String>,
    /// Fault and remedy.
    pub message: String,
}

impl Problem {
    /// A problem of the whole text.
    pub(super) fn whole(file: &str, message: String) -> Self {
        Self { file: file.to_owned(), line: 0, key: String::new(), value: None, message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with a configuration, in the order of the text. One line each when shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Errors(pub Vec<Problem>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// Collects what a walk finds.
#[derive(Debug)]
pub(super) struct Walk {
    lines: LineIndex,
    /// Errors, which make the configuration invalid.
    pub errors: Vec<Problem>,
    /// Warnings.
    pub warnings: Vec<Problem>,
}

impl Walk {
    /// A walk over text whose keys stand where `lines` says.
    pub(super) fn new(lines: LineIndex) -> Self {
        Self { lines, errors: Vec::new(), warnings: Vec::new() }
    }

    /// Reports a wrong value; always `None`, for `return walk.wrong(..)`.
    pub(super) fn wrong<T>(&mut self, node: &Node<'_>, message: impl Into<String>) -> Option<T> {
        let problem = self.problem(&node.path, node.place, Some(node.shown()), message);
        self.errors.push(problem);
        None
    }

    /// Reports something wrong at a key without showing its value.
    pub(super) fn wrong_at<T>(
        &mut self,
        path: &str,
        place: SourceLine,
        message: impl Into<String>,
    ) -> Option<T> {
        let problem = self.problem(path, place, None, message);
        self.errors.push(problem);
        None
    }

    /// Reports something wrong at a key some levels under an object, without showing its value.
    pub(super) fn wrong_under(&mut self, object: &Object<'_>, keys: &[&str], message: impl Into<String>) {
        let (path, place) = self.under(object, keys);
        self.wrong_at::<()>(&path, place, message);
    }

    /// The path and place of a key some levels under an object; the place of the innermost level that is
    /// written.
    fn under(&self, object: &Object<'_>, keys: &[&str]) -> (String, SourceLine) {
        let (mut path, mut place) = (object.path.clone(), object.place);
        for key in keys {
            path = join(&path, key);
            place = self.lines.get(&path).unwrap_or(place);
        }
        (path, place)
    }

    /// Reports a value that works, but hardly as meant.
    pub(super) fn warn(&mut self, node: &Node<'_>, message: impl Into<String>) {
        let problem = self.problem(&node.path, node.place, Some(node.shown()), message);
        self.warnings.push(problem);
    }

    /// Reports a key that works, but hardly as meant, without showing its value.
    pub(super) fn warn_at(&mut self, path: &str, place: SourceLine, message: impl Into<String>) {
        let problem = self.problem(path, place, None, message);
        self.warnings.push(problem);
    }

    /// The same, for a key some levels under an object: at the innermost level that is written.
    pub(super) fn warn_under(&mut self, object: &Object<'_>, keys: &[&str], message: impl Into<String>) {
        let (path, place) = self.under(object, keys);
        self.warn_at(&path, place, message);
    }

    /// The node of a key under an object.
    pub(super) fn child<'a>(&self, path: &str, place: SourceLine, key: &str, value: &'a Value) -> Node<'a> {
        self.node(join(path, key), place, value)
    }

    /// The nodes of a list.
    pub(super) fn items<'a>(&self, node: &Node<'a>) -> Option<Vec<Node<'a>>> {
        let items = node.value.as_list()?;
        let numbered = items.iter().enumerate();
        Some(numbered.map(|(at, item)| self.node(format!("{}[{at}]", node.path), node.place, item)).collect())
    }

    /// The node as an object; reports it where it is something else.
    pub(super) fn object<'a>(&mut self, node: &Node<'a>) -> Option<Object<'a>> {
        let Some(map) = node.value.as_object() else {
            return self.wrong(node, "an object in braces is expected here");
        };
        let entries = map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), self.child(&node.path, node.place, key, value)))
            .collect();
        Some(Object { entries, path: node.path.clone(), place: node.place })
    }

    fn node<'a>(&self, path: String, parent: SourceLine, value: &'a Value) -> Node<'a> {
        let place = self.lines.get(&path).unwrap_or(parent);
        Node { value, path, place }
    }

    fn problem(
        &self,
        path: &str,
        place: SourceLine,
        value: Option<String>,
        message: impl Into<String>,
    ) -> Problem {
        Problem {
            file: self.lines.file(place).to_owned(),
            line: place.line,
            key: path.to_owned(),
            value,
            message: message.into(),
        }
    }
}

/// A value, its key path and where the key stands.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    /// The value.
    pub value: &'a Value,
    /// The key path.
    pub path: String,
    /// Where the key stands.
    pub place: SourceLine,
}

impl<'a> Node<'a> {
    /// The raw text of a text, number or boolean, quoted in the file or not.
    pub(super) fn scalar(&self) -> Option<&'a str> {
        match &self.value.data {
            Data::Text { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether it is no number, boolean or `null` in the text.
    fn reads_as_text(&self) -> bool {
        match &self.value.data {
            Data::Text { text, quoted: false } => {
                let number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
                !(text == "true" || text == "false" || (number && text.parse::<f64>().is_ok()))
            }
            Data::Text { quoted: true, .. } => true,
            _ => false,
        }
    }

    /// The value for a message: texts escaped and cut, other values by their kind.
    pub(super) fn shown(&self) -> String {
        match &self.value.data {
            Data::Object(_) => "{...}".into(),
            Data::List(_) => "[...]".into(),
            _ => {
                let raw = self.scalar().unwrap_or("null");
                let mut cut: String = raw.chars().take(80).collect();
                if cut.len() < raw.len() {
                    cut.push_str("...");
                }
                if self.reads_as_text() { format!("{cut:?}") } else { cut }
            }
        }
    }
}

/// The entries of an object, `null`s left out (they mean: not given).
#[derive(Debug, Clone)]
pub(super) struct Object<'a> {
    /// Keys and values.
    pub entries: Vec<(String, Node<'a>)>,
    /// Its key path.
    pub path: String,
    /// Where it stands.
    pub place: SourceLine,
}

impl<'a> Object<'a> {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Node<'a>> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, node)| node)
    }

    /// Takes a key out.
    pub(super) fn take(&mut self, key: &str) -> Option<Node<'a>> {
        let at = self.entries.iter().position(|(k, _)| k == key)?;
        Some(self.entries.remove(at).1)
    }
}

/// The candidate that `wrong` was most likely meant to be.
pub(super) fn nearest<'c>(wrong: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let wrong = wrong.to_ascii_lowercase();
    candidates
        .into_iter()
        .filter(|candidate| !candidate.contains('.'))
        .map(|candidate| {
            let close = strsim::normalized_damerau_levenshtein(&wrong, &candidate.to_ascii_lowercase());
            // A name cut short or with a part left out is near, too.
            let part = wrong.len() >= 4 && (candidate.contains(&wrong) || wrong.contains(candidate));
            (if part { close.max(0.7) } else { close }, candidate)
        })
        .filter(|(close, _)| *close >= 0.55)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
