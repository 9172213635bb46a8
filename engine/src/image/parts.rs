//! What an image holds beside its disk: snapshots, keys, bitmaps.

use super::Image;
use crate::Result;
use crate::crypto::luks::{EraseKeys, KeyEnv, KeyWork, LuksSlot, NewKey};

/// One internal snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Unique id, decimal digits.
    pub id: String,
    /// Name given by the user.
    pub name: String,
    /// Bytes of saved VM state.
    pub vm_state_size: u64,
    /// Virtual size of the disk at that time.
    pub virtual_size: u64,
    /// Seconds since 1970.
    pub date_sec: u64,
    /// and nanoseconds.
    pub date_nsec: u32,
    /// Guest clock in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instruction count, where recorded.
    pub icount: Option<u64>,
}

/// Internal snapshots of an image.
pub trait Snapshots {
    /// All, in the order of the table.
    fn list(&self) -> Result<Vec<SnapshotInfo>>;
    /// Takes one of the present state. `when` is seconds and nanoseconds since 1970.
    fn create(&self, name: &str, when: (u64, u32)) -> Result<SnapshotInfo>;
    /// Goes back to one. `selector` is an id or a name.
    fn apply(&self, selector: &str) -> Result<()>;
    /// Forgets one.
    fn delete(&self, selector: &str) -> Result<()>;
    /// The image as it was then, read-only.
    fn open(&self, selector: &str) -> Result<Box<dyn Image>>;
}

/// Key slots of an encrypted image: several passphrases for one volume key. No passphrase but those given is needed: an image opened
/// for metadata alone will do.
pub trait KeySlots {
    /// All slots of LUKS1, those that exist of LUKS2.
    fn list(&self) -> Result<Vec<LuksSlot>>;
    /// The slot that a passphrase opens: the one given, or the first of all that does.
    ///
    /// # Errors
    /// `WrongKey` when it opens none.
    fn test(&self, passphrase: &[u8], slot: Option<u32>, work: &KeyWork<'_>) -> Result<u32>;
    /// Adds a key; `unlock` is a passphrase that opens the image now. Gives its slot.
    fn add(&self, unlock: &[u8], new: &NewKey<'_>, env: &KeyEnv<'_>) -> Result<u32>;
    /// Puts a new passphrase in the place of `old`. Gives its slot.
    fn change(&self, old: &[u8], new: &NewKey<'_>, env: &KeyEnv<'_>) -> Result<u32>;
    /// Erases keys; the last one only with `force`. Gives the slots that were emptied.
    fn erase(&self, which: EraseKeys<'_>, force: bool, env: &KeyEnv<'_>) -> Result<Vec<u32>>;
}

/// One persistent dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Guest bytes a bit stands for.
    pub granularity: u64,
    /// It was not saved properly and must not be trusted.
    pub in_use: bool,
    /// It records writes.
    pub enabled: bool,
}

/// Persistent dirty bitmaps of an image.
pub trait Bitmaps {
    /// Whether this image can have any: older versions of a format may not.
    fn possible(&self) -> bool {
        true
    }
    /// All of them.
    fn list(&self) -> Result<Vec<BitmapInfo>>;
    /// Adds an empty one; granularity 0 takes the default.
    fn add(&self, name: &str, granularity: u64, enabled: bool) -> Result<()>;
    /// Removes one.
    fn remove(&self, name: &str) -> Result<()>;
    /// Clears all bits of one.
    fn clear(&self, name: &str) -> Result<()>;
    /// Starts or stops recording.
    fn set_enabled(&self, name: &str, enabled: bool) -> Result<()>;
    /// Dirty guest ranges (offset, length) in order, merged; `LimitExceeded` where there are too many for a list.
    fn dirty(&self, name: &str) -> Result<Vec<(u64, u64)>>;
    /// Gives the ranges of [`dirty`](Self::dirty), however many, to `each`, which must not use the image; its error ends it.
    fn each_dirty(&self, name: &str, each: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        self.dirty(name)?
            .into_iter()
            .try_for_each(|(offset, len)| each(offset, len))
    }
    /// Marks ranges dirty.
    fn mark(&self, name: &str, ranges: &[(u64, u64)]) -> Result<()>;
    /// Marks dirty what is dirty in the bitmap `other` of `from`, which may be the same image.
    fn merge(&self, name: &str, from: &dyn Bitmaps, other: &str) -> Result<()> {
        self.mark(name, &from.dirty(other)?)
    }
}
