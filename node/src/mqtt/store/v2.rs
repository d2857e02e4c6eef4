//! Format 2 of `sessions.redb`: what the rows of each table look like.
//!
//! Numbers are big endian, so that keys sort as they count. A message is an MQTT 5.0 PUBLISH packet behind
//! the time it arrived: the standard is the format, and our own codec, with all its checks, reads it.
//!
//! | table | key | value |
//! |---|---|---|
//! | `v2.meta` | name | `format`: 2; `life`: the last life of the node that had the file |
//! | `v2.sessions` | session | [`Record`]: identity, client id, expiry, presence, will |
//! | `v2.subscriptions` | session, filter | options, subscription identifier |
//! | `v2.awaited` | session, filter | retained messages that are held back: those with numbers below this |
//! | `v2.runs` | session, first position | consecutive queue entries: what they go through, and the message or a reference to one |
//! | `v2.progress` | session | which positions are done, what is between PUBREC and PUBCOMP, both ways |
//! | `v2.messages` | message | flags, message: those that several sessions have, and retained ones |
//!
//! Invariants:
//! * Nothing here panics on any bytes; what cannot be read is [`Damaged`], with the table's name.
//! * A byte that is written is fixed for ever: another layout is another module with other table names.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use causeway_protocol::mqtt::{
    Decoded, Decoder, MAX_PACKET_SIZE, Packet, Publish, PublishProperties, QoS, RetainHandling, Role,
    SubscriptionOptions, Version, encode_publish_head,
};
use redb::TableDefinition;

use super::ranges::Ranges;
use crate::{
    flow::{Message, Origin, SessionId},
    mqtt::{
        memory::Memory,
        publication::{Delivery, Publication, Via},
    },
};

pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("v2.meta");
pub(super) const SESSIONS: TableDefinition<u64, &[u8]> = TableDefinition::new("v2.sessions");
pub(super) const SUBSCRIPTIONS: TableDefinition<(u64, &str), &[u8]> =
    TableDefinition::new("v2.subscriptions");
pub(super) const AWAITED: TableDefinition<(u64, &str), u64> = TableDefinition::new("v2.awaited");
pub(super) const RUNS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("v2.runs");
pub(super) const PROGRESS: TableDefinition<u64, &[u8]> = TableDefinition::new("v2.progress");
pub(super) const MESSAGES: TableDefinition<u64, &[u8]> = TableDefinition::new("v2.messages");

/// Key of the format's number in [`META`], and the number.
pub(super) const FORMAT: (&str, u64) = ("format", 2);

/// Key in [`META`] of the number of the last life of the node that had the file.
pub(super) const LIFE: &str = "life";

/// A row that is not what this format allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a row of the table {0} cannot be read")]
pub(super) struct Damaged(pub(super) &'static str);

/// Stored state of a session beside its queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: SessionId,
    pub(crate) client_id: Box<str>,
    /// User name of the client that it belongs to.
    pub(crate) username: Option<Box<str>>,
    /// How long it outlives its connection, in milliseconds; 0: it ends with it.
    pub(crate) expiry: u64,
    pub(crate) presence: Presence,
    pub(crate) will: Option<StoredWill>,
}

/// Reserved field of four bytes behind [`Presence::Connected`]. It held how many deliveries may have been
/// sent, is not read any more, and is written with the value that says "all of them".
const RESERVED: u32 = u32::MAX;

/// Whether a connection has the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// After a crash every delivery may have been sent.
    Connected,
    Away {
        /// Milliseconds since the Unix epoch.
        since: i64,
        /// Positions below were sent.
        sent: u64,
    },
}

/// A will message of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredWill {
    /// Seconds between the end of the connection and the publication.
    pub(crate) delay: u32,
    /// As a message of this format.
    pub(crate) message: Box<[u8]>,
}

/// One entry of a queue.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) publication: Arc<Publication>,
    pub(crate) via: Option<Arc<Via>>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// False for a retained message that a subscription asked for: it takes no room in the queue.
    pub(crate) charged: bool,
}

impl Entry {
    /// Stored form of a delivery.
    pub(crate) fn of(delivery: &Delivery) -> Self {
        Self {
            publication: delivery.publication.clone(),
            via: delivery.via.clone(),
            qos: delivery.qos,
            retain: delivery.retain,
            charged: delivery.charged,
        }
    }

