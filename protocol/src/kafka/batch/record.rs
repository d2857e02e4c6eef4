//! One record: its bytes and its parts.

use super::error::Error;
use super::varint;

/// Fewest bytes of a record: seven one-byte fields.
pub(super) const MIN_RECORD_LEN: usize = 7;

/// A header of a record to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header<'a> {
    /// Name; several headers may share one.
    pub key: &'a str,
    /// Value, may be null.
    pub value: Option<&'a [u8]>,
}

/// A record to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record<'a> {
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Key, may be null.
    pub key: Option<&'a [u8]>,
    /// Value, may be null (a tombstone).
    pub value: Option<&'a [u8]>,
    /// Headers in order, duplicates allowed.
    pub headers: &'a [Header<'a>],
}

fn nullable_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| varint::len(bytes.len() as i64) + bytes.len())
}

fn put_nullable(buf: &mut Vec<u8>, bytes: Option<&[u8]>) {
    if let Some(bytes) = bytes {
        varint::put(buf, bytes.len() as i64);
        buf.extend_from_slice(bytes);
    } else {
        buf.push(1);
    }
}

impl Record<'_> {
    /// Bytes of key, value and headers, encoded.
    fn tail_len(&self) -> usize {
        let mut len = nullable_len(self.key) + nullable_len(self.value);
        len += varint::len(self.headers.len() as i64);
        for header in self.headers {
            len += varint::len(header.key.len() as i64) + header.key.len() + nullable_len(header.value);
        }
        len
    }

    /// Bytes of the record behind its length field.
    pub(super) fn body_len(&self, timestamp_delta: i64, offset_delta: i64) -> usize {
        1 + varint::len(timestamp_delta) + varint::len(offset_delta) + self.tail_len()
    }

    /// Most bytes that the record takes in any batch.
    pub(super) fn max_encoded_len(&self) -> usize {
        let body = 1 + varint::MAX_LEN + 5 + self.tail_len();
        varint::len(body as i64) + body
    }

    /// Appends the record, whose [`body_len`](Self::body_len) the caller has computed and reserved.
    #[inline]
    pub(super) fn put(&self, buf: &mut Vec<u8>, body_len: usize, timestamp_delta: i64, offset_delta: i64) {
        varint::put(buf, body_len as i64);
        buf.push(0);
        varint::put(buf, timestamp_delta);
        varint::put(buf, offset_delta);
        put_nullable(buf, self.key);
        put_nullable(buf, self.value);
        varint::put(buf, self.headers.len() as i64);
        for header in self.headers {
            varint::put(buf, header.key.len() as i64);
            buf.extend_from_slice(header.key.as_bytes());
            put_nullable(buf, header.value);
        }
    }
}

/// A record as it stands in a batch, borrowed from its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Offset in its partition; in a batch that has none yet, the position from 0.
    pub offset: i64,
    /// Milliseconds since 1970, -1 for none.
    pub timestamp: i64,
    /// Key, may be null.
    pub key: Option<&'a [u8]>,
    /// Value, may be null.
    pub value: Option<&'a [u8]>,
    header_count: usize,
    header_bytes: &'a [u8],
    tail: &'a [u8],
    encoded_len: usize,
}

impl<'a> RecordRef<'a> {
    /// The headers in order, with duplicates and nulls.
    pub fn headers(&self) -> HeaderIter<'a> {
        HeaderIter { left: self.header_count, input: self.header_bytes }
    }

    /// Number of headers.
    pub fn header_count(&self) -> usize {
        self.header_count
    }

    /// Bytes that the record takes in its batch, with its length field.
    pub fn encoded_len(&self) -> usize {
        self.encoded_len
    }

    /// Bytes from the key field to the end of the record: what stays when a record moves to another
    /// batch.
    pub(super) fn tail(&self) -> &'a [u8] {
        self.tail
    }
}

/// Headers of a [`RecordRef`]: key (bytes that should be UTF-8) and value.
#[derive(Debug, Clone)]
pub struct HeaderIter<'a> {
    left: usize,
    input: &'a [u8],
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        take_header(&mut self.input).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for HeaderIter<'_> {}

fn take_bytes<'a>(input: &mut &'a [u8], len: i32, what: &'static str) -> Result<&'a [u8], &'static str> {
    let (bytes, rest) = usize::try_from(len).ok().and_then(|len| input.split_at_checked(len)).ok_or(what)?;
    *input = rest;
    Ok(bytes)
}

fn take_nullable<'a>(input: &mut &'a [u8], what: &'static str) -> Result<Option<&'a [u8]>, &'static str> {
    match varint::take(input).ok_or(what)? {
        -1 => Ok(None),
        len => take_bytes(input, len, what).map(Some),
    }
}

fn take_header<'a>(input: &mut &'a [u8]) -> Result<(&'a [u8], Option<&'a [u8]>), &'static str> {
    const KEY: &str = "the length of a header key is not within the record";
    let key_len = varint::take(input).ok_or(KEY)?;
    let key = take_bytes(input, key_len, KEY)?;
    let value = take_nullable(input, "the length of a header value is not within the record")?;
    Ok((key, value))
}

/// Base of the deltas of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    pub(super) offset: i64,
    pub(super) timestamp: i64,
    /// The timestamp of every record where the broker's clock counts.
    pub(super) append_time: Option<i64>,
}

/// Parses the record at the start of `input` and moves `input` behind it. Every length is checked,
/// headers included, so that what it returns can be read without errors.
pub(super) fn take_record<'a>(
    input: &mut &'a [u8],
    index: usize,
    base: Base,
) -> Result<RecordRef<'a>, Error> {
    let before = input.len();
    let mut rest = *input;
    let mut record = parse(&mut rest, base).map_err(|what| Error::Malformed { index, what })?;
    record.encoded_len = before - rest.len();
    *input = rest;
    Ok(record)
}

fn parse<'a>(input: &mut &'a [u8], base: Base) -> Result<RecordRef<'a>, &'static str> {
    const LENGTH: &str = "its length is not within the batch";
    let body_len = varint::take(input).ok_or(LENGTH)?;
    let mut body = take_bytes(input, body_len, LENGTH)?;
    take_bytes(&mut body, 1, "its attributes are missing")?;
    let timestamp_delta = varint::take_long(&mut body).ok_or("its timestamp delta is no varint")?;
    let offset_delta = varint::take(&mut body).ok_or("its offset delta is no varint")?;
    let offset = u32::try_from(offset_delta)
        .ok()
        .and_then(|delta| base.offset.checked_add(i64::from(delta)))
        .ok_or("its offset delta is not within the offsets")?;
    let tail = body;
    let key = take_nullable(&mut body, "the length of its key is not within the record")?;
    let value = take_nullable(&mut body, "the length of its value is not within the record")?;
    let header_count = varint::take(&mut body)
        .and_then(|count| usize::try_from(count).ok())
        .filter(|count| *count <= body.len() / 2)
        .ok_or("its header count is not within the record")?;
    let header_bytes = body;
    for _ in 0..header_count {
        take_header(&mut body)?;
    }
    if !body.is_empty() {
        return Err("bytes are left behind its headers");
    }
    // Kafka's own arithmetic wraps, and so must that of a reader of hostile bytes.
    let timestamp = base.append_time.unwrap_or_else(|| base.timestamp.wrapping_add(timestamp_delta));
    Ok(RecordRef { offset, timestamp, key, value, header_count, header_bytes, tail, encoded_len: 0 })
}
