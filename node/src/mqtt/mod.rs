//! The MQTT front: listeners, connections, sessions, router.

#![allow(dead_code, reason = "the connections that use the rest follow")]

mod inbox;
mod level_tree;
mod publication;
mod retained;
mod route;
mod router;
mod stats;

pub use retained::RetainedLimits;
pub use route::{Route, RouteCache};
pub use router::{PublishProgress, Published, Router, SinkId};
pub use stats::{Stats, StatsSnapshot};