    /// The delivery of this entry.
    pub(crate) fn into_delivery(self, position: u64) -> Delivery {
        let Self { publication, via, qos, retain, charged } = self;
        Delivery { via, retain, charged, position: position as u32, ..Delivery::new(publication, qos) }
    }
}

/// State of one position in a run's row.
pub(super) enum Stored {
    /// Nothing is there.
    Hole,
    /// Its own message.
    Own(Entry),
    /// A message in [`MESSAGES`].
    Shared(Reference),
}

/// An entry whose message is in [`MESSAGES`].
pub(super) struct Reference {
    /// Number of the message.
    pub(super) number: u64,
    via: Option<Arc<Via>>,
    qos: QoS,
    retain: bool,
    charged: bool,
}

impl Reference {
    /// The entry with its message.
    pub(super) fn with(self, publication: Arc<Publication>) -> Entry {
        let Self { via, qos, retain, charged, .. } = self;
        Entry { publication, via, qos, retain, charged }
    }
}

/// Which positions of a session are done, and what is half done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Everything below is done.
    pub(super) cursor: u64,
    /// Positions above it that are.
    pub(super) done: Ranges,
    /// Positions between PUBREC and PUBCOMP of the client.
    pub(super) released: Vec<u64>,
    /// QoS 2 packet identifiers between the client's PUBLISH and its PUBREL; true: message sinks may not
    /// have the publication.
    pub(super) received: Vec<(u16, bool)>,
}

/// Flags of an entry; the two lowest bits are its QoS.
mod flag {
    pub(super) const RETAIN: u8 = 1 << 2;
    pub(super) const IDENTIFIERS: u8 = 1 << 3;
    pub(super) const SHARED: u8 = 1 << 4;
    pub(super) const HOLE: u8 = 1 << 5;
    pub(super) const GROUP: u8 = 1 << 6;
    /// It is not charged to the queue.
    pub(super) const UNCHARGED: u8 = 1 << 7;
}

/// Flag of a row of [`MESSAGES`]: it is the retained message of its topic.
const RETAINED: u8 = 1;

/// Appends a message.
pub(super) fn put_message(out: &mut BytesMut, publication: &Publication) {
    let mut properties = publication.properties().borrow();
    properties.subscription_identifiers.clear();
    put_parts(
        out,
        publication.received_at,
        &Publish {
            dup: false,
            qos: publication.qos,
            retain: publication.retain,
            topic: publication.topic(),
            packet_identifier: u16::from(publication.qos != QoS::AtMostOnce),
            properties,
            payload: publication.payload(),
        },
    );
}

fn put_parts(out: &mut BytesMut, received_at: i64, publish: &Publish<'_>) {
    out.put_i64(received_at);
    // It came in a packet, so it fits into one.
    if encode_publish_head(out, Version::V5, publish).is_ok() {
        out.extend_from_slice(publish.payload);
    }
}

/// The bytes of a will message.
pub(crate) fn message_bytes(message: &Message<'_>) -> Box<[u8]> {
    let mut properties = PublishProperties::clone(message.properties);
    properties.subscription_identifiers.clear();
    properties.topic_alias = None;
    let mut out = BytesMut::new();
    put_parts(
        &mut out,
        message.received_at,
        &Publish {
            dup: false,
            qos: message.qos,
            retain: message.retain,
            topic: message.topic,
            packet_identifier: u16::from(message.qos != QoS::AtMostOnce),
            properties,
            payload: message.payload,
        },
    );
    Box::from(&*out)
}

/// Reads a message and lends it to `then`.
pub(crate) fn read_message<T>(
    bytes: &[u8],
    origin: &Arc<Origin>,
    then: impl FnOnce(&Message<'_>) -> T,
) -> Option<T> {
    let (received_at, packet) = bytes.split_first_chunk()?;
    let mut decoder = Decoder::new(Role::Client, MAX_PACKET_SIZE);
    decoder.version = Some(Version::V5);
    decoder.max_topic_levels = u16::MAX;
    let Ok(Decoded::Packet { packet: Packet::Publish(publish), consumed }) = decoder.decode(packet) else {
        return None;
    };
    (consumed == packet.len()).then(|| {
        then(&Message {
            origin,
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            dup: false,
            properties: &publish.properties,
            received_at: i64::from_be_bytes(*received_at),
            hops: 0,
        })
    })
}

/// Owner of the messages that are read.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) origin: Arc<Origin>,
    pub(super) memory: Memory,
}

