//! measure: the space a conversion would need.

use super::{GuestSource, SourceKind};
use crate::formats::{self, Bound, FormatDriver, MeasureSpec, Measurement};
use crate::options::Options;
use crate::{Control, Error, Result};

/// Ranges that are told apart: 64 MiB of them.
const MOST: usize = 1 << 22;
/// Where there are more, holes without a whole block of this size count as data; then of twice the size, until they are few enough.
const LEAST_HOLE: u64 = 4096;

/// The guest ranges of a source that hold data, in order and merged. Of millions, those that are near each other are merged as well: what is
/// measured for them is never less than what they need, and the same for units as large as the holes that are left out.
///
/// # Errors
/// What the source says; `Cancelled`.
pub fn data_ranges(source: &dyn GuestSource, control: &Control) -> Result<Vec<(u64, u64)>> {
    let mut ranges = Ranges::new(MOST);
    let mut walk = source.walk();
    let mut offset = 0;
    while offset < source.len() {
        control.check_cancelled()?;
        let extent = walk.extent(offset, source.len() - offset)?;
        if extent.kind == SourceKind::Data {
            ranges.add(offset, extent.len);
        }
        offset += extent.len;
    }
    Ok(ranges.list)
}

/// Ranges in order, at most so many.
struct Ranges {
    list: Vec<(u64, u64)>,
    most: usize,
    /// Size of a block that a hole must have to be one.
    hole: u64,
}

impl Ranges {
    fn new(most: usize) -> Self {
        Self {
            list: Vec::new(),
            most,
            hole: 1,
        }
    }

    fn add(&mut self, offset: u64, len: u64) {
        if let Some((start, old)) = self.list.last_mut()
            && joined(*start + *old, offset, self.hole)
        {
            *old = offset + len - *start;
            return;
        }
        self.list.push((offset, len));
        while self.list.len() > self.most {
            self.hole = (self.hole * 2).max(LEAST_HOLE);
            let hole = self.hole;
            self.list.dedup_by(|next, last| {
                let near = joined(last.0 + last.1, next.0, hole);
                if near {
                    last.1 = next.0 + next.1 - last.0;
                }
                near
            });
        }
    }
}

/// Whether no whole block of `hole` bytes lies between `end` and `start`.
fn joined(end: u64, start: u64, hole: u64) -> bool {
    let block_end = end
        .checked_next_multiple_of(hole)
        .and_then(|block| block.checked_add(hole));
    block_end.is_none_or(|block_end| start < block_end)
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
    let (driver, virtual_size) = measurable(format, virtual_size, options)?;
    driver.measure(&MeasureSpec {
        virtual_size,
        data,
        options,
        backing,
    })
}

/// What the file of such an image comes to at most, whatever its options are.
///
/// # Errors
/// As [`measure`].
pub fn bound(format: &str, virtual_size: u64, data: &[(u64, u64)], options: &Options, backing: bool) -> Result<Bound> {
    let (driver, virtual_size) = measurable(format, virtual_size, options)?;
    driver.bound(&MeasureSpec {
        virtual_size,
        data,
        options,
        backing,
    })
}

/// The driver, and the virtual size as it rounds it.
fn measurable(format: &str, virtual_size: u64, options: &Options) -> Result<(&'static dyn FormatDriver, u64)> {
    let driver = formats::by_name(format)?;
    if !driver.capabilities().measure {
        return Err(Error::unsupported(format!(
            "format '{}' cannot be measured",
            driver.name()
        )));
    }
    options.check(driver.create_options(), driver.name())?;
    let virtual_size = virtual_size.next_multiple_of(driver.capabilities().size_multiple.max(1));
    Ok((driver, virtual_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units_touched(ranges: &Ranges, unit: u64) -> u64 {
        let (mut next, mut count) = (0, 0);
        for (offset, len) in &ranges.list {
            let end = (offset + len).div_ceil(unit);
            count += end - (offset / unit).max(next).min(end);
            next = end;
        }
        count
    }

    #[test]
    fn ranges_stay_few_and_measure_the_same_in_larger_units() {
        let mut all = Ranges::new(usize::MAX);
        let mut few = Ranges::new(1000);
        for n in 0..100_000u64 {
            // Holes of about 100 KiB, and of 1 MiB after each 200.
            let offset = n * (128 << 10) + n % 127 * 512 + ((n / 200) << 20);
            for ranges in [&mut all, &mut few] {
                ranges.add(offset, 65_536 - n % 100 * 512);
            }
            assert!(few.list.len() <= 1000);
        }
        assert!((500..=1000).contains(&few.list.len()) && few.list.is_sorted());
        for unit in [few.hole, few.hole * 2, 1 << 24] {
            assert_eq!(units_touched(&few, unit), units_touched(&all, unit));
        }
        assert!(units_touched(&few, 4096) > units_touched(&all, 4096));
    }

    #[test]
    fn a_few_ranges_stay_as_they_are() {
        let mut ranges = Ranges::new(3);
        for (offset, len) in [(0, 512), (512, 512), (1536, 1), (1538, 1)] {
            ranges.add(offset, len);
        }
        assert_eq!(ranges.list, [(0, 1024), (1536, 1), (1538, 1)]);
    }
}
