//! resize: changes the virtual size of the top of a chain.

use crate::image::Resize;
use crate::{Chain, Error, Result, formats};

/// Grows or shrinks the top layer. The new part reads as zeroes, also where a longer layer below has data.
///
/// A crash after the size changed and before such data was hidden shows it; doing the same again is no help then, zeroing the part is.
///
/// # Errors
/// `InvalidArgument` when data would be lost without permission, `Unsupported` where the format cannot.
pub fn resize(chain: &Chain, to: &Resize) -> Result<()> {
    let image = chain.top();
    let can = formats::by_name(image.format())?.capabilities();
    let now = image.virtual_size();
    let Some(virtual_size) = to.virtual_size.checked_next_multiple_of(can.size_multiple.max(1)) else {
        return Err(Error::limit(format!(
            "the virtual size {} is too large",
            to.virtual_size
        )));
    };
    if virtual_size < now && !to.shrink {
        return Err(Error::invalid(format!(
            "shrinking from {now} to {virtual_size} bytes loses the data past the end; allow it explicitly"
        )));
    }
    if virtual_size < now && !can.shrink {
        return Err(image.cannot("shrink"));
    }
    if virtual_size > now && !can.grow {
        return Err(image.cannot("grow"));
    }
    let done = image
        .resize(&Resize { virtual_size, ..*to })
        .and_then(|()| hide_longer_base(chain, now));
    super::closed(image, done)
}

/// What lies below and was cut off by the old size stays hidden. Layers above, which know no more of this one than its old size, see no change.
pub(super) fn hide_longer_base(chain: &Chain, old_size: u64) -> Result<()> {
    let end = chain.below(0).virtual_size().min(chain.virtual_size());
    if end > old_size {
        super::showing_the_same(chain.top(), || chain.write_zeroes(old_size, end - old_size, false))?;
    }
    Ok(())
}
