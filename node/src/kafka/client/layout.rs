//! The shapes of the answers that we read, walked before they are decoded.
//!
//! The generated decoders allocate room for as many elements as an answer *declares*. Walking the bytes
//! first proves that every declared element, string and byte block is really there, so what is then
//! allocated is bounded by what was received. An answer without a shape here cannot be decoded: adding
//! a request means adding its answer's shape.

use std::fmt;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::ApiKey;

/// Wire form of a field.
#[derive(Clone, Copy)]
enum Kind {
    /// A number, boolean or id of this many bytes.
    Fixed(usize),
    /// A string, null allowed: the decoder minds the difference.
    Text,
    /// A block of bytes, null allowed.
    Block,
    /// An array of numbers of this many bytes.
    Numbers(usize),
    /// An array of strings.
    Texts,
    /// An array of structures.
    Structs(&'static Shape),
    /// One structure.
    Struct(&'static Shape),
}

/// A field and the versions that have it.
struct Field {
    since: i16,
    until: i16,
    kind: Kind,
}

/// A structure: its fields in order and, in flexible versions, the tagged fields that the decoder knows.
struct Shape {
    fields: &'static [Field],
    tags: &'static [(u32, Kind)],
}

const fn field(kind: Kind) -> Field {
    Field { since: 0, until: i16::MAX, kind }
}

const fn since(since: i16, kind: Kind) -> Field {
    Field { since, until: i16::MAX, kind }
}

const fn between(since: i16, until: i16, kind: Kind) -> Field {
    Field { since, until, kind }
}

use Kind::{Block, Fixed, Numbers, Struct, Structs, Text, Texts};

macro_rules! shape {
    ($name:ident = [$($field:expr),* $(,)?] $(, tags [$(($tag:expr, $kind:expr)),* $(,)?])?) => {
        static $name: Shape = Shape { fields: &[$($field),*], tags: &[$($(($tag, $kind)),*)?] };
    };
}

shape!(NODE_ENDPOINT = [field(Fixed(4)), field(Text), field(Fixed(4)), field(Text)]);

shape!(API_VERSION = [field(Fixed(6))]);
shape!(FEATURE = [field(Text), field(Fixed(4))]);
shape!(
    API_VERSIONS = [field(Fixed(2)), field(Structs(&API_VERSION)), since(1, Fixed(4))],
    tags [(0, Structs(&FEATURE)), (1, Fixed(8)), (2, Structs(&FEATURE)), (3, Fixed(1))]
);

shape!(METADATA_BROKER = [field(Fixed(4)), field(Text), field(Fixed(4)), since(1, Text)]);
shape!(
    METADATA_PARTITION =
        [field(Fixed(10)), since(7, Fixed(4)), field(Numbers(4)), field(Numbers(4)), since(5, Numbers(4))]
);
shape!(
    METADATA_TOPIC = [
        field(Fixed(2)),
        field(Text),
        since(10, Fixed(16)),
        since(1, Fixed(1)),
        field(Structs(&METADATA_PARTITION)),
        since(8, Fixed(4))
    ]
);
shape!(
    METADATA = [
        since(3, Fixed(4)),
        field(Structs(&METADATA_BROKER)),
        since(2, Text),
        since(1, Fixed(4)),
        field(Structs(&METADATA_TOPIC)),
        between(8, 10, Fixed(4)),
        since(13, Fixed(2))
    ]
);

shape!(
    COORDINATOR = [field(Text), field(Fixed(4)), field(Text), field(Fixed(4)), field(Fixed(2)), field(Text)]
);
shape!(
    FIND_COORDINATOR = [
        since(1, Fixed(4)),
        between(0, 3, Fixed(2)),
        between(1, 3, Text),
        between(0, 3, Fixed(4)),
        between(0, 3, Text),
        between(0, 3, Fixed(4)),
        since(4, Structs(&COORDINATOR))
    ]
);

shape!(LISTED_PARTITION = [field(Fixed(6)), since(1, Fixed(16)), since(4, Fixed(4))]);
shape!(LISTED_TOPIC = [field(Text), field(Structs(&LISTED_PARTITION))]);
shape!(LIST_OFFSETS = [since(2, Fixed(4)), field(Structs(&LISTED_TOPIC))]);

shape!(INIT_PRODUCER_ID = [field(Fixed(16))]);

shape!(LEADER = [field(Fixed(8))]);
shape!(RECORD_ERROR = [field(Fixed(4)), field(Text)]);
shape!(
    PRODUCED_PARTITION = [
        field(Fixed(14)),
        since(2, Fixed(8)),
        since(5, Fixed(8)),
        since(8, Structs(&RECORD_ERROR)),
        since(8, Text)
    ],
    tags[(0, Struct(&LEADER))]
);
shape!(PRODUCED_TOPIC = [field(Text), field(Structs(&PRODUCED_PARTITION))]);
shape!(PRODUCE = [field(Structs(&PRODUCED_TOPIC)), since(1, Fixed(4))], tags[(0, Structs(&NODE_ENDPOINT))]);

shape!(ABORTED_TRANSACTION = [field(Fixed(16))]);
shape!(EPOCH_END_OFFSET = [field(Fixed(12))]);
shape!(SNAPSHOT_ID = [field(Fixed(12))]);
shape!(
    FETCHED_PARTITION = [
        field(Fixed(14)),
        since(4, Fixed(8)),
        since(5, Fixed(8)),
        since(4, Structs(&ABORTED_TRANSACTION)),
        since(11, Fixed(4)),
        field(Block)
    ],
    tags [(0, Struct(&EPOCH_END_OFFSET)), (1, Struct(&LEADER)), (2, Struct(&SNAPSHOT_ID))]
);
shape!(FETCHED_TOPIC = [between(0, 12, Text), since(13, Fixed(16)), field(Structs(&FETCHED_PARTITION))]);
shape!(
    FETCH = [since(1, Fixed(4)), since(7, Fixed(6)), field(Structs(&FETCHED_TOPIC))],
    tags[(0, Structs(&NODE_ENDPOINT))]
);

shape!(GROUP_MEMBER = [field(Text), since(5, Text), field(Block)]);
shape!(
    JOIN_GROUP = [
        since(2, Fixed(4)),
        field(Fixed(6)),
        since(7, Text),
        field(Text),
        field(Text),
        since(9, Fixed(1)),
        field(Text),
        field(Structs(&GROUP_MEMBER))
    ]
);
shape!(SYNC_GROUP = [since(1, Fixed(4)), field(Fixed(2)), since(5, Text), since(5, Text), field(Block)]);
shape!(HEARTBEAT = [since(1, Fixed(4)), field(Fixed(2))]);
shape!(LEAVING_MEMBER = [field(Text), field(Text), field(Fixed(2))]);
shape!(LEAVE_GROUP = [since(1, Fixed(4)), field(Fixed(2)), since(3, Structs(&LEAVING_MEMBER))]);

shape!(COMMITTED_PARTITION = [field(Fixed(6))]);
shape!(COMMITTED_TOPIC = [field(Text), field(Structs(&COMMITTED_PARTITION))]);
shape!(OFFSET_COMMIT = [since(3, Fixed(4)), field(Structs(&COMMITTED_TOPIC))]);
shape!(OFFSET_PARTITION = [field(Fixed(12)), since(5, Fixed(4)), field(Text), field(Fixed(2))]);
shape!(OFFSET_TOPIC = [field(Text), field(Structs(&OFFSET_PARTITION))]);
shape!(OFFSET_FETCH = [since(3, Fixed(4)), field(Structs(&OFFSET_TOPIC)), since(2, Fixed(2))]);

shape!(SASL_HANDSHAKE = [field(Fixed(2)), field(Texts)]);
shape!(SASL_AUTHENTICATE = [field(Fixed(2)), field(Text), field(Block), since(1, Fixed(8))]);

shape!(ACTIVE_PRODUCER = [field(Fixed(36))]);
shape!(PRODUCERS_PARTITION = [field(Fixed(6)), field(Text), field(Structs(&ACTIVE_PRODUCER))]);
shape!(PRODUCERS_TOPIC = [field(Text), field(Structs(&PRODUCERS_PARTITION))]);
shape!(DESCRIBE_PRODUCERS = [field(Fixed(4)), field(Structs(&PRODUCERS_TOPIC))]);

shape!(
    QUORUM_REPLICA =
        [field(Fixed(4)), since(2, Fixed(16)), field(Fixed(8)), since(1, Fixed(8)), since(1, Fixed(8))]
);
shape!(
    QUORUM_PARTITION = [
        field(Fixed(6)),
        since(2, Text),
        field(Fixed(16)),
        field(Structs(&QUORUM_REPLICA)),
        field(Structs(&QUORUM_REPLICA))
    ]
);
shape!(QUORUM_TOPIC = [field(Text), field(Structs(&QUORUM_PARTITION))]);
shape!(QUORUM_LISTENER = [field(Text), field(Text), field(Fixed(2))]);
shape!(QUORUM_NODE = [field(Fixed(4)), field(Structs(&QUORUM_LISTENER))]);
shape!(
    DESCRIBE_QUORUM =
        [field(Fixed(2)), since(2, Text), field(Structs(&QUORUM_TOPIC)), since(2, Structs(&QUORUM_NODE))]
);

shape!(CONFIG_SYNONYM = [field(Text), field(Text), field(Fixed(1))]);
shape!(
    CONFIG = [
        field(Text),
        field(Text),
        field(Fixed(1)),
        between(0, 0, Fixed(1)),
        since(1, Fixed(1)),
        field(Fixed(1)),
        since(1, Structs(&CONFIG_SYNONYM)),
        since(3, Fixed(1)),
        since(3, Text)
    ]
);
shape!(
    DESCRIBED_RESOURCE =
        [field(Fixed(2)), field(Text), field(Fixed(1)), field(Text), field(Structs(&CONFIG))]
);
shape!(DESCRIBE_CONFIGS = [field(Fixed(4)), field(Structs(&DESCRIBED_RESOURCE))]);

shape!(
    DESCRIBED_MEMBER = [field(Text), since(4, Text), field(Text), field(Text), field(Block), field(Block)]
);
shape!(
    DESCRIBED_GROUP = [
        field(Fixed(2)),
        since(6, Text),
        field(Text),
        field(Text),
        field(Text),
        field(Text),
        field(Structs(&DESCRIBED_MEMBER)),
        since(3, Fixed(4))
    ]
);
shape!(DESCRIBE_GROUPS = [since(1, Fixed(4)), field(Structs(&DESCRIBED_GROUP))]);

shape!(TOPIC_PARTITIONS = [field(Text), field(Numbers(4))]);
shape!(
    SUBSCRIPTION = [
        field(Texts),
        field(Block),
        since(1, Structs(&TOPIC_PARTITIONS)),
        since(2, Fixed(4)),
        since(3, Text)
    ]
);
shape!(ASSIGNMENT = [field(Structs(&TOPIC_PARTITIONS)), field(Block)]);

/// An answer's shape, its first flexible version, and the last version that the shape covers.
fn shape_of(api: i16) -> Option<(&'static Shape, i16, i16)> {
    Some(match ApiKey::try_from(api).ok()? {
        ApiKey::ApiVersions => (&API_VERSIONS, 3, 4),
        ApiKey::Metadata => (&METADATA, 9, 13),
        ApiKey::FindCoordinator => (&FIND_COORDINATOR, 3, 6),
        ApiKey::ListOffsets => (&LIST_OFFSETS, 6, 10),
        ApiKey::InitProducerId => (&INIT_PRODUCER_ID, 2, 5),
        ApiKey::Produce => (&PRODUCE, 9, 12),
        ApiKey::Fetch => (&FETCH, 12, 13),
        ApiKey::JoinGroup => (&JOIN_GROUP, 6, 9),
        ApiKey::SyncGroup => (&SYNC_GROUP, 4, 5),
        ApiKey::Heartbeat => (&HEARTBEAT, 4, 4),
        ApiKey::LeaveGroup => (&LEAVE_GROUP, 4, 5),
        ApiKey::OffsetCommit => (&OFFSET_COMMIT, 8, 9),
        ApiKey::OffsetFetch => (&OFFSET_FETCH, 6, 7),
        ApiKey::SaslHandshake => (&SASL_HANDSHAKE, i16::MAX, 1),
        ApiKey::SaslAuthenticate => (&SASL_AUTHENTICATE, 2, 2),
        ApiKey::DescribeProducers => (&DESCRIBE_PRODUCERS, 0, 0),
        ApiKey::DescribeQuorum => (&DESCRIBE_QUORUM, 0, 2),
        ApiKey::DescribeConfigs => (&DESCRIBE_CONFIGS, 4, 4),
        ApiKey::DescribeGroups => (&DESCRIBE_GROUPS, 5, 6),
        _ => return None,
    })
}

/// Why an answer cannot be what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misfit {
    /// It ends before what it declares.
    Short,
    /// A length or count is negative or too large for its type.
    Length,
    /// A tagged field is larger or smaller than its content.
    Tag,
    /// We have no shape for this API and version.
    Unknown,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "it declares more than it holds",
            Self::Length => "a length is out of range",
            Self::Tag => "a tagged field does not have its declared size",
            Self::Unknown => "this version of this api is not known here",
        })
    }
}

