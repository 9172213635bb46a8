//! resize: changes the virtual size of one layer.

use crate::image::Resize;
use crate::{Error, Image, Result, formats};

/// Grows or shrinks the image. The new part reads as zeroes.
///
/// # Errors
/// `InvalidArgument` when data would be lost without permission, `Unsupported` where the format cannot.
pub fn resize(image: &dyn Image, to: &Resize) -> Result<()> {
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
    image.resize(&Resize { virtual_size, ..*to })?;
    image.close()
}
