//! The format extension: dirty bitmaps, read-only. Source: QEMU's docs/interop/parallels, section "Format Extension".

use md5::{Digest, Md5};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, KnownLayout, Unaligned};

use super::layout::Header;
use crate::formats::common::be64;
use crate::image::{BitmapInfo, Bitmaps};
use crate::storage::read_vec;
use crate::{Error, OpenEnv, Result, StorageRef};

const MAGIC: u64 = 0xab23_4cef_23dc_ea87;
const DIRTY_BITMAP: u64 = 0x2038_5fae_252c_b34a;
/// Flag: who does not know the feature must not open the image.
const MUST_KNOW: u64 = 1;
const MAX_BITMAPS: usize = 4096;

#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawExtension {
    magic: U64,
    /// MD5 of the rest of the cluster.
    checksum: [u8; 16],
}
const _: () = assert!(size_of::<RawExtension>() == 24);

#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFeature {
    /// 0 ends the list.
    magic: U64,
    flags: U64,
    /// Bytes of data that follow; the next feature stands at a multiple of 8.
    data_size: U32,
    unused: U32,
}
const _: () = assert!(size_of::<RawFeature>() == 24);

#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBitmap {
    /// Sectors that the bitmap covers: the whole disk.
    size: U64,
    id: [u8; 16],
    /// Sectors a bit stands for, a power of two.
    granularity: U32,
    /// Entries of the table that follows: 0 all clear, 1 all set, else the sector of a cluster of bits.
    l1_size: U32,
}
const _: () = assert!(size_of::<RawBitmap>() == 32);

struct Bitmap {
    name: String,
    granularity: u64,
    table: Vec<u64>,
}

/// The bitmaps of one image.
pub(super) struct Extension {
    file: StorageRef,
    cluster: u64,
    size: u64,
    bitmaps: Vec<Bitmap>,
}

impl Extension {
    /// Reads the extension cluster, if the header names one. An image opened for writing loses it anyway: it is not looked at then.
    pub(super) fn read(file: &StorageRef, header: &Header, env: &OpenEnv<'_>) -> Result<Self> {
        let mut extension = Self {
            file: file.clone(),
            cluster: header.cluster,
            size: header.size,
            bitmaps: Vec::new(),
        };
        let sector = header.raw.ext_off.get();
        if sector == 0 || env.writable || env.for_check {
            return Ok(extension);
        }
        let at = sector
            .checked_mul(512)
            .ok_or_else(|| Error::corrupt(format!("format extension at sector {sector:#x} is out of range")))?;
        if header.cluster > env.limits.table_bytes {
            return Err(Error::limit("the format extension cluster is too large"));
        }
        let len = usize::try_from(header.cluster).unwrap_or(usize::MAX);
        let bytes = read_vec(file.as_ref(), at, len).map_err(|e| e.at("format extension"))?;
        extension.parse(&bytes)?;
        Ok(extension)
    }

