//! The batch mailbox: data moves between actors in whole queues.
