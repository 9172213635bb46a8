//! amend: changes create options of the top of a chain.

use super::resize::hide_longer_base;
use crate::options::Options;
use crate::{Chain, Control, Result};

/// Changes options. Where the image grows by it, the new part reads as zeroes, also where a longer layer below has data.
///
/// # Errors
/// What the format says of the options.
pub fn amend(chain: &Chain, options: &Options, force: bool, control: &Control) -> Result<()> {
    let image = chain.top();
    let old_size = image.virtual_size();
    // After an error too: the size may have changed before it.
    let done = image.amend(options, force, control);
    done.and(hide_longer_base(chain, old_size))
}
