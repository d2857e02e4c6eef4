//! Version 1 of the buffer's files, which is read and no longer written.
//!
//! It differs from version 2 ([`super::v2`]) in its marks: the number of a session (8 bytes) in place of the
//! session's identity. A number could be given to another session after a crash, so these marks prove nothing
//! and are not believed.

use super::v2::{ALL_MARKS, Entry, FORGOTTEN, MARKS, Reader};

/// The version.
pub const VERSION: u16 = 1;

/// Bytes of a mark.
const MARK_LEN: usize = 10;

/// The body of an entry that version 2 cannot read. What both versions write alike is read there: the length
/// of the marks tells the versions apart.
pub(super) fn read_marks(body: &[u8]) -> Option<Entry<'static>> {
    let mut reader = Reader(body);
    let &[kind] = reader.take(1)? else { return None };
    let life = if kind == ALL_MARKS { reader.u64()? } else { 0 };
    let count = reader.u32()? as usize;
    (reader.0.len() == count.checked_mul(MARK_LEN)?).then_some(())?;
    match kind {
        MARKS => Some(Entry::Marks(Vec::new())),
        FORGOTTEN => Some(Entry::Forgotten(Vec::new())),
        ALL_MARKS => Some(Entry::AllMarks { life, marks: Vec::new() }),
        _ => None,
    }
}
