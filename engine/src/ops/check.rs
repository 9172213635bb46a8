//! check: finds and mends contradictions in an image's metadata.

use crate::image::{CheckReport, Repair};
use crate::{Control, Image, Result};

/// Checks one layer, and mends what `repair` allows; the image must have been opened for that (`OpenEnv::for_check`).
///
/// # Errors
/// `Unsupported` when the format has nothing to check or cannot be mended; `Io` when it cannot be read.
pub fn check(image: &dyn Image, repair: Repair, control: &Control) -> Result<CheckReport> {
    let can = crate::formats::by_name(image.format())?.capabilities();
    if !can.check {
        return Err(image.cannot("check"));
    }
    if repair != Repair::No && !can.repair {
        return Err(image.cannot("repair"));
    }
    let report = image.check(repair, control)?;
    if repair != Repair::No {
        image.close()?;
    }
    Ok(report)
}