/// Proves that everything declared in `body`, an answer of `api` and `version`, is there.
pub(super) fn check(api: i16, version: i16, body: &[u8]) -> Result<(), Misfit> {
    let (shape, flexible_since, last) = shape_of(api).ok_or(Misfit::Unknown)?;
    if version > last {
        return Err(Misfit::Unknown);
    }
    let mut walker = Walker { rest: body, version, flexible: version >= flexible_since };
    walker.shape(shape)
}

/// As [`check`], for a group member's subscription without its leading version.
pub(in crate::kafka) fn check_subscription(version: i16, body: &[u8]) -> bool {
    Walker { rest: body, version, flexible: false }.shape(&SUBSCRIPTION).is_ok()
}

/// As [`check`], for a group member's assignment without its leading version.
pub(in crate::kafka) fn check_assignment(version: i16, body: &[u8]) -> bool {
    Walker { rest: body, version, flexible: false }.shape(&ASSIGNMENT).is_ok()
}

/// Takes a response header's tagged fields off `frame`.
pub(super) fn skip_tagged_fields(frame: &mut Bytes) -> Result<(), &'static str> {
    let mut walker = Walker { rest: frame, version: 0, flexible: true };
    walker.tags(&[]).map_err(|_| "a damaged response header")?;
    let taken = frame.len() - walker.rest.len();
    frame.advance(taken);
    Ok(())
}

