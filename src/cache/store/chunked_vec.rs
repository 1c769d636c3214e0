//! A vector that grows by chunks. Unlike [`Vec`], it moves no item when it grows, and at most one
//! chunk of it is unused.

use std::ops::{Index, IndexMut};

/// Items of a chunk.
const CHUNK: usize = 64;

/// A vector of items that are only added.
#[derive(Debug)]
pub struct ChunkedVec<T>(Vec<Vec<T>>);

impl<T> Default for ChunkedVec<T> {
    fn default() -> Self {
        ChunkedVec(Vec::new())
    }
}

impl<T> ChunkedVec<T> {
    /// Number of items.
    pub fn len(&self) -> usize {
        match self.0.split_last() {
            Some((last, full)) => full.len() * CHUNK + last.len(),
            None => 0,
        }
    }

    /// Add an item at the end.
    pub fn push(&mut self, item: T) {
        match self.0.last_mut() {
            Some(last) if last.len() < CHUNK => last.push(item),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(item);
                self.0.push(chunk);
            }
        }
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<Vec<T>>() + self.0.len() * CHUNK * size_of::<T>()
    }
}

impl<T> Index<usize> for ChunkedVec<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.0[index / CHUNK][index % CHUNK]
    }
}

impl<T> IndexMut<usize> for ChunkedVec<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.0[index / CHUNK][index % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_stay_in_their_order_and_can_be_changed() {
        let mut items = ChunkedVec::default();
        for item in 0..1_000 {
            assert_eq!(items.len(), item);
            items.push(item);
        }
        items[CHUNK] = 7;
        for index in 0..1_000 {
            let expected = if index == CHUNK { 7 } else { index };
            assert_eq!(items[index], expected);
        }
    }

    #[test]
    #[should_panic(expected = "index out of bounds")]
    fn there_is_nothing_behind_the_last_item() {
        let mut items = ChunkedVec::default();
        items.push(1);
        let _ = items[1];
    }
}
