//! rebase: puts an overlay on another base.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::convert::CopyOptions;
use super::pipeline::{self, CopyTarget};
use super::source::Walk;
use super::source::{BelowOverlay, SourceExtent, SourceKind};
use super::{GuestSource, zeroes};
use crate::chain::{Cursor, LayersBelow};
use crate::image::{BackingReference, Below, ExtentKind};
use crate::{Chain, Control, Image, Result};

/// Changes what the header says about the base and nothing else: right only where the new base shows the same.
///
/// # Errors
/// What the driver says.
pub fn rebase_unsafe(image: &dyn Image, backing: Option<&BackingReference>) -> Result<()> {
    rebase_unsafe_over(image, backing, None)
}

/// As [`rebase_unsafe`], with the new base open: an image that records which content is below takes that of `base`.
///
/// # Errors
/// What the driver says.
pub fn rebase_unsafe_over(
    image: &dyn Image,
    backing: Option<&BackingReference>,
    base: Option<&dyn Image>,
) -> Result<()> {
    super::closed(image, image.set_backing_over(backing, base))
}

/// A rebase that dies and is begun anew passes over what the top has by then: at most so much is copied again.
const FLUSH_EVERY: u64 = 56 << 20;

/// Puts the top of `chain` on `new_base` (`None`: on nothing) without changing what it shows: where old and new base differ, the old
/// content is copied into the top first.
///
/// Order of writes: data, flush, tables, flush, and only then the header. A crash before the header changed leaves the old
/// base with extra copies in the top; after it everything is in place. A copy that fails is taken back, where the driver can do that.
///
/// # Errors
/// What the layers say; `Cancelled`, which leaves the image on its old base.
pub fn rebase(
    chain: &Chain,
    new_base: Option<&Chain>,
    backing: Option<&BackingReference>,
    options: &CopyOptions,
    control: &Control,
) -> Result<()> {
    rebase_or_keep(chain, new_base, backing, options, &|| false, control)
}

/// As [`rebase`]; what was copied before it failed stays where `keep` says so, for a rebase that is begun anew to pass over.
///
/// # Errors
/// As [`rebase`].
pub fn rebase_or_keep(
    chain: &Chain,
    new_base: Option<&Chain>,
    backing: Option<&BackingReference>,
    options: &CopyOptions,
    keep: &dyn Fn() -> bool,
    control: &Control,
) -> Result<()> {
    let top = chain.top();
    let below = ZeroOnBoth {
        old: chain.below(0),
        new: new_base.map(Chain::under),
    };
    let old = BelowOverlay::new(chain);
    let unit = top.subcluster_size().or(top.info()?.cluster_size).unwrap_or(4096);
    let source = Difference {
        chain,
        old,
        new: new_base,
        unit,
        copied: Mutex::default(),
    };
    let target = CopyTarget {
        image: top,
        below: &below,
        fresh: false,
        // On nothing, what is not stored reads as zeroes.
        is_zero: new_base.is_none(),
    };
    let options = CopyOptions {
        flush_every: FLUSH_EVERY,
        ..*options
    };
    super::showing_the_same(top, || {
        let copied = pipeline::copy(&source, &target, &options, control).and_then(|()| top.flush());
        if copied.is_err() && !keep() {
            // The old base shows it all. What the copy failed for is what there is to tell.
            let _ = top.forget(&source.copied());
        }
        let done = copied.and_then(|()| top.set_backing_over(backing, new_base.map(Chain::top)));
        super::closed(top, done)
    })
}

/// What the old base has. Zeroes count as known where the new base has them as well: elsewhere a driver must write them, not leave them to
/// what is below.
struct ZeroOnBoth<'a> {
    old: LayersBelow<'a>,
    new: Option<LayersBelow<'a>>,
}

impl Below for ZeroOnBoth<'_> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.old.read(offset, buf)
    }
    fn is_zero(&self, offset: u64, len: u64) -> Result<bool> {
        let on_new = self.new.map_or(Ok(true), |new| new.is_zero(offset, len))?;
        Ok(on_new && self.old.is_zero(offset, len)?)
    }
}

/// The ranges that the top does not have and that read differently on the new base.
struct Difference<'a> {
    chain: &'a Chain,
    old: BelowOverlay<'a>,
    new: Option<&'a Chain>,
    unit: u64,
    /// What was found to differ so far, and is in the top by now or about to be: whole units, in ascending order.
    copied: Mutex<Vec<Range<u64>>>,
}

