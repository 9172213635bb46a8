//! convert: fills a new image with the content of another, whatever the formats.

pub use super::pipeline::{CopyOptions, CopyTarget};
use super::{GuestSource, pipeline};
use crate::image::NothingBelow;
use crate::{Control, Image, Result, formats};

/// Copies `source` into `target`, a new image without a layer below, and closes it: everything is stable afterwards.
///
/// # Errors
/// What source and target say; `Cancelled`. The target is incomplete then and must not become visible.
pub fn convert(source: &dyn GuestSource, target: &dyn Image, options: &CopyOptions, control: &Control) -> Result<()> {
    let can = formats::by_name(target.format())?.capabilities();
    let target = CopyTarget {
        image: target,
        below: &NothingBelow,
        fresh: true,
        is_zero: can.zero,
    };
    convert_into(source, &target, options, control)
}

/// As [`convert`], for targets that exist, that have a layer below, or that do not read as zeroes.
///
/// # Errors
/// As [`convert`].
pub fn convert_into(
    source: &dyn GuestSource,
    target: &CopyTarget<'_>,
    options: &CopyOptions,
    control: &Control,
) -> Result<()> {
    pipeline::copy(source, target, options, control)?;
    target.image.close()
}
