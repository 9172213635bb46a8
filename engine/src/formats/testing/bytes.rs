//! An image as a byte array: operations on both, and what must be the same.

use std::ops::Range;

use super::{All, Driver, file, open_on, seen, to_size};
use crate::image::{Repair, Resize};
use crate::{Control, Image, StorageRef};

/// What can be done to an image.
#[derive(Debug, Clone)]
pub(in crate::formats) enum Op {
    /// Offset, length, byte.
    Write(u64, u64, u8),
    /// Offset, length, whether to give space back.
    Zero(u64, u64, bool),
    /// Offset, length.
    Discard(u64, u64),
    Flush,
    Reopen,
    /// The size to be.
    Resize(u64),
    /// How much larger.
    Grow(u64),
    MakeEmpty,
}

/// An image over a layer that is all one byte, and what the guest must see of it.
pub(in crate::formats) struct ByteArray {
    driver: Driver,
    storage: StorageRef,
    pub image: Box<dyn Image>,
    pub model: Vec<u8>,
    below: u8,
}

impl ByteArray {
    /// Opens a new image of `size` bytes.
    pub fn new(driver: Driver, image: Vec<u8>, size: u64, below: u8) -> Self {
        let storage: StorageRef = file(image);
        Self {
            driver,
            image: open_on(driver, storage.clone()).unwrap(),
            storage,
            model: vec![below; size as usize],
            below,
        }
    }

    /// What the guest sees.
    pub fn seen(&self) -> Vec<u8> {
        seen(self.image.as_ref(), self.below)
    }

    /// Does the operation to both.
    pub fn apply(&mut self, op: &Op) {
        let below = All(self.below);
        match *op {
            Op::Write(o, l, b) => {
                self.image.write(o, &vec![b; l as usize], &below).unwrap();
                self.model[range(o, l)].fill(b);
            }
            Op::Zero(o, l, unmap) => {
                self.image.write_zeroes(o, l, unmap, &below).unwrap();
                self.model[range(o, l)].fill(0);
            }
            Op::Discard(o, l) => self.discard(o, l),
            Op::Flush => self.image.flush().unwrap(),
            Op::Reopen => {
                self.image.close().unwrap();
                self.image = open_on(self.driver, self.storage.clone()).unwrap();
            }
            Op::Resize(size) => {
                self.image.resize(&to_size(size)).unwrap();
                self.model.resize(size as usize, self.below);
            }
            Op::Grow(by) => {
                let to = Resize {
                    virtual_size: self.image.virtual_size() + by,
                    ..Resize::default()
                };
                self.image.resize(&to).unwrap();
                self.model.resize(to.virtual_size as usize, self.below);
            }
            Op::MakeEmpty => {
                self.image.make_empty().unwrap();
                self.model.fill(self.below);
            }
        }
    }

    /// Each byte that was discarded is as it was, or zero.
    fn discard(&mut self, offset: u64, len: u64) {
        self.image.discard(offset, len).unwrap();
        let now = self.seen();
        let range = range(offset, len);
        for (m, n) in self.model[range.clone()].iter_mut().zip(&now[range]) {
            assert!(*n == 0 || n == m);
            *m = *n;
        }
    }

    /// The two are the same, also after the image was closed; gives it opened again.
    pub fn finish(self) -> Box<dyn Image> {
        assert!(self.seen() == self.model, "contents differ");
        self.image.close().unwrap();
        drop(self.image);
        let again = open_on(self.driver, self.storage).unwrap();
        assert!(
            seen(again.as_ref(), self.below) == self.model,
            "contents differ after reopening"
        );
        again
    }
}

fn range(offset: u64, len: u64) -> Range<usize> {
    offset as usize..(offset + len) as usize
}

/// A check finds nothing wrong.
pub(in crate::formats) fn assert_sound(image: &dyn Image) {
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.check_errors),
        (0, 0),
        "{:?}",
        report.messages
    );
}
