//! The kinds of trouble that an episode may have beside faults of Kafka, of the node's process and of its
//! disk.

use std::fmt;

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The node is restarted with another configuration: a bridge is disabled for a while, the buffer of a
    /// bridge changes and changes back, limits change, a topic is added to a consumer bridge.
    Configuration,
    /// Stored sessions are away while the node is restarted, and come back later.
    Absence,
    /// A bridge starts later than the node: enabled at run time, its buffer in the hands of another process,
    /// its Kafka unreachable.
    LateBridge,
    /// Devices end their sessions and begin new ones, with the packet identifiers of the old ones.
    SessionEnd,
    /// Records come from Kafka, from partitions that are added while the node is down as well.
    WayBack,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Configuration, Self::Absence, Self::LateBridge, Self::SessionEnd, Self::WayBack];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Absence => "absence",
            Self::LateBridge => "late-bridge",
            Self::SessionEnd => "session-end",
            Self::WayBack => "way-back",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}