impl Reader {
    fn publication(&self, bytes: &[u8], number: u64) -> Option<Arc<Publication>> {
        read_message(bytes, &self.origin, |message| {
            Arc::new(Publication::new(message, self.memory).stored_as(number))
        })
    }
}

/// Appends a row of [`MESSAGES`].
pub(super) fn put_shared(out: &mut BytesMut, publication: &Publication, retained: bool) {
    out.put_u8(if retained { RETAINED } else { 0 });
    put_message(out, publication);
}

/// Reads a row of [`MESSAGES`]: the message, and whether it is retained.
pub(super) fn read_shared(
    bytes: &[u8],
    reader: &Reader,
    number: u64,
) -> Result<(Arc<Publication>, bool), Damaged> {
    let read = || {
        let (&flags, message) = bytes.split_first()?;
        Some((reader.publication(message, number)?, flags & RETAINED != 0))
    };
    read().ok_or(Damaged("v2.messages"))
}

/// Appends one entry of a run.
pub(super) fn put_entry(out: &mut BytesMut, entry: Option<&Entry>) {
    let Some(entry) = entry else {
        out.put_u8(flag::HOLE);
        return;
    };
    let number = entry.publication.number();
    let mut flags = entry.qos as u8;
    if entry.retain {
        flags |= flag::RETAIN;
    }
    if !entry.charged {
        flags |= flag::UNCHARGED;
    }
    let identifiers: &[u32] = entry.via.as_ref().map_or(&[], |via| &via.identifiers);
    if !identifiers.is_empty() {
        flags |= flag::IDENTIFIERS;
    }
    if number != 0 {
        flags |= flag::SHARED;
    }
    let share = entry.via.as_ref().and_then(|via| via.share.as_deref());
    if share.is_some() {
        flags |= flag::GROUP;
    }
    out.put_u8(flags);
    if !identifiers.is_empty() {
        out.put_u32(identifiers.len() as u32);
        for identifier in identifiers {
            out.put_u32(*identifier);
        }
    }
    if let Some(share) = share {
        // A filter is a string of MQTT: its length has two bytes there, too.
        out.put_u16(share.len() as u16);
        out.extend_from_slice(share.as_bytes());
    }
    if number == 0 {
        let at = out.len();
        out.put_u32(0);
        put_message(out, &entry.publication);
        let length = (out.len() - at - 4) as u32;
        if let Some(place) = out.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
    } else {
        out.put_u64(number);
    }
}

/// Reads the entries of a run, one after the other.
pub(super) struct Run<'a> {
    rest: &'a [u8],
    reader: &'a Reader,
    /// Subscriptions of the last entry: the next one mostly went through the same.
    last: Option<Arc<Via>>,
}

impl<'a> Run<'a> {
    pub(super) fn new(bytes: &'a [u8], reader: &'a Reader) -> Self {
        Self { rest: bytes, reader, last: None }
    }

    fn read(&mut self) -> Option<Stored> {
        let rest = &mut self.rest;
        let [flags] = take::<1>(rest)?;
        if flags & flag::HOLE != 0 {
            return Some(Stored::Hole);
        }
        let qos = qos(flags & 3)?;
        let (retain, charged) = (flags & flag::RETAIN != 0, flags & flag::UNCHARGED == 0);
        let mut identifiers: &[u8] = &[];
        if flags & flag::IDENTIFIERS != 0 {
            let count = u32::from_be_bytes(take(rest)?) as usize;
            identifiers = take_slice(rest, count.checked_mul(4)?)?;
        }
        let mut share = None;
        if flags & flag::GROUP != 0 {
            let length = usize::from(u16::from_be_bytes(take(rest)?));
            share = Some(std::str::from_utf8(take_slice(rest, length)?).ok()?);
        }
        let via = self.via(identifiers, share);
        let rest = &mut self.rest;
        if flags & flag::SHARED != 0 {
            let number = u64::from_be_bytes(take(rest)?);
            return Some(Stored::Shared(Reference { number, via, qos, retain, charged }));
        }
        let length = u32::from_be_bytes(take(rest)?) as usize;
        let publication = self.reader.publication(take_slice(rest, length)?, 0)?;
        Some(Stored::Own(Entry { publication, via, qos, retain, charged }))
    }
}

