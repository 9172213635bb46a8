//! commit: writes what an overlay changed into a base below it.

use super::convert::CopyOptions;
use super::pipeline::{self, CopyTarget};
use super::source::{AboveBase, GuestSource, SourceKind};
use crate::image::{Below, Resize};
use crate::{Chain, Control, Error, Image, Result, formats};

/// Writes everything that the layers above depth `base` hold into the layer at `base`, which must have been opened for writing
/// ([`Chain::open_writable`]). A base that is shorter than the top grows first. With `empty_top` the top is emptied afterwards.
///
/// Order of writes: where the layer over the base knows it by what changes with the content ([`Image::follows_below`]; it must be open for
/// writing as well), the identities of before and after; data and tables of the base, flush, and only then is the top emptied. A crash before
/// that leaves the top whole, and what it shows is what it showed; the commit can be done again.
///
/// # Errors
/// What the layers say; `Cancelled`, which leaves the top whole and a part of it in the base.
pub fn commit(chain: &Chain, base: usize, empty_top: bool, options: &CopyOptions, control: &Control) -> Result<()> {
    let source = AboveBase::new(chain, base)?;
    let Some(image) = chain.layers().get(base).map(AsRef::as_ref) else {
        return Err(Error::invalid(format!("there is no layer at depth {base}")));
    };
    let top = chain.top();
    super::showing_the_same(top, || {
        let done = write_into(chain, base, image, &source, empty_top, options, control);
        if done.is_err() {
            // What is in the base stays; room that was taken for more does not.
            let _ = image.forget(&[]);
        }
        super::closed(top, super::closed(image, done))
    })
}

/// Empties the top of a chain whose base shows all of it since a commit, where its format can do that. The top is not closed.
///
/// # Errors
/// What the driver says.
pub fn empty_committed(top: &dyn Image) -> Result<()> {
    super::showing_the_same(top, || make_empty(top))
}

fn make_empty(top: &dyn Image) -> Result<()> {
    match formats::by_name(top.format())?.capabilities().make_empty {
        true => top.make_empty(),
        false => Ok(()),
    }
}

fn write_into(
    chain: &Chain,
    base: usize,
    image: &dyn Image,
    source: &AboveBase<'_>,
    empty_top: bool,
    options: &CopyOptions,
    control: &Control,
) -> Result<()> {
    let size = chain.virtual_size();
    if image.virtual_size() < size || has_data(source, control)? {
        begin_change(chain, base, image)?;
    }
    if image.virtual_size() < size {
        say_zeroes(chain, image.virtual_size(), chain.below(base).virtual_size().min(size))?;
        image.resize(&Resize {
            virtual_size: size,
            ..Resize::default()
        })?;
    }
    let below = chain.below(base);
    let target = CopyTarget {
        image,
        below: &below,
        fresh: false,
        is_zero: false,
    };
    pipeline::copy(source, &target, options, control)?;
    image.flush()?;
    match empty_top {
        true => make_empty(chain.top()),
        false => Ok(()),
    }
}

/// Lets the base change, and the layer over it know the base as it is and as it will be.
fn begin_change(chain: &Chain, base: usize, image: &dyn Image) -> Result<()> {
    let over = chain.layers()[base - 1].as_ref();
    if over.follows_below() {
        let expected = over.expect_change(image);
        // The top is closed when it is emptied or left as it is; a layer between is done with.
        if base > 1 {
            super::closed(over, expected)
        } else {
            expected
        }?;
    }
    image.begin_change()
}

/// Whether there is anything to commit.
fn has_data(source: &AboveBase<'_>, control: &Control) -> Result<bool> {
    let (mut walk, mut at) = (source.walk(), 0);
    while at < source.len() {
        control.check_cancelled()?;
        let extent = walk.extent(at, source.len() - at)?;
        if extent.kind != SourceKind::Absent {
            return Ok(true);
        }
        at = at.saturating_add(extent.len.max(1));
    }
    Ok(false)
}

/// A base that grows may lie over a longer layer, which would show where everything above reads as zeroes because the base ends. So the
/// top says that these are zeroes, and that is stable, before the base grows.
fn say_zeroes(chain: &Chain, from: u64, to: u64) -> Result<()> {
    let mut at = from;
    let below = ZeroesForNow {
        below: &chain.below(0),
        from,
    };
    while at < to {
        let extent = chain.extent(at, to - at)?;
        if !extent.present {
            chain.top().write_zeroes(at, extent.len, false, &below)?;
        }
        at += extent.len;
    }
    if from < to { chain.top().flush() } else { Ok(()) }
}

/// What is below; but its zeroes from `from` on will not stay: a driver must not leave them to it.
struct ZeroesForNow<'a> {
    below: &'a dyn Below,
    from: u64,
}

impl Below for ZeroesForNow<'_> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read(offset, buf)
    }
    fn is_zero(&self, offset: u64, len: u64) -> Result<bool> {
        Ok(offset.saturating_add(len) <= self.from && self.below.is_zero(offset, len)?)
    }
}
