//! convert: fills a new image with the content of another, whatever the formats.

pub use super::pipeline::{CopyOptions, CopyTarget, Mark, Segments};
use super::{GuestSource, pipeline};
use crate::{Control, Image, Result};

/// Copies `source` into `target`, a new image without a layer below, and closes it: everything is stable afterwards.
///
/// # Errors
/// What source and target say; `Cancelled`. The target is incomplete then and must not become visible.
pub fn convert(source: &dyn GuestSource, target: &dyn Image, options: &CopyOptions, control: &Control) -> Result<()> {
    convert_into(source, &CopyTarget::fresh(target, None)?, options, control)
}

/// As [`convert`], for targets that exist, that have a layer below, or that do not read as zeroes. One that existed is closed after an error too.
///
/// # Errors
/// As [`convert`].
pub fn convert_into(
    source: &dyn GuestSource,
    target: &CopyTarget<'_>,
    options: &CopyOptions,
    control: &Control,
) -> Result<()> {
    let done = pipeline::copy(source, target, options, control);
    if target.fresh {
        done?;
        return target.image.close();
    }
    super::closed(target.image, done)
}

/// As [`convert_into`], with marks from which another process can go on, where the target allows it.
///
/// # Errors
/// As [`convert`]; what the keeper of the marks says; `Unsupported` to go on with a target that is not [`Image::resumable`].
pub fn convert_in_segments(
    source: &dyn GuestSource,
    target: &CopyTarget<'_>,
    options: &CopyOptions,
    segments: &Segments<'_>,
    control: &Control,
) -> Result<()> {
    if target.image.resumable() {
        pipeline::copy_in_segments(source, target, options, segments, control)?;
        return target.image.close();
    }
    if segments.from.is_some() {
        return Err(target.image.cannot("go on filling"));
    }
    convert_into(source, target, options, control)
}