struct Walker<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
}

impl<'a> Walker<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Misfit> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Misfit::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Misfit> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Misfit::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn varint(&mut self) -> Result<u32, Misfit> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.number()?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0x0f {
                return Err(Misfit::Length);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Misfit::Length)
    }

    /// A length in the flexible form: 0 is null, otherwise one more than the length.
    fn compact(&mut self) -> Result<usize, Misfit> {
        Ok((self.varint()? as usize).saturating_sub(1))
    }

    fn long(&mut self) -> Result<usize, Misfit> {
        match i32::from_be_bytes(self.number()?) {
            -1 => Ok(0),
            length => usize::try_from(length).map_err(|_| Misfit::Length),
        }
    }

    fn short(&mut self) -> Result<usize, Misfit> {
        match i16::from_be_bytes(self.number()?) {
            -1 => Ok(0),
            length => usize::try_from(length).map_err(|_| Misfit::Length),
        }
    }

    fn count(&mut self) -> Result<usize, Misfit> {
        if self.flexible { self.compact() } else { self.long() }
    }

    fn text(&mut self) -> Result<(), Misfit> {
        let length = if self.flexible { self.compact()? } else { self.short()? };
        self.take(length).map(|_| ())
    }

    fn shape(&mut self, shape: &Shape) -> Result<(), Misfit> {
        for field in shape.fields {
            if (field.since..=field.until).contains(&self.version) {
                self.kind(field.kind)?;
            }
        }
        if self.flexible { self.tags(shape.tags) } else { Ok(()) }
    }

    fn kind(&mut self, kind: Kind) -> Result<(), Misfit> {
        match kind {
            Fixed(size) => self.take(size).map(|_| ()),
            Text => self.text(),
            Block => {
                let length = self.count()?;
                self.take(length).map(|_| ())
            }
            Numbers(size) => {
                let count = self.count()?;
                self.take(count.checked_mul(size).ok_or(Misfit::Length)?).map(|_| ())
            }
            Texts => {
                for _ in 0..self.count()? {
                    self.text()?;
                }
                Ok(())
            }
            Structs(shape) => {
                for _ in 0..self.count()? {
                    self.shape(shape)?;
                }
                Ok(())
            }
            Struct(shape) => self.shape(shape),
        }
    }

    fn tags(&mut self, known: &[(u32, Kind)]) -> Result<(), Misfit> {
        for _ in 0..self.varint()? {
            let tag = self.varint()?;
            let size = self.varint()? as usize;
            let content = self.take(size)?;
            if let Some((_, kind)) = known.iter().find(|(number, _)| *number == tag) {
                let mut inner = Walker { rest: content, version: self.version, flexible: true };
                inner.kind(*kind)?;
                if !inner.rest.is_empty() {
                    return Err(Misfit::Tag);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
