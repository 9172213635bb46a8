//! Operations on images: one file an operation, each a function over the traits. No operation knows a format by name.

pub mod amend;
pub mod check;
pub mod commit;
pub mod compare;
pub mod convert;
pub mod create;
pub mod digest;
pub mod info;
pub mod keys;
pub mod map;
pub mod measure;
pub mod rebase;
pub mod resize;

mod pipeline;
mod source;
mod zeroes;

use crate::{Image, Result};

pub use source::{Concatenation, GuestSource, SourceExtent, SourceKind, Walk};

/// Does work after which an image shows through its chain what it showed: layers above that know it by its content stay good.
fn showing_the_same<T>(image: &dyn Image, work: impl FnOnce() -> T) -> T {
    image.content_stays(true);
    let done = work();
    image.content_stays(false);
    done
}

/// Closes an image whatever became of the work on it, so that its bitmaps are saved and marks of being in use go away. The work's own
/// error comes first.
fn closed(image: &dyn Image, done: Result<()>) -> Result<()> {
    let closed = image.close();
    done.and(closed)
}
