//! Changing the virtual size.
//!
//! The BAT stands between header and data. When a larger one does not fit there, the first data clusters move to the end of the file:
//! copies, flush, BAT, flush, then the new part of the BAT as zeroes, flush, then the header. A crash before the header's single
//! write leaves the old size with the same data.

use super::check::{cut, used_end};
use super::layout::{self, Header};
use super::open::ParallelsImage;
use crate::formats::common::{check_table, exclusive, lock, shared};
use crate::image::{Image, Preallocation, Resize};
use crate::{Error, Result};

const CHUNK: u64 = 1 << 20;

pub(super) fn resize(image: &ParallelsImage, to: &Resize) -> Result<()> {
    let size = to
        .virtual_size
        .checked_next_multiple_of(512)
        .ok_or_else(|| image.too_large(to.virtual_size))?;
    let header = image.header();
    if to.preallocation != Preallocation::Off {
        return Err(Error::unsupported("Parallels images cannot be preallocated"));
    }
    if size < header.size && !to.shrink {
        return Err(Error::invalid(format!(
            "shrinking from {} to {size} bytes loses data; allow it explicitly",
            header.size
        )));
    }
    if size > header.max_size() {
        return Err(image.too_large(size));
    }
    if size > header.size {
        check_table("the BAT", layout::bat_bytes(size, header.cluster), &image.limits)?;
    }
    image.before_change()?;
    image.flush()?;
    if size < header.size {
        shrink(image, &header, size)
    } else {
        grow(image, &header, size)
    }
}

fn shrink(image: &ParallelsImage, header: &Header, size: u64) -> Result<()> {
    let (keep, all) = (size.div_ceil(header.cluster), u64::from(header.raw.bat_entries.get()));
    // The size first: a disk that ends earlier is right with more clusters than it needs.
    set_size(image, size, all)?;
    image.forget(&mut lock(&image.space), keep, all - keep)?;
    image.flush()?;
    exclusive(&image.bat)
        .entries
        .truncate(usize::try_from(keep).unwrap_or(usize::MAX));
    set_size(image, size, keep)?;
    // Bitmaps of the format extension may lie behind the last cluster.
    if header.raw.ext_off.get() == 0 && image.file.can_resize() {
        cut(image, used_end(image))?;
    }
    Ok(())
}

fn grow(image: &ParallelsImage, header: &Header, size: u64) -> Result<()> {
    zero_the_tail(image, header)?;
    forget_past_the_end(image, header)?;
    let (have, want) = (u64::from(header.raw.bat_entries.get()), size.div_ceil(header.cluster));
    if want > have {
        let bat_end = layout::bat_end(want);
        let data_start = layout::data_start(bat_end, header.cluster, header.is_old());
        if data_start > header.data_start {
            make_room(image, header, data_start)?;
        }
        image
            .file
            .write_zeroes(header.bat_end(), bat_end - header.bat_end(), false)?;
        image.file.flush()?;
        let entries = usize::try_from(want).map_err(|_| image.too_large(size))?;
        exclusive(&image.bat).entries.resize(entries, 0);
    }
    set_size(image, size, want.max(have))
}

/// A shrink that was cut off leaves entries of clusters past the end, which must not become visible.
fn forget_past_the_end(image: &ParallelsImage, header: &Header) -> Result<()> {
    let (used, all) = (
        header.size.div_ceil(header.cluster),
        u64::from(header.raw.bat_entries.get()),
    );
    if used < all {
        image.forget(&mut lock(&image.space), used, all - used)?;
        image.flush()?;
    }
    Ok(())
}

fn set_size(image: &ParallelsImage, size: u64, entries: u64) -> Result<()> {
    let entries = u32::try_from(entries).map_err(|_| image.too_large(size))?;
    image.change_header(|header| {
        header.size = size;
        header.raw.nb_sectors = (size / 512).into();
        header.raw.bat_entries = entries.into();
        header.raw.cylinders = layout::cylinders(size).into();
    })
}

/// What the last cluster holds past the old end must not become visible.
fn zero_the_tail(image: &ParallelsImage, header: &Header) -> Result<()> {
    let inside = header.size % header.cluster;
    if inside == 0 {
        return Ok(());
    }
    if let (Some(at), _) = image.run(header.size / header.cluster, 1)? {
        image.file.write_zeroes(at + inside, header.cluster - inside, false)?;
    }
    Ok(())
}

/// Moves the clusters that stand before the new start of the data to the end of the file.
fn make_room(image: &ParallelsImage, header: &Header, data_start: u64) -> Result<()> {
    let in_the_way: Vec<(u64, u64)> = {
        let bat = shared(&image.bat);
        let place =
            |(n, entry): (usize, &u32)| Some((n as u64, (*entry != 0).then(|| u64::from(*entry) * header.step)?));
        bat.entries
            .iter()
            .enumerate()
            .filter_map(place)
            .filter(|(_, at)| *at < data_start)
            .collect()
    };
    {
        let mut space = lock(&image.space);
        space.free.retain(|at| *at >= data_start);
        space.end = space.end.max(data_start);
        image.set_end(space.end);
        for (cluster, from) in in_the_way {
            let free = std::mem::take(&mut space.free);
            let taken = image.take(&mut space, 1);
            space.free = free;
            let (at, _) = taken?;
            copy(image, from, at, header.cluster)?;
            image.assign(cluster, 1, at);
        }
    }
    image.flush()?;
    let sectors = u32::try_from(data_start / 512).map_err(|_| image.too_large(data_start))?;
    image.change_header(|header| {
        header.data_start = data_start;
        header.raw.data_off = sectors.into();
    })
}

pub(super) fn copy(image: &ParallelsImage, from: u64, to: u64, len: u64) -> Result<()> {
    let mut done = 0;
    while done < len {
        let n = (len - done).min(CHUNK);
        let bytes = crate::storage::read_vec(image.file.as_ref(), from + done, usize::try_from(n).unwrap_or(0))?;
        image.file.write_at(to + done, &bytes)?;
        done += n;
    }
    Ok(())
}
