//! Memory for large reads and writes.

use std::ops::{Deref, DerefMut};

/// Where buffers begin: a multiple of a page, which is what direct access asks for at least.
pub(crate) const PAGE: usize = 4096;

/// Bytes that begin at a page boundary. What the allocator gives for a large vector begins 16 bytes behind one, and there some processors
/// need three times as long to copy a page out of the page cache.
#[derive(Debug, Default)]
pub struct PageBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl PageBuffer {
    /// A buffer of `len` zero bytes.
    pub fn new(len: usize) -> Self {
        let mut buffer = Self::default();
        buffer.set_len(len);
        buffer
    }

    /// Makes it `len` bytes long. What it holds then may be anything that it held before, or zeroes: for callers that fill it.
    pub fn set_len(&mut self, len: usize) {
        if self.bytes.len() < self.start + len || self.bytes.is_empty() {
            self.bytes = vec![0; len + PAGE];
            self.start = self.bytes.as_ptr().align_offset(PAGE).min(PAGE);
        }
        self.len = len;
    }
}

impl Deref for PageBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_a_page_whatever_its_length_was_before() {
        let mut buffer = PageBuffer::default();
        assert!(buffer.is_empty());
        for len in [1, 1 << 20, 5, 0, (1 << 20) + 1, 4096, 3 << 20] {
            buffer.set_len(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr() as usize % PAGE, 0, "{len}");
            buffer.fill(7);
        }
        assert_eq!(&PageBuffer::new(5000)[..], [0; 5000]);
    }
}
