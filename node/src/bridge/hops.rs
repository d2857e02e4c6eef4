//! The hop count: how often a message has passed Kafka.
//!
//! A consumer bridge reads the count of a record and adds one, a producer bridge writes the count of a
//! message into its record, and refuses a message that has reached [`LIMIT`]. So a message that goes round
//! between MQTT and Kafka comes to an end, also where several nodes make the loop and no configuration shows
//! it. Messages of devices have the count 0, and their records no header.

use causeway_protocol::kafka::batch::Header;
use smallvec::SmallVec;

/// Name of the record header with the count as decimal text. It belongs to Causeway: templates do not see it.
pub(super) const HEADER: &str = "causeway-hops";

/// A message that has passed Kafka so often becomes no record.
pub(super) const LIMIT: u8 = 16;

/// Counts that are written: the last one in the dead letters of refused messages.
const TEXTS: [&str; LIMIT as usize + 2] =
    ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17"];

/// The count of a message that is made of a record with these headers: from 1 to one beyond [`LIMIT`]. The
/// highest count that a header names is the record's; a value that is no number from 0 to 255 names none.
pub(super) fn of_record<'a>(headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> u8 {
    let counts = headers.filter(|(name, _)| is_header(name)).filter_map(|(_, value)| {
        let text = std::str::from_utf8(value?).ok()?;
        text.parse::<u8>().ok()
    });
    counts.max().unwrap_or(0).min(LIMIT) + 1
}

/// Whether this is the name of the count's header.
pub(super) fn is_header(name: &[u8]) -> bool {
    name == HEADER.as_bytes()
}

/// Writes the count of a message behind the headers of its record; a header of that name that a template gave
/// is not written.
pub(super) fn write(hops: u8, headers: &mut SmallVec<[Header<'_>; 8]>) {
    headers.retain(|header| header.key != HEADER);
    let text = TEXTS.get(usize::from(hops)).copied().unwrap_or("17");
    headers.push(Header { key: HEADER, value: Some(text.as_bytes()) });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&str, Option<&[u8]>)]) -> u8 {
        of_record(headers.iter().map(|(name, value)| (name.as_bytes(), *value)))
    }

    #[test]
    fn each_record_adds_one_up_to_one_beyond_the_limit() {
        assert_eq!(of(&[]), 1);
        assert_eq!(of(&[("other", Some(b"7"))]), 1);
        for (value, expected) in [("0", 1), ("1", 2), ("15", 16), ("16", 17), ("17", 17), ("255", 17)] {
            assert_eq!(of(&[(HEADER, Some(value.as_bytes()))]), expected, "{value}");
        }
    }

    #[test]
    fn values_that_are_no_count_are_none() {
        for value in
            [None, Some(&b""[..]), Some(b"x"), Some(b"-1"), Some(b"256"), Some(b"1.5"), Some(b"\xFF")]
        {
            assert_eq!(of(&[(HEADER, value)]), 1, "{value:?}");
            assert_eq!(of(&[(HEADER, Some(b"3")), (HEADER, value)]), 4, "{value:?}");
        }
    }

    #[test]
    fn what_is_written_is_the_only_header_of_its_name_and_reads_back() {
        for hops in 1..=LIMIT + 1 {
            let own = |key| Header { key, value: Some(&b"200"[..]) };
            let mut headers = SmallVec::from_slice(&[own(HEADER), own("a"), own(HEADER), own("b")]);
            write(hops, &mut headers);
            assert_eq!(headers.iter().map(|header| header.key).collect::<Vec<_>>(), ["a", "b", HEADER]);
            let pairs = headers.iter().map(|header| (header.key.as_bytes(), header.value));
            assert_eq!(of_record(pairs), hops.min(LIMIT) + 1);
        }
    }
}
