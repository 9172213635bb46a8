//! amend: changes create options of the top of a chain.

use super::resize::hide_longer_base;
use crate::options::Options;
use crate::{Chain, Control, Result};

/// Changes options, and closes the image. Where the image grows by it, the new part reads as zeroes, also where a longer layer below has data.
///
/// # Errors
/// What the format says of the options.
pub fn amend(chain: &Chain, options: &Options, force: bool, control: &Control) -> Result<()> {
    let image = chain.top();
    let old_size = image.virtual_size();
    let done = image.amend(options, force, control);
    // After an error too, where the size changed before it.
    let hidden = hide_longer_base(chain, old_size);
    super::closed(image, done.and(hidden))
}
