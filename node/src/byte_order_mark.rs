//! The byte order mark (U+FEFF) that some editors put at the beginning of a text file. It is no part of the
//! text.

/// The text without a byte order mark at its beginning.
pub(crate) fn skip(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The bytes of a text file without a byte order mark at their beginning.
pub(crate) fn skip_bytes(mut bytes: Vec<u8>) -> Vec<u8> {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    if bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mark_at_the_beginning_is_skipped_and_no_other() {
        for (text, rest) in
            [("\u{feff}a", "a"), ("a\u{feff}", "a\u{feff}"), ("\u{feff}\u{feff}", "\u{feff}"), ("", "")]
        {
            assert_eq!(skip(text), rest, "{text:?}");
            assert_eq!(skip_bytes(text.into()), rest.as_bytes(), "{text:?}");
        }
    }
}
