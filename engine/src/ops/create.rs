//! create: a new, empty image.

use crate::env::CreateSpec;
use crate::{CreateEnv, Error, Result, StorageRef, formats};

/// Makes an image of `format` on an empty storage. The virtual size is rounded up to what the format can express.
///
/// The caller decides how the storage becomes visible; until then nothing of it should be.
///
/// # Errors
/// `InvalidArgument` for an option that the format does not have, `Unsupported` for what it cannot do, `LimitExceeded` for a size past the
/// limits.
pub fn create(storage: StorageRef, format: &str, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    let driver = formats::by_name(format)?;
    let can = driver.capabilities();
    if !can.create {
        return Err(Error::unsupported(format!(
            "images of format '{}' cannot be created",
            driver.name()
        )));
    }
    if spec.backing.is_some() && !can.backing {
        return Err(Error::unsupported(format!(
            "format '{}' cannot have a backing file",
            driver.name()
        )));
    }
    spec.options.check(driver.create_options(), driver.name())?;
    let size = spec.virtual_size.checked_next_multiple_of(can.size_multiple.max(1));
    let Some(virtual_size) = size.filter(|s| *s <= env.limits.virtual_size) else {
        let (size, limit) = (spec.virtual_size, env.limits.virtual_size);
        return Err(Error::limit(format!(
            "the virtual size {size} exceeds the limit of {limit} bytes"
        )));
    };
    let spec = CreateSpec {
        virtual_size,
        ..spec.clone()
    };
    driver
        .create(storage.clone(), &spec, env)
        .map_err(|e| e.at(storage.name()))?;
    storage.flush()
}
