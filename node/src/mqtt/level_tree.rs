//! A tree of topic levels in one arena.
//!
//! Filters (router) and names (retained messages) both live in one of these. Nodes refer to each other
//! by number, so nothing recurses, not even dropping a tree that is 128 levels deep or a filter
//! made of slashes.
//!
//! Invariants:
//! * A node without a value and without children does not exist, the root excepted.
//! * A node's number is free for another node once the node is gone; numbers are not kept across changes.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

pub(crate) type NodeId = u32;

/// The node above all first levels.
pub(crate) const ROOT: NodeId = 0;

struct Node<V> {
    parent: NodeId,
    level: Box<str>,
    children: HashTable<NodeId>,
    value: Option<V>,
}

/// Values at paths of topic levels.
pub(crate) struct LevelTree<V> {
    nodes: Vec<Option<Node<V>>>,
    free: Vec<NodeId>,
    hasher: DefaultHashBuilder,
}

impl<V> Default for LevelTree<V> {
    fn default() -> Self {
        let root = Node { parent: ROOT, level: "".into(), children: HashTable::new(), value: None };
        Self { nodes: vec![Some(root)], free: Vec::new(), hasher: DefaultHashBuilder::default() }
    }
}

impl<V> LevelTree<V> {
    fn node(&self, id: NodeId) -> Option<&Node<V>> {
        self.nodes.get(id as usize)?.as_ref()
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node<V>> {
        self.nodes.get_mut(id as usize)?.as_mut()
    }

    /// Nodes in use, the root included.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// The child of `id` at `level`.
    pub(crate) fn child(&self, id: NodeId, level: &str) -> Option<NodeId> {
        let children = &self.node(id)?.children;
        if children.is_empty() {
            return None;
        }
        let is_it = |&child: &NodeId| self.node(child).is_some_and(|node| &*node.level == level);
        children.find(self.hasher.hash_one(level), is_it).copied()
    }

    /// All children of `id`, in no order.
    pub(crate) fn children(&self, id: NodeId) -> impl Iterator<Item = (NodeId, &str)> {
        let children = self.node(id).into_iter().flat_map(|node| node.children.iter());
        children.filter_map(|&child| Some((child, &*self.node(child)?.level)))
    }

    /// The node at `path`, if there is one.
    pub(crate) fn find(&self, path: &str) -> Option<NodeId> {
        path.split('/').try_fold(ROOT, |id, level| self.child(id, level))
    }

    /// The value at a node.
    pub(crate) fn value(&self, id: NodeId) -> Option<&V> {
        self.node(id)?.value.as_ref()
    }

    /// The value at a node, to change it in place. Use [`Self::prune`] to remove it.
    pub(crate) fn value_mut(&mut self, id: NodeId) -> Option<&mut V> {
        self.node_mut(id)?.value.as_mut()
    }

    /// The value at `path`; made by `make` where there is none.
    pub(crate) fn entry(&mut self, path: &str, make: impl FnOnce() -> V) -> Option<&mut V> {
        let mut id = ROOT;
        for level in path.split('/') {
            id = match self.child(id, level) {
                Some(child) => child,
                None => self.add(id, level)?,
            };
        }
        Some(self.node_mut(id)?.value.get_or_insert_with(make))
    }

    fn add(&mut self, parent: NodeId, level: &str) -> Option<NodeId> {
        let node = Node { parent, level: level.into(), children: HashTable::new(), value: None };
        let id = if let Some(id) = self.free.pop() {
            *self.nodes.get_mut(id as usize)? = Some(node);
            id
        } else {
            let id = NodeId::try_from(self.nodes.len()).ok()?;
            self.nodes.push(Some(node));
            id
        };
        let mut children = std::mem::take(&mut self.node_mut(parent)?.children);
        let hash = |level: &str| self.hasher.hash_one(level);
        children
            .insert_unique(hash(level), id, |&child| hash(self.node(child).map_or("", |node| &node.level)));
        self.node_mut(parent)?.children = children;
        Some(id)
    }

    /// Takes the value away from a node, and with it every node that is then of no use.
    pub(crate) fn prune(&mut self, id: NodeId) -> Option<V> {
        let value = self.node_mut(id)?.value.take();
        let mut id = id;
        while id != ROOT {
            let Some(node) = self.node(id) else { break };
            if node.value.is_some() || !node.children.is_empty() {
                break;
            }
            let (parent, hash) = (node.parent, self.hasher.hash_one(&*node.level));
            if let Some(slot) = self.nodes.get_mut(id as usize) {
                *slot = None;
            }
            self.free.push(id);
            if let Some(parent) = self.node_mut(parent)
                && let Ok(entry) = parent.children.find_entry(hash, |&child| child == id)
            {
                entry.remove();
            }
            id = parent;
        }
        if self.free.len() + 1 == self.nodes.len() && self.nodes.len() > 64 {
            // Empty after having been large: give the memory back.
            *self = Self::default();
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_path_leaves_no_node_behind() {
        let mut tree = LevelTree::default();
        for path in ["a/b/c", "a/b", "a//c", "/", ""] {
            *tree.entry(path, || "").unwrap() = path;
        }
        for path in ["a/b", "a/b/c", "/", "a//c", ""] {
            let id = tree.find(path).unwrap();
            assert_eq!(tree.prune(id), Some(path));
            assert!(tree.find(path).and_then(|id| tree.value(id)).is_none());
        }
        assert_eq!(tree.len(), 1);
    }

    #[test]
    fn depth_costs_no_stack() {
        let path = "/".repeat(65_535);
        let mut tree = LevelTree::default();
        tree.entry(&path, || 1).unwrap();
        drop(tree);
    }
}
