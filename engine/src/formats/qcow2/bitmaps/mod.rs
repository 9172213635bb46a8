//! Persistent dirty bitmaps.
//!
//! While a bitmap is changed or follows writes it is marked "in use" in the file: whoever finds that mark knows that it was not saved. Saving
//! writes bits, tables and a new directory to new places, flushes, points the header at them, flushes, and lets go of the old ones.

mod bits;
mod hold;
mod store;

use self::bits::Bits;
use super::bitmap_table::{self, Bitmap, MAX_NAME};
use super::image::Qcow2;
use super::layout::extensions::MAX_BITMAPS;
use super::layout::{Autoclear, BitmapsExtension};
use crate::image::{BitmapInfo, Bitmaps};
use crate::{Error, Result};

/// A bitmap in memory while it may change.
pub(super) struct Live {
    /// As it will be in the directory when it is saved.
    pub entry: Bitmap,
    /// `None`: left as it is in the file.
    pub bits: Option<Bits>,
}

/// All bitmaps while some may change.
#[derive(Default)]
pub(super) struct LiveBitmaps {
    pub list: Vec<Live>,
    /// The directory in the file, and tables and bits that a save will let go of.
    old: Vec<(u64, u64)>,
}

impl Qcow2 {
    /// The bitmaps extension, where it is valid: somebody who does not know bitmaps clears the bit when he writes.
    fn bitmaps_extension(&self) -> Option<BitmapsExtension> {
        let shared = self.read_shared();
        let valid = shared.header.autoclear & Autoclear::BITMAPS != 0;
        shared.extensions.bitmaps().filter(|_| valid)
    }

    /// The directory as it is in the file.
    pub fn bitmap_directory(&self) -> Result<Vec<Bitmap>> {
        match self.bitmaps_extension() {
            None => Ok(Vec::new()),
            Some(extension) => bitmap_table::read(self.host.file.as_ref(), &extension, &self.geometry),
        }
    }

    fn bitmap_entry(&self, name: &str) -> Result<Bitmap> {
        let mut directory = self.bitmap_directory()?.into_iter();
        directory.find(|b| b.name == name).ok_or_else(|| no_bitmap(name))
    }

    /// Changes one bitmap and saves it.
    fn change_bitmap(&self, name: &str, change: impl FnOnce(&mut Live)) -> Result<()> {
        let mut writer = self.lock_writer()?;
        self.prepare_metadata(&mut writer)?;
        self.hold_bitmaps(&mut writer, |b| b.name == name)?;
        let found = writer
            .live
            .iter_mut()
            .flat_map(|l| &mut l.list)
            .find(|l| l.entry.name == name);
        let refusal = match found {
            None => Some(no_bitmap(name)),
            Some(live) if live.bits.is_none() => Some(in_use(name)),
            Some(live) => {
                change(live);
                None
            }
        };
        self.save_bitmaps(&mut writer)?;
        refusal.map_or(Ok(()), Err)
    }

    fn new_bitmap(&self, name: &str, granularity: u64, enabled: bool) -> Result<Bitmap> {
        let granularity = match granularity {
            0 => self.geometry.cluster_size().clamp(4096, 65536),
            given => given,
        };
        if !granularity.is_power_of_two() || !(512..=1 << 31).contains(&granularity) {
            return Err(Error::invalid(format!(
                "the granularity must be a power of two between 512 and 2 GiB, not {granularity}"
            )));
        }
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            return Err(Error::invalid(format!("a bitmap name has 1 to {MAX_NAME} bytes")));
        }
        Ok(Bitmap {
            name: name.to_owned(),
            table_offset: 0,
            table_size: 0,
            in_use: false,
            auto: enabled,
            granularity_bits: granularity.trailing_zeros() as u8,
            extra: Vec::new(),
            extra_compatible: false,
        })
    }
}

fn no_bitmap(name: &str) -> Error {
    Error::invalid(format!("there is no bitmap \"{}\"", name.escape_debug()))
}

fn in_use(name: &str) -> Error {
    Error::corrupt(format!(
        "bitmap \"{}\" was not saved properly; it can only be removed",
        name.escape_debug()
    ))
}

