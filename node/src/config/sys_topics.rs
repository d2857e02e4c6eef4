//! The `sys_topics` section: what the node says about itself under `$SYS/`.

use std::time::Duration;

use super::kind::Kind;
use super::kind_numbers::seconds;
use super::kind_values::boolean;
use super::section::{nested, section};

section! {
    /// The `$SYS` topics: figures of the node as MQTT messages (docs/sys-topics.md).
    pub struct SysTopicsConfig {
        /// How often they are published. 0: never.
        interval: Duration => seconds().or(Duration::from_mins(1));
        /// Events of clients.
        sys_event_messages: SysEventsConfig => nested();
    }
}

section! {
    /// Events of clients as messages under `$SYS/brokers/NODE/clients/CLIENT/`.
    pub struct SysEventsConfig {
        /// A message when a client has connected.
        client_connected: bool => boolean().or(false);
        /// A message when a client is not connected any more.
        client_disconnected: bool => boolean().or(false);
    }
}
