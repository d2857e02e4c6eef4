//! Secrets: values that are used and never shown.

use std::borrow::Cow;
use std::fmt;

/// What stands in for a secret wherever one would be shown.
pub const MASK: &str = "******";

/// A password or key. `Debug` and `Display` print [`MASK`]; only [`Secret::reveal`] gives the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Keeps `text` from being shown.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text as it was written: the secret, or `file://PATH`.
    pub fn as_written(&self) -> &str {
        &self.0
    }

    /// The secret itself. One written as `file://PATH` is read from that file now, without the line
    /// end that editors leave; the error names the file.
    pub fn reveal(&self) -> std::io::Result<Cow<'_, str>> {
        let Some(path) = self.0.strip_prefix("file://") else { return Ok(Cow::Borrowed(&self.0)) };
        let text = std::fs::read_to_string(path)
            .map_err(|e| std::io::Error::new(e.kind(), format!("cannot read the secret in {path}: {e}")))?;
        Ok(Cow::Owned(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// True when the text is the mask itself: somebody copied what was shown in place of the secret.
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
        assert_eq!(secret.reveal().unwrap(), "tiger");
    }

    #[test]
    fn a_secret_in_a_file_is_read_without_its_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "ti ger\n").unwrap();
        assert_eq!(Secret::new(format!("file://{}", path.display())).reveal().unwrap(), "ti ger");
        let missing = Secret::new(format!("file://{}/none", folder.path().display()));
        assert!(missing.reveal().unwrap_err().to_string().contains("/none"));
    }
}
