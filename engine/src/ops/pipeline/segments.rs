//! Copying in segments, so that another process can go on where this one ended.
//!
//! A segment is copied, the target is flushed, and only then the mark moves behind it: everything before `done` is stable. The end
//! of the segment that comes next is in the mark too. Nothing behind that end was ever touched, so whoever goes on writes the one
//! segment that may be there in part once more, over whatever is there, and fills the rest as a new image is filled.

use super::{CopyOptions, CopyTarget, Pipeline, copy_range, refuse_longer};
use crate::ops::GuestSource;
use crate::{Control, Error, ErrorKind, Result};

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Everything before this guest byte is stable in the target.
    pub done: u64,
    /// From `done` to here parts may be there; from here on nothing is.
    pub next: u64,
}

/// How to cut a copy.
pub struct Segments<'a> {
    /// Guest bytes of data after which a segment ends. It ends with a batch, so that it can be 4 MiB more; of data in very small pieces it
    /// takes less.
    pub bytes: u64,
    /// The last mark of the copy that is gone on with; `None` starts one.
    pub from: Option<Mark>,
    /// Keeps a mark. When it returns the mark must be stable.
    pub save: &'a dyn Fn(Mark) -> Result<()>,
}

/// As [`copy`](super::copy), and the target is flushed. A copy that is gone on with must have the same source, the same options and a
/// target that nobody else has written to; the target must be [`resumable`](crate::Image::resumable).
///
/// # Errors
/// As [`copy`](super::copy); what `save` says; `InvalidArgument` for a mark of another copy.
pub fn copy_in_segments(
    source: &dyn GuestSource,
    target: &CopyTarget<'_>,
    options: &CopyOptions,
    segments: &Segments<'_>,
    control: &Control,
) -> Result<()> {
    refuse_longer(source, target)?;
    let len = source.len();
    control.set_total(len);
    let mut position = match segments.from {
        Some(mark) => {
            again(source, target, options, mark, control)?;
            mark.next
        }
        None => 0,
    };
    let pipeline = Pipeline::new(source, target, options, position..len, control)?;
    loop {
        let end = pipeline.planner().plan_segment(segments.bytes.max(1), control)?;
        if position > 0 {
            target.image.flush()?;
            let (done, next) = (position, end);
            (segments.save)(Mark { done, next })?;
        }
        if position >= len {
            return Ok(());
        }
        pipeline.run()?;
        position = end;
    }
}

fn again(
    source: &dyn GuestSource,
    target: &CopyTarget<'_>,
    options: &CopyOptions,
    mark: Mark,
    control: &Control,
) -> Result<()> {
    if mark.done > mark.next || mark.next > source.len() {
        return Err(Error::invalid("the mark is not one of this copy"));
    }
    control.advance(mark.done);
    let used = CopyTarget {
        fresh: false,
        ..*target
    };
    let range = mark.done..mark.next;
    match copy_range(source, &used, options, range.clone(), control) {
        // A format that takes compressed units in bulk only holds this one segment as it is.
        Err(error) if options.compress && error.kind() == ErrorKind::Unsupported => {
            let compress = false;
            copy_range(source, &used, &CopyOptions { compress, ..*options }, range, control)
        }
        done => done,
    }
}
