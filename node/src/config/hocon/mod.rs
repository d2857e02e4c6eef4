//! A reader of HOCON: text into a tree of values, each with the place of its key.
//!
//! Text comes from operators and, through the admin link, from other machines while the node runs. Hence:
//!
//! * Every byte outside comments is read or refused. Text to which the specification gives another meaning
//!   than a reader expects (see `docs/decisions/029-own-hocon-reader.md`) is refused or warned about.
//! * No text can crash the process: nesting, includes and the work for substitutions are bounded, which
//!   bounds the depth of the stack.
//! * Messages name a line and a remedy, and never show a value: it may be a secret.
//!
//! The stages: [`lexer`] makes tokens, [`parser`] makes definitions by key in the order of the text and
//! follows includes, [`resolver`] replaces substitutions and merges what is defined several times.

mod lexer;
mod parser;
mod resolver;
#[cfg(test)]
mod tests;

use std::path::Path;

use indexmap::IndexMap;

use super::lines::{LineIndex, SourceLine};
use super::tree::Problem;

/// Maximum nesting of keys, braces and brackets. Each level takes a few stack frames in reading, merging and
/// dropping.
const MAX_DEPTH: usize = 64;

/// A value and the place of its key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Value {
    /// The value itself.
    pub data: Data,
    /// Where its key stands, or the value in a list.
    pub place: SourceLine,
}

/// Kinds of values.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    /// `null`, which means that the key is not given.
    Null,
    /// A text, number or boolean; the reader of the key decides which it has to be.
    Text {
        /// The text as written, without quotes.
        text: String,
        /// Written in quotes or put together from parts.
        quoted: bool,
    },
    /// A list in brackets.
    List(Vec<Value>),
    /// An object in braces.
    Object(IndexMap<String, Value>),
}

/// Origin of a text, which decides whether it may use files and environment variables.
#[derive(Clone, Copy)]
pub(super) enum Source<'p> {
    /// A file of the operator in this folder: includes, substitutions and environment variables are allowed.
    File(&'p Path),
    /// Text of any other origin: none of these is allowed.
    Text,
}

/// The result of reading a text.
#[derive(Debug)]
pub(super) struct Document {
    /// The root object.
    pub root: Value,
    /// Where the keys stand.
    pub lines: LineIndex,
    /// Warnings about text that is valid but probably not meant.
    pub warnings: Vec<Problem>,
}

/// An error in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    place: SourceLine,
    message: String,
}

/// A warning about text that is valid but probably not meant.
#[derive(Debug)]
struct Remark {
    place: SourceLine,
    key: String,
    message: String,
}

/// Reads `text`, which the messages call `name`.
pub(super) fn read(name: &str, text: &str, source: Source<'_>) -> Result<Document, Vec<Problem>> {
    read_with(name, text, source, &|variable| std::env::var(variable).ok())
}

/// [`read`] with the environment as an argument.
fn read_with(
    name: &str,
    text: &str,
    source: Source<'_>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Document, Vec<Problem>> {
    let mut lines = LineIndex::default();
    let mut remarks = Vec::new();
    let problem = |lines: &LineIndex, place: SourceLine, key: String, message: String| Problem {
        file: lines.file(place).to_owned(),
        line: place.line,
        key,
        value: None,
        message,
    };
    let fields = parser::parse(name, text, source, &mut lines, &mut remarks)
        .map_err(|fault| vec![problem(&lines, fault.place, String::new(), fault.message)])?;
    let root = resolver::resolve(&fields, environment).map_err(|faults| {
        let shown =
            faults.into_iter().map(|fault| problem(&lines, fault.place, String::new(), fault.message));
        shown.collect::<Vec<_>>()
    })?;
    lines.index(&root);
    let warnings =
        remarks.into_iter().map(|remark| problem(&lines, remark.place, remark.key, remark.message)).collect();
    Ok(Document { root, lines, warnings })
}

impl Value {
    /// Whether this is `null`.
    pub(super) fn is_null(&self) -> bool {
        self.data == Data::Null
    }

    /// The elements of a list.
    pub(super) fn as_list(&self) -> Option<&[Value]> {
        match &self.data {
            Data::List(items) => Some(items),
            _ => None,
        }
    }

    /// The entries of an object.
    pub(super) fn as_object(&self) -> Option<&IndexMap<String, Value>> {
        match &self.data {
            Data::Object(entries) => Some(entries),
            _ => None,
        }
    }
}
