//! New images, and how much space one needs.

use zerocopy::IntoBytes;

use super::layout::{HEADER_LEN, MAGIC, MAX_NAME, RawHeader};
use crate::env::CreateSpec;
use crate::formats::common::{check_table, empty_file, units_touched};
use crate::formats::{MeasureSpec, Measurement};
use crate::options::Options;
use crate::{CreateEnv, Error, Result, StorageRef};

/// Cluster and L2 bits: overlays have small clusters, so that copy on write copies little.
fn bits(backing: bool) -> (u8, u8) {
    if backing { (9, 12) } else { (12, 9) }
}

/// Writes header, backing name and an empty L1 table.
pub(super) fn create(storage: &StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    let size = spec
        .virtual_size
        .checked_next_multiple_of(512)
        .filter(|size| *size <= env.limits.virtual_size)
        .ok_or_else(|| Error::invalid(format!("the virtual size {} is too large", spec.virtual_size)))?;
    if size == 0 {
        return Err(Error::invalid("image size is too small, cannot be zero length"));
    }
    let name = spec.backing.as_ref().map_or(&b""[..], |b| b.name.as_bytes());
    if name.len() as u64 > MAX_NAME || (spec.backing.is_some() && name.is_empty()) {
        return Err(Error::invalid(format!(
            "a backing file name takes 1 to {MAX_NAME} bytes, not {}",
            name.len()
        )));
    }
    let encrypted = wants_encryption(&spec.options)?;
    if encrypted {
        let missing = || Error::invalid("name the passphrase with option 'encrypt.key-secret'");
        env.secrets
            .get(spec.options.get("encrypt.key-secret").ok_or_else(missing)?)?;
    }
    let (cluster_bits, l2_bits) = bits(spec.backing.is_some());
    let l1_offset = (HEADER_LEN + name.len()).next_multiple_of(8) as u64;
    let l1_entries = size.div_ceil(1 << (cluster_bits + l2_bits));
    check_table("the L1 table", l1_entries.saturating_mul(8), env.limits)?;
    let raw = RawHeader {
        magic: MAGIC,
        version: 1.into(),
        backing_offset: if name.is_empty() { 0 } else { HEADER_LEN as u64 }.into(),
        backing_size: u32::try_from(name.len()).unwrap_or(u32::MAX).into(),
        mtime: 0.into(),
        size: size.into(),
        cluster_bits,
        l2_bits,
        padding: 0.into(),
        crypt_method: u32::from(encrypted).into(),
        l1_table_offset: l1_offset.into(),
    };
    let l1_bytes = (l1_entries * 8).next_multiple_of(512);
    empty_file(storage, "a QCOW image")?;
    storage.write_zeroes(0, l1_offset + l1_bytes, true)?;
    storage.write_at(0, &[raw.as_bytes(), name].concat())?;
    storage.flush()
}

/// Whether the options ask for AES.
fn wants_encryption(options: &Options) -> Result<bool> {
    let old = options.flag("encryption")?.unwrap_or(false);
    match options.get("encrypt.format") {
        Some(_) if old => Err(Error::invalid("give option 'encryption' or 'encrypt.format', not both")),
        Some("aes") => Ok(true),
        Some(other) => Err(Error::invalid(format!(
            "option 'encrypt.format' of qcow takes aes, not '{}'",
            other.escape_debug()
        ))),
        None if !old && options.get("encrypt.key-secret").is_some() => Err(Error::invalid(
            "option 'encrypt.format' is needed beside the others of encryption",
        )),
        None => Ok(old),
    }
}

/// Header, L1, the L2 tables that the data needs, and the data in whole clusters.
pub(super) fn measure(spec: &MeasureSpec<'_>) -> Result<Measurement> {
    wants_encryption(spec.options)?;
    let (cluster_bits, l2_bits) = bits(spec.backing);
    let (cluster, table) = (1u64 << cluster_bits, 8u64 << l2_bits);
    let per_table = cluster << l2_bits;
    let l1_bytes = spec.virtual_size.div_ceil(per_table).saturating_mul(8);
    let fixed = (HEADER_LEN as u64 + l1_bytes).next_multiple_of(cluster);
    let space = |clusters: u64, tables: u64| {
        let tables = tables.saturating_mul(table);
        clusters
            .saturating_mul(cluster)
            .saturating_add(tables)
            .saturating_add(fixed)
    };
    Ok(Measurement {
        required: space(units_touched(spec.data, cluster), units_touched(spec.data, per_table)),
        fully_allocated: space(
            spec.virtual_size.div_ceil(cluster),
            spec.virtual_size.div_ceil(per_table),
        ),
        bitmaps: None,
    })
}
