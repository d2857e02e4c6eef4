//! Format 1 of `sessions.redb`, of which a file is made one of format 2 ([`super::v2`]) when it is opened.
//!
//! It differs in its table names, in `v1.sessions`, whose rows have no identity of the session, and in
//! `v1.meta`, which does not name the life of the node. Format 1 gave the number of a session that had ended
//! to another one after a crash; the sessions that are there get identities that were never used.

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::v2;
use crate::flow::SessionId;

pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("v1.meta");
pub(super) const SESSIONS: TableDefinition<u64, &[u8]> = TableDefinition::new("v1.sessions");
pub(super) const SUBSCRIPTIONS: TableDefinition<(u64, &str), &[u8]> =
    TableDefinition::new("v1.subscriptions");
pub(super) const RUNS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("v1.runs");
pub(super) const PROGRESS: TableDefinition<u64, &[u8]> = TableDefinition::new("v1.progress");
pub(super) const MESSAGES: TableDefinition<u64, &[u8]> = TableDefinition::new("v1.messages");

/// The number that [`META`] has for the format.
pub(super) const FORMAT: u64 = 1;

/// Makes it a file of format 2. What was remembered of QoS 2 publications stays believed: it is from the life
/// before `life`, as far as format 1 can tell.
pub(super) fn upgrade(transaction: &WriteTransaction, life: Option<u64>) -> Result<(), redb::Error> {
    {
        let old = transaction.open_table(SESSIONS)?;
        let mut new = transaction.open_table(v2::SESSIONS)?;
        for row in old.iter()? {
            let (session, value) = row?;
            let record = [&SessionId::random().0, value.value()].concat();
            new.insert(session.value(), &*record)?;
        }
        let mut meta = transaction.open_table(v2::META)?;
        meta.insert(v2::FORMAT.0, v2::FORMAT.1)?;
        if let Some(life) = life {
            meta.insert(v2::LIFE, life)?;
        }
    }
    transaction.delete_table(SESSIONS)?;
    transaction.delete_table(META)?;
    transaction.rename_table(SUBSCRIPTIONS, v2::SUBSCRIPTIONS)?;
    transaction.rename_table(RUNS, v2::RUNS)?;
    transaction.rename_table(PROGRESS, v2::PROGRESS)?;
    transaction.rename_table(MESSAGES, v2::MESSAGES)?;
    // Format 1 holds no retained messages back.
    transaction.open_table(v2::AWAITED)?;
    Ok(())
}
