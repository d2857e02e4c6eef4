//! A queue that most sessions never use: as long as nothing is in it, it costs a pointer.

use std::{
    collections::{VecDeque, vec_deque::IterMut},
    ops::Deref,
};

/// A [`VecDeque`] whose header is on the heap too. What only reads it goes to the deque itself.
#[expect(clippy::box_collection, reason = "the header of a deque is what is to be saved")]
pub(crate) struct Hollow<T>(Option<Box<VecDeque<T>>>);

impl<T> Default for Hollow<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: 'static> Hollow<T> {
    const EMPTY: &'static VecDeque<T> = &VecDeque::new();
}

impl<T: 'static> Deref for Hollow<T> {
    type Target = VecDeque<T>;

    fn deref(&self) -> &VecDeque<T> {
        self.0.as_deref().unwrap_or(Self::EMPTY)
    }
}

impl<T> Hollow<T> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_pointer_until_something_is_put_in_and_after_it_rests() {
        let mut queue = Hollow::default();
        assert_eq!(size_of::<Hollow<u64>>(), size_of::<usize>());
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