impl Bitmaps for Qcow2 {
    fn possible(&self) -> bool {
        self.read_shared().header.version >= 3
    }
    fn list(&self) -> Result<Vec<BitmapInfo>> {
        let info = |b: Bitmap| BitmapInfo {
            granularity: b.granularity(),
            name: b.name,
            in_use: b.in_use,
            enabled: b.auto,
        };
        if let Some(writer) = &self.writer {
            let writer = writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(live) = &writer.live {
                return Ok(live.list.iter().map(|l| info(l.entry.clone())).collect());
            }
        }
        Ok(self.bitmap_directory()?.into_iter().map(info).collect())
    }
    fn add(&self, name: &str, granularity: u64, enabled: bool) -> Result<()> {
        let entry = self.new_bitmap(name, granularity, enabled)?;
        if !self.possible() {
            return Err(Error::unsupported("dirty bitmaps need compat=1.1 or above"));
        }
        if self.read_shared().header.virtual_size == 0 {
            return Err(Error::unsupported("an image of no bytes cannot have dirty bitmaps"));
        }
        let mut writer = self.lock_writer()?;
        self.prepare_metadata(&mut writer)?;
        let size = self.read_shared().header.virtual_size;
        self.refuse_large_bitmaps(std::iter::once(&entry), size)?;
        self.hold_bitmaps(&mut writer, |_| false)?;
        let bits = Bits::new(size, entry.granularity_bits, self.geometry.cluster_len());
        let live = writer.live.get_or_insert_default();
        let refusal = if live.list.iter().any(|l| l.entry.name == name) {
            Some(Error::invalid(format!(
                "there is a bitmap \"{}\" already",
                name.escape_debug()
            )))
        } else if live.list.len() >= MAX_BITMAPS as usize {
            Some(Error::limit(format!("an image has at most {MAX_BITMAPS} bitmaps")))
        } else {
            live.list.push(Live {
                entry,
                bits: Some(bits),
            });
            None
        };
        self.save_bitmaps(&mut writer)?;
        refusal.map_or(Ok(()), Err)
    }
    fn remove(&self, name: &str) -> Result<()> {
        let mut writer = self.lock_writer()?;
        self.prepare_metadata(&mut writer)?;
        self.hold_bitmaps(&mut writer, |_| false)?;
        let live = writer.live.get_or_insert_default();
        let found = live.list.iter().position(|l| l.entry.name == name);
        if let Some(index) = found {
            let removed = live.list.remove(index);
            live.forget(&removed.entry, &self.geometry, self.host.file.as_ref());
        }
        self.save_bitmaps(&mut writer)?;
        found.map(|_| ()).ok_or_else(|| no_bitmap(name))
    }
    fn clear(&self, name: &str) -> Result<()> {
        self.change_bitmap(name, |live| {
            if let Some(bits) = &mut live.bits {
                bits.clear();
            }
        })
    }
    fn set_enabled(&self, name: &str, enabled: bool) -> Result<()> {
        self.change_bitmap(name, |live| live.entry.auto = enabled)
    }
    fn dirty(&self, name: &str) -> Result<Vec<(u64, u64)>> {
        let most = self.limits.table_bytes / size_of::<(u64, u64)>() as u64;
        let mut found = Vec::new();
        self.each_dirty(name, &mut |offset, len| {
            if found.len() as u64 >= most {
                return Err(Error::limit(format!(
                    "bitmap \"{}\" has more than {most} dirty ranges",
                    name.escape_debug()
                )));
            }
            found.push((offset, len));
            Ok(())
        })?;
        Ok(found)
    }
    fn each_dirty(&self, name: &str, each: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        if let Some(writer) = &self.writer {
            let writer = writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let live = writer.live.iter().flat_map(|l| &l.list).find(|l| l.entry.name == name);
            if let Some(bits) = live.and_then(|l| l.bits.as_ref()) {
                return bits.each_range(each);
            }
        }
        let entry = self.bitmap_entry(name)?;
        if entry.in_use {
            return Err(in_use(name));
        }
        self.each_stored(&entry, each)
    }
    fn mark(&self, name: &str, ranges: &[(u64, u64)]) -> Result<()> {
        self.change_bitmap(name, |live| {
            if let Some(bits) = &mut live.bits {
                ranges.iter().for_each(|(offset, len)| bits.mark(*offset, *len));
            }
        })
    }
    fn merge(&self, name: &str, from: &dyn Bitmaps, other: &str) -> Result<()> {
        // Of its own, because `from` may be this image: its lock is not held while another is asked.
        let entry = self.bitmap_entry(name)?;
        let size = self.read_shared().header.virtual_size;
        self.refuse_large_bitmaps([&entry, &entry], size)?;
        let mut added = Bits::new(size, entry.granularity_bits, self.geometry.cluster_len());
        from.each_dirty(other, &mut |offset, len| {
            added.mark(offset, len);
            Ok(())
        })?;
        let mut merged = Ok(());
        self.change_bitmap(name, |live| {
            if let Some(bits) = &mut live.bits {
                merged = added.each_range(&mut |offset, len| {
                    bits.mark(offset, len);
                    Ok(())
                });
            }
        })?;
        merged
    }
}
