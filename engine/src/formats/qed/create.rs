//! New images, and how much space one needs.

use zerocopy::IntoBytes;

use super::layout::{self, BACKING_FILE, BACKING_IS_RAW, HEADER_LEN, MAGIC, MAX_NAME, RawHeader};
use crate::env::{BackingReference, CreateSpec};
use crate::formats::common::{check_table, empty_file, units_touched};
use crate::formats::{MeasureSpec, Measurement};
use crate::options::Options;
use crate::{CreateEnv, Error, Result, StorageRef};

struct Plan {
    cluster: u64,
    table: u64,
}

fn plan(options: &Options, virtual_size: u64) -> Result<Plan> {
    let cluster = options.size("cluster_size")?.unwrap_or(65536);
    let table = options.size("table_size")?.unwrap_or(4);
    if !layout::cluster_size_is_valid(cluster) {
        return Err(Error::invalid(
            "QED cluster size must be within range [4096, 67108864] and power of 2",
        ));
    }
    if !layout::table_size_is_valid(table) {
        return Err(Error::invalid(
            "QED table size must be within range [1, 16] and power of 2",
        ));
    }
    let max = layout::max_size(cluster, table * cluster);
    if virtual_size > max {
        return Err(Error::invalid(format!(
            "QED image size must be a non-zero multiple of cluster size and less than {max} bytes"
        )));
    }
    Ok(Plan { cluster, table })
}

/// Writes header and an empty L1 table.
pub(super) fn create(storage: &StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    let size = spec
        .virtual_size
        .checked_next_multiple_of(512)
        .ok_or_else(|| Error::invalid("the virtual size is too large"))?;
    let plan = plan(&spec.options, size)?;
    if size > env.limits.virtual_size {
        return Err(Error::limit(format!("the virtual size {size} exceeds the limit")));
    }
    check_table("the L1 table", plan.table * plan.cluster, env.limits)?;
    let mut raw = RawHeader {
        magic: MAGIC,
        cluster_size: narrow(plan.cluster)?.into(),
        table_size: narrow(plan.table)?.into(),
        header_size: 1.into(),
        features: 0.into(),
        compat_features: 0.into(),
        autoclear_features: 0.into(),
        l1_table_offset: plan.cluster.into(),
        image_size: size.into(),
        backing_offset: 0.into(),
        backing_size: 0.into(),
    };
    let name = name_backing(&mut raw, spec.backing.as_ref(), plan.cluster)?;
    empty_file(storage, "a QED image")?;
    storage.write_zeroes(0, plan.cluster * (1 + plan.table), true)?;
    storage.write_at(0, &[raw.as_bytes(), &name].concat())?;
    storage.flush()
}

fn narrow(n: u64) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::invalid(format!("{n} is too large for a QED header")))
}

/// Puts the features and the place of a backing file's name into a header; returns the bytes of the name.
pub(super) fn name_backing(
    raw: &mut RawHeader,
    backing: Option<&BackingReference>,
    header_bytes: u64,
) -> Result<Vec<u8>> {
    let features = raw.features.get() & !(BACKING_FILE | BACKING_IS_RAW);
    let Some(backing) = backing else {
        raw.features = features.into();
        raw.backing_offset = 0.into();
        raw.backing_size = 0.into();
        return Ok(Vec::new());
    };
    let len = backing.name.len() as u64;
    if len == 0 || len > MAX_NAME || HEADER_LEN as u64 + len > header_bytes {
        return Err(Error::invalid(format!(
            "a backing file name takes 1 to {MAX_NAME} bytes, not {len}"
        )));
    }
    let is_raw = backing.format.as_deref() == Some("raw");
    raw.features = (features | BACKING_FILE | if is_raw { BACKING_IS_RAW } else { 0 }).into();
    raw.backing_offset = u32::try_from(HEADER_LEN).unwrap_or(u32::MAX).into();
    raw.backing_size = narrow(len)?.into();
    Ok(backing.name.as_bytes().to_vec())
}

/// Header, L1, the L2 tables that the data needs, and the data in whole clusters.
pub(super) fn measure(spec: &MeasureSpec<'_>) -> Result<Measurement> {
    let plan = plan(spec.options, spec.virtual_size)?;
    let per_table = (plan.table * plan.cluster / 8).saturating_mul(plan.cluster);
    let fixed = plan.cluster * (1 + plan.table);
    let count = |unit: u64| units_touched(spec.data, unit);
    let space = |clusters: u64, tables: u64| {
        let tables = tables.saturating_mul(plan.table * plan.cluster);
        clusters
            .saturating_mul(plan.cluster)
            .saturating_add(tables)
            .saturating_add(fixed)
    };
    Ok(Measurement {
        required: space(count(plan.cluster), count(per_table)),
        fully_allocated: space(
            spec.virtual_size.div_ceil(plan.cluster),
            spec.virtual_size.div_ceil(per_table),
        ),
        bitmaps: None,
    })
}
