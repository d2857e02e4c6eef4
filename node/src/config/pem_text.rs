//! Certificates and keys in a configuration: the path of a PEM file, or the PEM text itself.

use std::fmt;
use std::io;

use serde_json::Value as Json;

use super::kind::{Kind, Secrets};
use super::tree::{Node, Walk};
use crate::byte_order_mark;
use crate::secret::MASK;

/// A path, or the text itself. A text with a private key in it is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct PemText(Box<str>);

impl PemText {
    /// The path or text, as it was written.
    pub fn as_written(&self) -> &str {
        &self.0
    }

    /// Whether it is the text itself.
    pub fn is_inline(&self) -> bool {
        self.0.contains("-----BEGIN ")
    }

    /// Whether it is the mask that stands in place of a key.
    pub fn is_mask(&self) -> bool {
        &*self.0 == MASK
    }

    fn shown(&self) -> &str {
        if self.0.contains("PRIVATE KEY-----") { MASK } else { &self.0 }
    }

    /// Where the text comes from, and the text. Reads the file, if it is one; the error names it.
    pub fn load(&self, key: &str) -> io::Result<(String, Vec<u8>)> {
        if self.is_inline() {
            return Ok((format!("{key} (inline)"), self.0.as_bytes().to_vec()));
        }
        let path = self.0.strip_prefix("file://").unwrap_or(&self.0);
        let text = std::fs::read(path)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot read {key} {path}: {error}")))?;
        Ok((format!("{key} {path}"), byte_order_mark::skip_bytes(text)))
    }
}

impl fmt::Debug for PemText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

/// Kind of a [`PemText`].
pub(super) struct PemTextKind;

/// A path of a PEM file, or PEM text.
pub(super) fn pem_text() -> PemTextKind {
    PemTextKind
}

impl Kind for PemTextKind {
    type Out = PemText;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<PemText> {
        // Never shown: it may be a key.
        match node.scalar() {
            Some(text) if !text.trim().is_empty() => Some(PemText(text.into())),
            Some(_) => walk.wrong_at(
                &node.path,
                node.place,
                "empty; the path of a PEM file, or PEM text, is expected",
            ),
            None => walk.wrong_at(&node.path, node.place, "the path of a PEM file, or PEM text, is expected"),
        }
    }

    fn json(&self, value: &PemText, secrets: Secrets) -> Json {
        match secrets {
            Secrets::Masked => value.shown().into(),
            Secrets::Revealed => value.as_written().into(),
        }
    }

    fn name(&self) -> String {
        "text".into()
    }

    fn allowed(&self) -> String {
        "path of a PEM file, or the PEM text itself".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_the_text_is_never_printed_and_a_path_is() {
        let key = PemText("-----BEGIN PRIVATE KEY-----\nsecret\n".into());
        assert!(key.is_inline());
        assert_eq!(format!("{key:?}"), MASK);
        assert_eq!(pem_text().json(&key, Secrets::Masked), MASK);
        assert_eq!(pem_text().json(&key, Secrets::Revealed), key.as_written());
        let path = PemText("/etc/key.pem".into());
        assert_eq!((format!("{path:?}"), path.is_inline()), ("/etc/key.pem".into(), false));
        assert!(
            path.load("keyfile").unwrap_err().to_string().starts_with("cannot read keyfile /etc/key.pem: ")
        );
    }
}
