//! A queue and a map that most sessions never use: as long as nothing is in one of them, it costs a pointer.

use std::{
    collections::{VecDeque, vec_deque::IterMut},
    hash::Hash,
    ops::Deref,
};

use hashbrown::HashMap;

/// A [`VecDeque`] whose header is on the heap too. Reading methods are those of the deque.
#[expect(clippy::box_collection, reason = "the header of a deque is what is to be saved")]
pub(crate) struct LazyDeque<T>(Option<Box<VecDeque<T>>>);

impl<T> Default for LazyDeque<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: 'static> LazyDeque<T> {
    const EMPTY: &'static VecDeque<T> = &VecDeque::new();
}

impl<T: 'static> Deref for LazyDeque<T> {
    type Target = VecDeque<T>;

    fn deref(&self) -> &VecDeque<T> {
        self.0.as_deref().unwrap_or(Self::EMPTY)
    }
}

impl<T> LazyDeque<T> {
    pub(crate) fn push_back(&mut self, value: T) {
        self.0.get_or_insert_default().push_back(value);
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        self.0.as_mut()?.pop_front()
    }

    pub(crate) fn remove(&mut self, at: usize) -> Option<T> {
        self.0.as_mut()?.remove(at)
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.0.as_mut()?.get_mut(at)
    }

    pub(crate) fn iter_mut(&mut self) -> IterMut<'_, T> {
        self.0.as_mut().map(|deque| deque.iter_mut()).unwrap_or_default()
    }

    pub(crate) fn extend(&mut self, values: impl Iterator<Item = T>) {
        let mut values = values.peekable();
        if values.peek().is_some() {
            self.0.get_or_insert_default().extend(values);
        }
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        if let Some(deque) = &mut self.0 {
            deque.retain(keep);
        }
    }

    /// Everything in it; it is empty then.
    pub(crate) fn take(&mut self) -> VecDeque<T> {
        self.0.take().map(|deque| *deque).unwrap_or_default()
    }

    /// Gives back the memory that it does not need.
    pub(crate) fn shrink(&mut self) {
        match &mut self.0 {
            Some(deque) if deque.is_empty() => self.0 = None,
            Some(deque) => deque.shrink_to_fit(),
            None => {}
        }
    }

    /// Gives back its memory if it is empty.
    pub(crate) fn rest(&mut self) {
        if self.0.as_ref().is_some_and(|deque| deque.is_empty()) {
            self.0 = None;
        }
    }
}

/// A [`HashMap`] whose header is on the heap too. It gives back its memory when its last entry goes.
#[derive(Debug)]
pub(crate) struct LazyMap<K, V>(Option<Box<HashMap<K, V>>>);

impl<K, V> Default for LazyMap<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Eq + Hash, V> LazyMap<K, V> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.as_ref()?.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.0.as_mut()?.get_mut(key)
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.0.get_or_insert_default().insert(key, value);
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let removed = self.0.as_mut()?.remove(key);
        self.rest();
        removed
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&K, &mut V) -> bool) {
        if let Some(map) = &mut self.0 {
            map.retain(keep);
            self.rest();
        }
    }

    fn rest(&mut self) {
        if self.0.as_ref().is_some_and(|map| map.is_empty()) {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_a_pointer_until_something_is_put_in_and_after_its_last_entry_goes() {
        let mut map = LazyMap::default();
        assert_eq!(size_of::<LazyMap<u64, u64>>(), size_of::<usize>());
        assert!(map.is_empty() && map.get(&1).is_none() && map.remove(&1).is_none());
        (1..4).for_each(|key| map.insert(key, 10 * key));
        assert_eq!(
            (map.get(&2).copied(), map.get_mut(&3).copied(), map.contains_key(&4)),
            (Some(20), Some(30), false)
        );
        map.retain(|key, _| *key != 2);
        assert_eq!((map.remove(&1), map.is_empty()), (Some(10), false));
        assert_eq!((map.remove(&3), map.is_empty()), (Some(30), true));
        map.insert(5, 50);
        map.retain(|_, _| false);
        assert!(map.is_empty());
    }

    #[test]
    fn it_is_a_pointer_until_something_is_put_in_and_after_it_rests() {
        let mut queue = LazyDeque::default();
        assert_eq!(size_of::<LazyDeque<u64>>(), size_of::<usize>());
        assert!(queue.is_empty() && queue.pop_front().is_none() && queue.remove(0).is_none());
        queue.extend(std::iter::empty());
        assert!(queue.0.is_none());
        queue.extend([1, 2, 3].into_iter());
        queue.push_back(4);
        queue.retain(|number| *number != 2);
        assert_eq!(queue.iter_mut().map(|number| *number).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(queue.pop_front(), Some(1));
        queue.rest();
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.take(), [3, 4]);
        queue.push_back(5);
        assert_eq!(queue.pop_front(), Some(5));
        queue.rest();
        assert!(queue.0.is_none());
    }
}
