//! Secrets: values that are used and never shown.

use std::fmt;

use crate::byte_order_mark;

/// Mask shown in place of a secret.
pub const MASK: &str = "******";

/// A password or key. `Debug` and `Display` print [`MASK`]; only [`Secret::reveal`] gives the text.
///
/// In a configuration it may be `file://PATH`: [`Secret::resolve`] reads the file.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Secret(Box<str>);

impl Secret {
    /// Keeps `text` from being shown.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that uses it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The secret itself. One written as `file://PATH` is read from that file now, without the byte
    /// order mark and the line end that editors leave; the error names the file.
    pub fn resolve(&self) -> std::io::Result<Self> {
        let Some(path) = self.0.strip_prefix("file://") else { return Ok(self.clone()) };
        let text = std::fs::read_to_string(path)
            .map_err(|e| std::io::Error::new(e.kind(), format!("cannot read the secret in {path}: {e}")))?;
        Ok(Self::new(byte_order_mark::skip(&text).trim_end_matches(['\r', '\n'])))
    }

    /// True when the text is the mask itself: a copy of what was shown in place of the secret.
    pub fn is_mask(&self) -> bool {
        &*self.0 == MASK
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("tiger");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "****** ****** Some(******)");
        assert_eq!((secret.reveal(), secret.resolve().unwrap().reveal()), ("tiger", "tiger"));
    }

    #[test]
    fn a_secret_in_a_file_is_read_without_byte_order_mark_and_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "ti ger\n").unwrap();
        assert_eq!(Secret::new(format!("file://{}", path.display())).resolve().unwrap().reveal(), "ti ger");
        std::fs::write(&path, "\u{feff}ti ger\r\n").unwrap();
        assert_eq!(Secret::new(format!("file://{}", path.display())).resolve().unwrap().reveal(), "ti ger");
        let missing = Secret::new(format!("file://{}/none", folder.path().display()));
        assert!(missing.resolve().unwrap_err().to_string().contains("/none"));
    }
}
