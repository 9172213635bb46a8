//! New images, and how much space one needs.

use zerocopy::IntoBytes;

use super::layout;
use crate::env::CreateSpec;
use crate::formats::common::{check_table, empty_file, units_touched};
use crate::formats::{MeasureSpec, Measurement};
use crate::options::Options;
use crate::{CreateEnv, Error, Result, StorageRef};

fn cluster_size(options: &Options) -> Result<u64> {
    let size = options.size("cluster_size")?.unwrap_or(1 << 20);
    size.checked_next_multiple_of(512)
        .filter(|s| *s > 0)
        .ok_or_else(|| Error::invalid(format!("cluster size {size} is out of range")))
}

/// Writes header and an empty BAT, padded to where data starts.
pub(super) fn create(storage: &StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    if spec.backing.is_some() {
        return Err(Error::unsupported("format 'parallels' cannot have a backing file"));
    }
    if spec.virtual_size > env.limits.virtual_size {
        return Err(Error::limit(format!(
            "the virtual size {} exceeds the limit",
            spec.virtual_size
        )));
    }
    let cluster = cluster_size(&spec.options)?;
    let raw = layout::new_header(spec.virtual_size, cluster)?;
    check_table("the BAT", layout::bat_bytes(spec.virtual_size, cluster), env.limits)?;
    empty_file(storage, "a Parallels image")?;
    storage.write_zeroes(0, u64::from(raw.data_off.get()) * 512, true)?;
    storage.write_at(0, raw.as_bytes())?;
    storage.flush()
}

/// Header, BAT, and the data in whole clusters.
pub(super) fn measure(spec: &MeasureSpec<'_>) -> Result<Measurement> {
    let cluster = cluster_size(spec.options)?;
    let raw = layout::new_header(spec.virtual_size, cluster)?;
    let fixed = u64::from(raw.data_off.get()) * 512;
    let space = |clusters: u64| clusters.saturating_mul(cluster).saturating_add(fixed);
    Ok(Measurement {
        required: space(units_touched(spec.data, cluster)),
        fully_allocated: space(spec.virtual_size.div_ceil(cluster)),
        bitmaps: None,
    })
}