/// So many ranges are remembered: a copy of more pieces is taken back in part.
const MOST_RANGES: usize = 1 << 20;

/// Guest bytes compared at once.
const STEP: u64 = 1 << 20;

impl Difference<'_> {
    fn copied(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.copied.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The top has nothing in any unit that a difference touches.
    fn note(&self, offset: u64, len: u64) {
        let (start, end) = (
            offset / self.unit * self.unit,
            (offset + len).next_multiple_of(self.unit),
        );
        let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        let more = copied.len() < MOST_RANGES;
        match copied.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ if more => copied.push(start..end),
            _ => {}
        }
    }

    /// How a range of at most `STEP` bytes differs: the leading run of units that are the same, or that differ.
    fn compare(&self, offset: u64, len: u64, old_zero: bool, new_zero: bool) -> Result<SourceExtent> {
        let (mut old, mut new) = (vec![0; len as usize], vec![0; len as usize]);
        if !old_zero {
            self.old.read(offset, &mut old)?;
        }
        if !new_zero && let Some(base) = self.new {
            base.under().read(offset, &mut new)?;
        }
        // Runs end where the image's own units end, so that no unit is half copied.
        let first_end = (offset / self.unit + 1).saturating_mul(self.unit).min(offset + len);
        let mut at = (first_end - offset) as usize;
        let differs = old[..at] != new[..at];
        while at < old.len() {
            let end = (at + self.unit as usize).min(old.len());
            if (old[at..end] != new[at..end]) != differs {
                break;
            }
            at = end;
        }
        let kind = match differs {
            false => SourceKind::Absent,
            true if zeroes::is_zero(&old[..at]) => SourceKind::Zero,
            true => SourceKind::Data,
        };
        Ok(SourceExtent::of(at as u64, kind))
    }
}

impl GuestSource for Difference<'_> {
    fn len(&self) -> u64 {
        self.chain.virtual_size()
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        let walk = DifferenceWalk {
            difference: self,
            old: self.old.walk(),
            new: self.new.map(|c| (c.virtual_size(), Cursor::new(c))),
        };
        Box::new(walk)
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        // Through the whole chain: a unit may hold bytes of the top beside bytes of the old base.
        Chain::read(self.chain, offset, buf)
    }
    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.old.read_data(layer, offset, buf)
    }
}

struct DifferenceWalk<'a> {
    difference: &'a Difference<'a>,
    old: Box<dyn Walk + 'a>,
    /// Size of the new base, and a walk along it.
    new: Option<(u64, Cursor<'a>)>,
}

impl DifferenceWalk<'_> {
    /// Length of the new base's run, and whether it reads as zeroes.
    fn new_extent(&mut self, offset: u64, len: u64) -> Result<(u64, bool)> {
        match &mut self.new {
            Some((size, cursor)) if offset < *size => {
                let extent = cursor.extent(offset, len.min(*size - offset))?;
                Ok((extent.len, extent.is_zero()))
            }
            _ => Ok((len, true)),
        }
    }
}

impl Walk for DifferenceWalk<'_> {
    fn extent(&mut self, offset: u64, len: u64) -> Result<SourceExtent> {
        let found = self.find(offset, len)?;
        if found.kind != SourceKind::Absent {
            self.difference.note(offset, found.len.min(len));
        }
        Ok(found)
    }
}

impl DifferenceWalk<'_> {
    fn find(&mut self, offset: u64, len: u64) -> Result<SourceExtent> {
        let own = self.difference.chain.top().extent(offset, len)?;
        if own.kind != ExtentKind::Unallocated {
            return Ok(SourceExtent::of(own.len, SourceKind::Absent));
        }
        let old = self.old.extent(offset, own.len.min(len))?;
        let (new_len, new_zero) = self.new_extent(offset, old.len)?;
        let len = old.len.min(new_len);
        match (old.kind == SourceKind::Zero, new_zero) {
            (true, true) => Ok(SourceExtent::of(len, SourceKind::Absent)),
            // Nothing below at all: what the old base has must come along.
            (false, true) if self.new.is_none() => Ok(SourceExtent { len, ..old }),
            (old_zero, _) => self.difference.compare(offset, len.min(STEP), old_zero, new_zero),
        }
    }
}
