//! Changes an image as the input says, and looks whether that was all that changed: an image that `check` finds sound must stay sound, read as
//! written where it was written and as before everywhere else.

use std::sync::Arc;

use vdisk_engine::image::{Repair, Resize};
use vdisk_engine::{Chain, Control, ErrorKind, Image, OpenEnv, Result, StorageRef};

use super::{Passphrase, SparseStorage, limits, node};

/// Guest bytes that are watched.
const WINDOW: u64 = 256 << 10;
const SECTOR: u64 = 512;
const MOST: usize = 4;

/// What the guest must see in the window; `None` where anything goes.
type Model = Vec<Option<u8>>;

/// Makes at most four changes of four bytes each: kind, place (2 bytes), length.
pub fn make(format: &str, storage: &Arc<SparseStorage>, program: &[u8]) {
    let limits = limits();
    let env = OpenEnv::closed(&limits).with_secrets(&Passphrase);
    let file: StorageRef = storage.clone();
    let opens = Chain::open(node(file.clone(), format), &env).is_ok();
    let sound = complaints(&file, format, &env).map(|found| found.is_empty() && opens);
    let Ok(chain) = Chain::open(node(file.clone(), format), &env.writable()) else {
        return;
    };
    let Ok(mut model) = window(&chain) else { return };
    let before = chain.virtual_size();
    let mut failed = false;
    for change in program.chunks_exact(4).take(MOST) {
        failed |= one(&chain, change, &mut model, sound).is_err();
    }
    let size = chain.virtual_size();
    failed |= chain.top().close().is_err();
    drop(chain);
    if sound != Some(true) || failed {
        return;
    }
    match Chain::open(node(file.clone(), format), &env) {
        Ok(chain) => {
            assert_eq!(chain.virtual_size(), size, "the size of {before} did not stay");
            compare(&chain, &model);
        }
        Err(error) => panic!("a sound image cannot be opened any more: {error:?}"),
    }
    if let Some(found) = complaints(&file, format, &env) {
        assert!(found.is_empty(), "a sound image is sound no more: {found:#?}");
    }
}

/// What `check` finds wrong; `None` where it cannot say.
fn complaints(file: &StorageRef, format: &str, env: &OpenEnv<'_>) -> Option<Vec<String>> {
    let chain = Chain::open(node(file.clone(), format), &env.for_check()).ok()?;
    match chain.top().check(Repair::No, &Control::default()) {
        Ok(report) if report.corruptions + report.check_errors == 0 => Some(Vec::new()),
        Ok(report) => Some(report.messages),
        Err(error) if error.kind() == ErrorKind::Unsupported => Some(Vec::new()),
        Err(error) => Some(vec![error.to_string()]),
    }
}

fn window(chain: &Chain) -> Result<Model> {
    let mut bytes = vec![0; chain.virtual_size().min(WINDOW) as usize];
    chain.read(0, &mut bytes)?;
    Ok(bytes.into_iter().map(Some).collect())
}

fn compare(chain: &Chain, model: &Model) {
    let mut bytes = vec![0; model.len()];
    if let Err(error) = chain.read(0, &mut bytes) {
        panic!("what was read before cannot be read any more: {error:?}");
    }
    let differs = (0..bytes.len()).find(|at| model[*at].is_some_and(|b| b != bytes[*at]));
    if let Some(at) = differs {
        panic!("byte {at:#x} is {:#x} and should be {:#x?}", bytes[at], model[at]);
    }
}

fn one(chain: &Chain, change: &[u8], model: &mut Model, sound: Option<bool>) -> Result<()> {
    let [kind, low, high, len] = *change else { return Ok(()) };
    let place = u64::from(u16::from_le_bytes([low, high])) * SECTOR;
    let room = (model.len() as u64).min(chain.virtual_size());
    let at = if room == 0 { 0 } else { place % room };
    let len = (u64::from(len) + 1).saturating_mul(SECTOR / 2).min(room - at);
    let range = at as usize..(at + len) as usize;
    match kind % 10 {
        0..=2 => {
            let byte = kind | 1;
            chain.write(at, &vec![byte; len as usize])?;
            model[range].fill(Some(byte));
        }
        3 => {
            chain.write_zeroes(at, len, kind & 0x80 != 0)?;
            model[range].fill(Some(0));
        }
        4 => {
            chain.top().discard(at, len)?;
            model[range].fill(None);
        }
        5 => resize(chain, place, model)?,
        6 => drop(chain.top().check(Repair::All, &Control::default())?),
        7 => snapshot(chain.top(), place)?,
        8 => bitmap(chain.top(), place)?,
        _ => chain.top().flush()?,
    }
    // Repairing an image that was not sound changes what the guest sees.
    if kind % 10 == 6 && sound != Some(true) {
        model.fill(None);
    }
    Ok(())
}

fn resize(chain: &Chain, place: u64, model: &mut Model) -> Result<()> {
    let size = chain.virtual_size();
    let virtual_size = if place & 0x200 == 0 {
        size.saturating_add(place)
    } else {
        size.saturating_sub(place)
    };
    let to = Resize {
        virtual_size,
        shrink: true,
        ..Resize::default()
    };
    chain.top().resize(&to)?;
    let end = usize::try_from(chain.virtual_size()).unwrap_or(usize::MAX);
    model.truncate(end);
    Ok(())
}

fn snapshot(image: &dyn Image, place: u64) -> Result<()> {
    let Some(snapshots) = image.snapshots() else {
        return Ok(());
    };
    if place & 0x200 == 0 {
        snapshots.create("new", (1, 2))?;
    } else if let Some(first) = snapshots.list()?.first() {
        snapshots.delete(&first.id)?;
    }
    Ok(())
}

fn bitmap(image: &dyn Image, place: u64) -> Result<()> {
    let Some(bitmaps) = image.bitmaps() else { return Ok(()) };
    if place & 0x200 == 0 {
        bitmaps.add("new", 0, true)?;
        return bitmaps.mark("new", &[(0, 512)]);
    }
    match bitmaps.list()?.first() {
        Some(first) => bitmaps.remove(&first.name),
        None => Ok(()),
    }
}
