//! The names under which consumer bridges are static members of their groups (KIP-345).
//!
//! Two members of a group must never have one name: the later one fences the earlier. A name therefore tells
//! cluster, node and bridge apart, whatever characters they consist of: their lengths come first.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// Longest `group.instance.id` that Kafka's clients and tools take.
const MAX_LEN: usize = 249;
/// Characters of an overlong name that are kept in front of its hash.
const KEPT: usize = 180;
/// Bytes of the hash of an overlong name.
const HASH_BYTES: usize = 16;

/// The `group.instance.id` of a consumer bridge of a node, which may belong to a cluster.
pub(super) fn member_id(cluster: Option<&str>, node: &str, bridge: &str) -> String {
    let plain = match cluster {
        Some(cluster) => format!("causeway.{}.{}-{cluster}-{node}-{bridge}", cluster.len(), node.len()),
        None => format!("causeway.{}-{node}-{bridge}", node.len()),
    };
    if plain.len() <= MAX_LEN {
        return plain;
    }
    let mut short: String = plain.chars().take(KEPT).collect();
    short.push('-');
    for byte in Sha256::digest(plain.as_bytes()).iter().take(HASH_BYTES) {
        // Writing into a string does not fail.
        let _ = write!(short, "{byte:02x}");
    }
    short
}

/// The name that all bridges of a node had before 0.2: one group had room for one bridge of a node.
pub(super) fn former_member_id(node: &str) -> String {
    format!("causeway-{node}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn bridges_nodes_and_clusters_never_share_a_member_id() {
        let names = ["a", "b", "a-b", "b-c", "c", "a.b", "1-a", "1", "1.1-a", "a-1", "-", ".", "2", "1.1"];
        let clusters = std::iter::once(None).chain(names.map(Some));
        let mut ids = BTreeSet::new();
        for cluster in clusters {
            for node in names {
                for bridge in names {
                    let id = member_id(cluster, node, bridge);
                    assert!(ids.insert(id.clone()), "{id} of {cluster:?} {node} {bridge} is taken");
                    assert!(names.iter().all(|node| former_member_id(node) != id), "{id}");
                }
            }
        }
        assert_eq!(member_id(None, "edge-1", "commands_in"), "causeway.6-edge-1-commands_in");
        assert_eq!(member_id(Some("plant"), "edge-1", "in"), "causeway.5.6-plant-edge-1-in");
    }

    #[test]
    fn an_overlong_member_id_is_shortened_to_what_kafka_takes_and_stays_its_own() {
        let node = "n".repeat(128);
        let ids: BTreeSet<String> =
            ["x", "y"].map(|end| member_id(None, &node, &("b".repeat(253) + end))).into();
        assert_eq!(ids.len(), 2);
        for id in ids {
            assert!(
                id.len() <= 249 && id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)),
                "{id}"
            );
        }
    }
}