impl Run<'_> {
    fn via(&mut self, identifiers: &[u8], share: Option<&str>) -> Option<Arc<Via>> {
        if identifiers.is_empty() && share.is_none() {
            return None;
        }
        let identifiers = identifiers.as_chunks::<4>().0.iter().map(|n| u32::from_be_bytes(*n));
        let same = |known: &Arc<Via>| {
            known.share.as_deref() == share && known.identifiers.iter().copied().eq(identifiers.clone())
        };
        if !self.last.as_ref().is_some_and(same) {
            let (identifiers, share) = (identifiers.collect(), share.map(Box::from));
            self.last = Some(Arc::new(Via { identifiers, share, ..Via::default() }));
        }
        self.last.clone()
    }
}

impl Iterator for Run<'_> {
    type Item = Result<Stored, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.read();
        if entry.is_none() {
            self.rest = &[];
        }
        Some(entry.ok_or(Damaged("v2.runs")))
    }
}

fn qos(bits: u8) -> Option<QoS> {
    Some(match bits {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        2 => QoS::ExactlyOnce,
        _ => return None,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn take_slice<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

/// Appends a row of [`PROGRESS`].
pub(super) fn put_progress(out: &mut BytesMut, progress: &Progress) {
    out.put_u64(progress.cursor);
    out.put_u32(progress.done.len() as u32);
    for range in progress.done.iter() {
        out.put_u64(range.start);
        out.put_u64(range.end);
    }
    out.put_u32(progress.released.len() as u32);
    for position in &progress.released {
        out.put_u64(*position);
    }
    out.put_u32(progress.received.len() as u32);
    for &(identifier, sinks) in &progress.received {
        out.put_u16(identifier);
        out.put_u8(u8::from(sinks));
    }
}

/// Reads a row of [`PROGRESS`].
pub(super) fn read_progress(bytes: &[u8]) -> Result<Progress, Damaged> {
    let read = || {
        let mut rest = bytes;
        let mut progress = Progress { cursor: u64::from_be_bytes(take(&mut rest)?), ..Progress::default() };
        for _ in 0..u32::from_be_bytes(take(&mut rest)?) {
            let start = u64::from_be_bytes(take(&mut rest)?);
            progress.done.insert(start..u64::from_be_bytes(take(&mut rest)?));
        }
        for _ in 0..u32::from_be_bytes(take(&mut rest)?) {
            progress.released.push(u64::from_be_bytes(take(&mut rest)?));
        }
        for _ in 0..u32::from_be_bytes(take(&mut rest)?) {
            let identifier = u16::from_be_bytes(take(&mut rest)?);
            let [sinks] = take::<1>(&mut rest)?;
            progress.received.push((identifier, sinks != 0));
        }
        rest.is_empty().then_some(progress)
    };
    read().ok_or(Damaged("v2.progress"))
}

/// The value of a row of [`SUBSCRIPTIONS`].
pub(super) fn subscription(options: SubscriptionOptions, identifier: Option<u32>) -> [u8; 5] {
    let SubscriptionOptions { qos, no_local, retain_as_published, retain_handling } = options;
    let bits = qos as u8
        | u8::from(no_local) << 2
        | u8::from(retain_as_published) << 3
        | (retain_handling as u8) << 4;
    let [a, b, c, d] = identifier.unwrap_or_default().to_be_bytes();
    [bits, a, b, c, d]
}

/// Reads a value of [`SUBSCRIPTIONS`].
pub(super) fn read_subscription(bytes: &[u8]) -> Result<(SubscriptionOptions, Option<u32>), Damaged> {
    let read = || {
        let (&bits, identifier) = bytes.split_first()?;
        let identifier = u32::from_be_bytes(identifier.try_into().ok()?);
        let options = SubscriptionOptions {
            qos: qos(bits & 3)?,
            no_local: bits & 1 << 2 != 0,
            retain_as_published: bits & 1 << 3 != 0,
            retain_handling: match bits >> 4 {
                0 => RetainHandling::Send,
                1 => RetainHandling::SendIfNew,
                2 => RetainHandling::DoNotSend,
                _ => return None,
            },
        };
        Some((options, (identifier != 0).then_some(identifier)))
    };
    read().ok_or(Damaged("v2.subscriptions"))
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u32(text.len() as u32);
    out.extend_from_slice(text.as_bytes());
}

fn take_text(rest: &mut &[u8]) -> Option<Box<str>> {
    let length = u32::from_be_bytes(take(rest)?) as usize;
    std::str::from_utf8(take_slice(rest, length)?).ok().map(Box::from)
}

/// Appends a row of [`SESSIONS`].
pub(super) fn put_record(out: &mut BytesMut, record: &Record) {
    let Record { id, client_id, username, expiry, presence, will } = record;
    out.extend_from_slice(&id.0);
    put_text(out, client_id);
    out.put_u8(u8::from(username.is_some()));
    if let Some(username) = username {
        put_text(out, username);
    }
    out.put_u64(*expiry);
    match *presence {
        Presence::Connected => {
            out.put_u8(0);
            out.put_u32(RESERVED);
        }
        Presence::Away { since, sent } => {
            out.put_u8(1);
            out.put_i64(since);
            out.put_u64(sent);
        }
    }
    out.put_u8(u8::from(will.is_some()));
    if let Some(will) = will {
        out.put_u32(will.delay);
        out.extend_from_slice(&will.message);
    }
}

/// Reads a row of [`SESSIONS`].
pub(super) fn read_record(bytes: &[u8]) -> Result<Record, Damaged> {
    let read = || {
        let mut rest = bytes;
        let id = SessionId(take(&mut rest)?);
        let client_id = take_text(&mut rest)?;
        let username = match take::<1>(&mut rest)? {
            [0] => None,
            _ => Some(take_text(&mut rest)?),
        };
        let expiry = u64::from_be_bytes(take(&mut rest)?);
        let presence = match take::<1>(&mut rest)? {
            [0] => {
                take::<4>(&mut rest)?;
                Presence::Connected
            }
            [1] => Presence::Away {
                since: i64::from_be_bytes(take(&mut rest)?),
                sent: u64::from_be_bytes(take(&mut rest)?),
            },
            _ => return None,
        };
        let will = match take::<1>(&mut rest)? {
            [0] => None,
            _ => Some(StoredWill { delay: u32::from_be_bytes(take(&mut rest)?), message: rest.into() }),
        };
        Some(Record { id, client_id, username, expiry, presence, will })
    };
    read().ok_or(Damaged("v2.sessions"))
}

/// Changes a row of [`MESSAGES`].
pub(super) fn set_retained(row: &mut [u8], retained: bool) {
    if let Some(flags) = row.first_mut() {
        *flags = if retained { *flags | RETAINED } else { *flags & !RETAINED };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::{memory::MemoryCounter, publication::tests::with_expiry};

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write;
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    fn bytes(put: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        put(&mut out);
        out
    }

    /// Bytes of files of format 2. A change here is another format.
    #[test]
    fn the_bytes_of_format_2_are_fixed() {
        let publication = with_expiry("t/1", b"body", QoS::ExactlyOnce, true, Some(300));
        let message = "000000000000000035110003742f31000105020000012c626f6479";
        assert_eq!(hex(&bytes(|out| put_message(out, &publication))), message);
        let shared = bytes(|out| put_shared(out, &publication, true));
        assert_eq!(hex(&shared), format!("01{message}"));
        let publication = Arc::new(publication);
        let own = Entry {
            publication: publication.clone(),
            via: Via::identified([7, 300]),
            qos: QoS::AtLeastOnce,
            retain: true,
            charged: true,
        };
        let number = Arc::new(with_expiry("t", b"", QoS::AtLeastOnce, false, None).stored_as(0x0102_0304));
        let referring =
            Entry { publication: number, via: None, qos: QoS::ExactlyOnce, retain: false, charged: true };
        let uncharged = Entry { charged: false, retain: true, ..referring.clone() };
        let run = bytes(|out| {
            put_entry(out, Some(&own));
            put_entry(out, None);
            put_entry(out, Some(&referring));
            put_entry(out, Some(&uncharged));
        });
        let length = format!("{:08x}", message.len() / 2);
        let expected =
            format!("0d00000002000000070000012c{length}{message}20120000000001020304960000000001020304");
        assert_eq!(hex(&run), expected);
        let origin = Arc::new(Origin { client_id: "c".into(), username: None, peer: None });
        let reader = Reader { origin, memory: MemoryCounter::new(u64::MAX) };
        let entries: Vec<_> = Run::new(&run, &reader).map(Result::unwrap).collect();
        assert!(matches!(
            &entries[..],
            [
                Stored::Own(own),
                Stored::Hole,
                Stored::Shared(Reference { number: 0x0102_0304, via: None, qos: QoS::ExactlyOnce, retain: false, charged: true }),
                Stored::Shared(Reference { number: 0x0102_0304, via: None, qos: QoS::ExactlyOnce, retain: true, charged: false }),
            ] if own.charged && own.publication.payload() == b"body" && own.via.as_ref().is_some_and(|via| via.identifiers[..] == [7, 300])
        ));
        let mut progress =
            Progress { cursor: 3, released: vec![5], received: vec![(9, true)], ..Progress::default() };
        progress.done.insert(5..7);
        let row = bytes(|out| put_progress(out, &progress));
        let expected =
            "0000000000000003000000010000000000000005000000000000000700000001000000000000000500000001000901";
        assert_eq!(hex(&row), expected);
        assert_eq!(read_progress(&row), Ok(progress));
        let record = Record {
            id: SessionId(*b"sixteen bytes id"),
            client_id: "c".into(),
            username: Some("u".into()),
            expiry: 1000,
            presence: Presence::Away { since: 2, sent: 3 },
            will: Some(StoredWill { delay: 4, message: Box::from(&b"m"[..]) }),
        };
        let row = bytes(|out| put_record(out, &record));
        let expected = "7369787465656e206279746573206964\
             0000000163010000000175\
             00000000000003e80100000000000000020000000000000003\
             01000000046d";
        assert_eq!(hex(&row), expected);
        assert_eq!(read_record(&row).as_ref(), Ok(&record));
        let connected = Record { presence: Presence::Connected, will: None, ..record };
        let row = bytes(|out| put_record(out, &connected));
        let expected = "7369787465656e206279746573206964\
             0000000163010000000175\
             00000000000003e800ffffffff00";
        assert_eq!(hex(&row), expected);
        // Whatever stands in the reserved field, as in files of earlier builds.
        for reserved in [[0; 4], [0, 0, 0, 10], [0xff; 4]] {
            let mut row = bytes(|out| put_record(out, &connected)).to_vec();
            let at = row.len() - 5;
            row[at..at + 4].copy_from_slice(&reserved);
            assert_eq!(read_record(&row).as_ref(), Ok(&connected));
        }
        let options = SubscriptionOptions {
            qos: QoS::AtLeastOnce,
            no_local: true,
            retain_as_published: true,
            retain_handling: RetainHandling::DoNotSend,
        };
        let value = subscription(options, Some(258));
        assert_eq!(value, [0x2d, 0, 0, 1, 2]);
        assert_eq!(read_subscription(&value), Ok((options, Some(258))));
    }

    #[test]
    fn no_bytes_are_more_than_damaged() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let origin = Arc::new(Origin { client_id: "c".into(), username: None, peer: None });
        let reader = Reader { origin, memory: MemoryCounter::new(u64::MAX) };
        for _ in 0..20_000 {
            let length = random.random_range(0..60);
            let row: Vec<u8> =
                (0..length).map(|_| if random.random_bool(0.6) { 0 } else { random.random() }).collect();
            let _ = (read_progress(&row), read_record(&row), read_subscription(&row));
            let _ = read_shared(&row, &reader, 1);
            Run::new(&row, &reader).for_each(drop);
        }
    }
}