    fn parse(&mut self, bytes: &[u8]) -> Result<()> {
        let short = || Error::corrupt("the format extension is cut short");
        let (head, body) = RawExtension::read_from_prefix(bytes).map_err(|_| short())?;
        if head.magic.get() != MAGIC {
            return Err(Error::corrupt(format!(
                "wrong magic {:#x} of the format extension",
                head.magic
            )));
        }
        if Md5::digest(body).as_slice() != head.checksum {
            return Err(Error::corrupt("the checksum of the format extension does not match"));
        }
        let mut rest = body;
        loop {
            let (feature, after) = RawFeature::read_from_prefix(rest).map_err(|_| short())?;
            if feature.magic.get() == 0 {
                return Ok(());
            }
            let len = usize::try_from(feature.data_size.get()).unwrap_or(usize::MAX);
            let data = after
                .get(..len)
                .ok_or_else(|| Error::corrupt("a feature of the format extension ends past its cluster"))?;
            if feature.magic.get() == DIRTY_BITMAP {
                self.add(data)?;
            } else if feature.flags.get() & MUST_KNOW != 0 {
                return Err(Error::unsupported(format!(
                    "unknown feature {:#x} of the format extension",
                    feature.magic
                )));
            }
            rest = after.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
    }

    fn add(&mut self, data: &[u8]) -> Result<()> {
        let short = |_| Error::corrupt("a dirty bitmap of the format extension is cut short");
        let (raw, table) = RawBitmap::read_from_prefix(data).map_err(short)?;
        if raw.size.get() != self.size / 512 {
            return Err(Error::corrupt(format!(
                "a dirty bitmap covers {} sectors of {}",
                raw.size,
                self.size / 512
            )));
        }
        let granularity = u64::from(raw.granularity.get()) * 512;
        if !granularity.is_power_of_two() {
            return Err(Error::corrupt(format!(
                "dirty bitmap granularity of {} sectors is no power of two",
                raw.granularity
            )));
        }
        let wanted = self.size.div_ceil(granularity.saturating_mul(self.cluster * 8));
        let entries = u64::from(raw.l1_size.get());
        let bytes = usize::try_from(entries * 8).unwrap_or(usize::MAX);
        let table = table.get(..bytes).filter(|_| entries == wanted).ok_or_else(|| {
            Error::corrupt(format!(
                "dirty bitmap table has {entries} entries where {wanted} are needed"
            ))
        })?;
        if self.bitmaps.len() == MAX_BITMAPS {
            return Err(Error::limit(format!("more than {MAX_BITMAPS} dirty bitmaps")));
        }
        self.bitmaps.push(Bitmap {
            name: uuid::Uuid::from_bytes(raw.id).to_string(),
            granularity,
            table: table.chunks_exact(8).map(|e| be64(e).swap_bytes()).collect(),
        });
        Ok(())
    }

    /// Adds the dirty ranges of one table entry, which covers the disk from `start` on.
    fn ranges_of(&self, entry: u64, start: u64, granularity: u64, out: &mut Vec<(u64, u64)>) -> Result<()> {
        let span = granularity.saturating_mul(self.cluster * 8).min(self.size - start);
        match entry {
            0 => return Ok(()),
            1 => {
                join(out, start, span);
                return Ok(());
            }
            _ => {}
        }
        let at = entry
            .checked_mul(512)
            .ok_or_else(|| Error::corrupt(format!("dirty bitmap cluster at sector {entry:#x} is out of range")))?;
        let len = usize::try_from(span.div_ceil(granularity).div_ceil(8)).unwrap_or(usize::MAX);
        let bits = read_vec(self.file.as_ref(), at, len)?;
        for (n, byte) in bits.iter().enumerate().filter(|(_, b)| **b != 0) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let offset = (n as u64 * 8 + bit) * granularity;
                if offset < span {
                    join(out, start + offset, granularity.min(span - offset));
                }
            }
        }
        Ok(())
    }
}

fn join(out: &mut Vec<(u64, u64)>, offset: u64, len: u64) {
    match out.last_mut() {
        Some((at, n)) if *at + *n == offset => *n += len,
        _ => out.push((offset, len)),
    }
}

fn read_only<T>() -> Result<T> {
    Err(Error::unsupported(
        "the dirty bitmaps of Parallels images are read-only",
    ))
}

impl Bitmaps for Extension {
    fn list(&self) -> Result<Vec<BitmapInfo>> {
        let info = |b: &Bitmap| BitmapInfo {
            name: b.name.clone(),
            granularity: b.granularity,
            in_use: false,
            enabled: true,
        };
        Ok(self.bitmaps.iter().map(info).collect())
    }
    fn add(&self, _name: &str, _granularity: u64, _enabled: bool) -> Result<()> {
        read_only()
    }
    fn remove(&self, _name: &str) -> Result<()> {
        read_only()
    }
    fn clear(&self, _name: &str) -> Result<()> {
        read_only()
    }
    fn set_enabled(&self, _name: &str, _enabled: bool) -> Result<()> {
        read_only()
    }
    fn dirty(&self, name: &str) -> Result<Vec<(u64, u64)>> {
        let bitmap = self
            .bitmaps
            .iter()
            .find(|b| b.name == name)
            .ok_or_else(|| Error::invalid(format!("there is no dirty bitmap '{}'", name.escape_debug())))?;
        let span = bitmap.granularity.saturating_mul(self.cluster * 8);
        let mut out = Vec::new();
        for (n, entry) in bitmap.table.iter().enumerate() {
            self.ranges_of(
                *entry,
                span.saturating_mul(n as u64).min(self.size),
                bitmap.granularity,
                &mut out,
            )?;
        }
        Ok(out)
    }
    fn mark(&self, _name: &str, _ranges: &[(u64, u64)]) -> Result<()> {
        read_only()
    }
}
