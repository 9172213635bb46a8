//! measure: the space a conversion would need.

use super::{GuestSource, SourceKind};
use crate::formats::{self, MeasureSpec, Measurement};
use crate::options::Options;
use crate::{Control, Error, Result};

/// The guest ranges of a source that hold data, in order and merged.
///
/// # Errors
/// What the source says; `Cancelled`.
pub fn data_ranges(source: &dyn GuestSource, control: &Control) -> Result<Vec<(u64, u64)>> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut walk = source.walk();
    let mut offset = 0;
    while offset < source.len() {
        control.check_cancelled()?;
        let extent = walk.extent(offset, source.len() - offset)?;
        if extent.kind == SourceKind::Data {
            match ranges.last_mut() {
                Some((start, len)) if *start + *len == offset => *len += extent.len,
                _ => ranges.push((offset, extent.len)),
            }
        }
        offset += extent.len;
    }
    Ok(ranges)
}

/// The space that an image of `format` needs for `data` (as of [`data_ranges`]) in `virtual_size` bytes.
///
/// # Errors
/// `Unsupported` where the format cannot tell, `InvalidArgument` for an option it does not have.
pub fn measure(
    format: &str,
    virtual_size: u64,
    data: &[(u64, u64)],
    options: &Options,
    backing: bool,
) -> Result<Measurement> {
    let driver = formats::by_name(format)?;
    if !driver.capabilities().measure {
        return Err(Error::unsupported(format!(
            "format '{}' cannot be measured",
            driver.name()
        )));
    }
    options.check(driver.create_options(), driver.name())?;
    let virtual_size = virtual_size.next_multiple_of(driver.capabilities().size_multiple.max(1));
    driver.measure(&MeasureSpec {
        virtual_size,
        data,
        options,
        backing,
    })
}
