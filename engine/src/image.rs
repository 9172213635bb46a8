//! One open layer.

use std::any::Any;
use std::ops::Range;

use serde_json::{Map, Value};

use crate::crypto::luks::{EraseKeys, KeyEnv, KeyWork, LuksSlot, NewKey};
pub use crate::env::BackingReference;
use crate::options::Options;
use crate::{Control, Error, Result, StorageRef};

/// What a guest range of one layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the asked offset on; never 0.
    pub len: u64,
    /// What they are.
    pub kind: ExtentKind,
}

/// A place in one of an image's storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPlace {
    /// Index into [`Image::storages`]; 0 is the main file.
    pub file: usize,
    /// Bytes from its start.
    pub offset: u64,
}

/// The states a guest range can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Not in this layer: the layer below decides; without one it reads as zeroes.
    Unallocated,
    /// Reads as zeroes, whatever is below. `at`: space is reserved for it there.
    Zero {
        /// The reserved place.
        at: Option<HostPlace>,
    },
    /// Stored. `at` is its place. Where `direct`, the bytes at that place are the guest's bytes and may be read there without the driver.
    Data {
        /// The place of the first byte.
        at: Option<HostPlace>,
        /// Stored as is: not encrypted, not transformed.
        direct: bool,
    },
    /// Stored compressed; only the driver can read it.
    Compressed,
}

/// Reads what lies below a layer: copy on write needs it.
pub trait Below: Sync {
    /// Fills `buf` with guest bytes from `offset`; zeroes past the end of what is below.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Whether the range is known to read as zeroes without reading it.
    fn is_zero(&self, offset: u64, len: u64) -> Result<bool>;
}

/// Nothing below: all zeroes.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingBelow;

impl Below for NothingBelow {
    fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        Ok(())
    }
    fn is_zero(&self, _offset: u64, _len: u64) -> Result<bool> {
        Ok(true)
    }
}

/// Facts about an open layer; the names are those of `qemu-img info --output=json`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageInfo {
    /// Allocation unit in bytes, where the format has one.
    pub cluster_size: Option<u64>,
    /// Whether guest data is encrypted.
    pub encrypted: bool,
    /// Whether the image as a whole is of compressed units (streamOptimized and the like).
    pub compressed: bool,
    /// The image was not closed properly; `None` where `qemu-img info` leaves that out.
    pub dirty: Option<bool>,
    /// Internal snapshots.
    pub snapshots: Vec<SnapshotInfo>,
    /// `format-specific.data` under QEMU's keys; `None` where QEMU has none and we have nothing to add.
    pub specific: Option<Map<String, Value>>,
}

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

/// What `check` may mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Repair {
    /// Nothing.
    #[default]
    No,
    /// Space nobody uses (`-r leaks`).
    Leaks,
    /// Everything it can (`-r all`).
    All,
}

/// What `check` found; the names are those of `qemu-img check --output=json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Things that could not be checked.
    pub check_errors: u64,
    /// Contradictions that can lose data.
    pub corruptions: u64,
    /// Space that nothing refers to.
    pub leaks: u64,
    /// Contradictions that were mended.
    pub corruptions_fixed: u64,
    /// Leaks that were mended.
    pub leaks_fixed: u64,
    /// End of the last used byte of the file.
    pub image_end_offset: Option<u64>,
    /// Clusters of the virtual size.
    pub total_clusters: Option<u64>,
    /// Clusters with data.
    pub allocated_clusters: Option<u64>,
    /// Of these, not at the place that a sequential read expects.
    pub fragmented_clusters: Option<u64>,
    /// Of these, compressed.
    pub compressed_clusters: Option<u64>,
    /// One sentence a finding; bounded in number by the driver.
    pub messages: Vec<String>,
}

/// How space is reserved when an image is created or grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// None.
    #[default]
    Off,
    /// Tables only.
    Metadata,
    /// Tables, and space reserved by the file system.
    Falloc,
    /// Tables, and zeroes written.
    Full,
}

/// Changing the virtual size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resize {
    /// The new virtual size in bytes.
    pub virtual_size: u64,
    /// Data past the new end may be thrown away.
    pub shrink: bool,
    /// For the new part.
    pub preallocation: Preallocation,
}

/// One open layer of a chain. It answers for itself alone; [`Chain`](crate::Chain) puts layers together.
///
/// Methods take `&self` and may be called from several threads. Offsets and lengths are guest bytes; a range past the virtual
/// size is `InvalidArgument`. What a format cannot do is `Unsupported`, as its `Capabilities` say beforehand.
pub trait Image: Send + Sync {
    /// The driver's name.
    fn format(&self) -> &'static str;
    /// Bytes the guest sees.
    fn virtual_size(&self) -> u64;
    /// The layer below as the header names it.
    fn backing(&self) -> Option<BackingReference>;
    /// Other names that the layer below may be found by, where the gate does not open the one of [`backing`](Self::backing).
    fn other_backing_names(&self) -> Vec<String> {
        Vec::new()
    }
    /// Guest bytes that can be stored for themselves, where that is less than a cluster.
    fn subcluster_size(&self) -> Option<u64> {
        None
    }
    /// Facts for `info`.
    fn info(&self) -> Result<ImageInfo>;
    /// What was found and mended while it was opened, for people; mostly nothing.
    fn notices(&self) -> &[String] {
        &[]
    }
    /// The storages it is made of; the main file first.
    fn storages(&self) -> Vec<StorageRef>;
    /// What QEMU calls the storage of this index as a child of the image: `file`, and behind it the extents in their order.
    fn child_name(&self, storage: usize) -> String {
        match storage.checked_sub(1) {
            None => "file".to_owned(),
            Some(extent) => format!("extents.{extent}"),
        }
    }

    /// What the range from `offset` begins with: the longest run of one kind (contiguous in the file for data) that is cheap to find,
    /// at most `len` bytes.
    fn extent(&self, offset: u64, len: u64) -> Result<Extent>;
    /// Whether much of what [`extent`](Self::extent) calls data may be space that was only set aside, so that maps and copies should look
    /// for holes of the storage below it. Where `direct`, such a hole reads as zeroes.
    fn reserves_space(&self) -> bool {
        false
    }
    /// Reads this layer's own bytes; ranges it does not have read as zeroes.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes guest bytes; copy on write takes what is missing from `below`.
    fn write(&self, _offset: u64, _buf: &[u8], _below: &dyn Below) -> Result<()> {
        Err(self.cannot("write"))
    }
    /// Makes a range read as zeroes, whatever is below. With `unmap` its space may be given back.
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool, _below: &dyn Below) -> Result<()> {
        Err(self.cannot("write"))
    }
    /// The guest no longer needs a range: give back what whole units it has. Never exposes what is below where the format can avoid it.
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(self.cannot("discard"))
    }
    /// Writes one whole unit (cluster, grain) compressed; `buf` may be shorter only at the end of the image.
    fn write_compressed(&self, _offset: u64, _buf: &[u8]) -> Result<()> {
        Err(self.cannot("compress"))
    }
    /// The fast way to fill a new image; `None` where plain writes are all there is.
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        None
    }
    /// Whether filling it in bulk may be interrupted: what was flushed stays when the rest is lost, and bulk writes go on after the
    /// image was opened again. `false` where a flush ends the image for good, or nobody made sure.
    fn resumable(&self) -> bool {
        false
    }
    /// Whether an image that was only just created reads as zeroes. `false` where bytes that its storage held before show through: a raw
    /// image on a block device or on an export, which exist already.
    fn is_zero_when_new(&self) -> bool {
        true
    }
    /// Returns when all that was written is stable.
    fn flush(&self) -> Result<()>;
    /// Flushes and leaves the image marked as clean. Dropping without it leaves an image as a crash would.
    fn close(&self) -> Result<()> {
        self.flush()
    }

    /// Changes the virtual size.
    fn resize(&self, _to: &Resize) -> Result<()> {
        Err(self.cannot("resize"))
    }
    /// Bytes that the file grows by at most when the virtual size changes to `_virtual_size`, for tables that are written anew before the
    /// old ones are let go; none where tables are changed in their places.
    fn resize_room(&self, _virtual_size: u64) -> Result<u64> {
        Ok(0)
    }
    /// Changes what the header says about the layer below, nothing else.
    fn set_backing(&self, _backing: Option<&BackingReference>) -> Result<()> {
        Err(self.cannot("change the backing file of"))
    }
    /// What an overlay records of the layer below it to know it again (VMDK's CID, the unique ids of VHD, VHDX and VDI); `None` where
    /// the format has no such thing.
    fn layer_id(&self) -> Option<String> {
        None
    }
    /// Whether `below` is the layer this one was made over, as far as the format can tell. A chain asks it of each pair of layers.
    ///
    /// # Errors
    /// `Corrupt` with both identities when it is another one, or the same one changed since.
    fn check_below(&self, _below: &dyn Image) -> Result<()> {
        Ok(())
    }
    /// Whether it knows the layer below by what changes with that one's content, so that a commit into that one needs this one open for
    /// writing ([`expect_change`](Self::expect_change)).
    fn follows_below(&self) -> bool {
        false
    }
    /// Before a commit changes the content of `below`: lets this layer know `below` as it is and as [`begin_change`](Self::begin_change)
    /// makes it, so that a commit that is cut off anywhere can be done again. Stable when it returns.
    fn expect_change(&self, _below: &dyn Image) -> Result<()> {
        Ok(())
    }
    /// Gives the content, which is about to change, the identity that the layer above expects. Stable when it returns.
    fn begin_change(&self) -> Result<()> {
        Ok(())
    }
    /// [`set_backing`](Self::set_backing) for a caller that has the new layer open: formats that record its identity need it.
    fn set_backing_over(&self, backing: Option<&BackingReference>, _below: Option<&dyn Image>) -> Result<()> {
        self.set_backing(backing)
    }
    /// Says whether what is changed from now on looks the same through the whole chain, as in a rebase. Formats that record when the
    /// content changed ([`layer_id`](Self::layer_id)) then need not, and layers above stay good.
    fn content_stays(&self, _stays: bool) {}
    /// Create options that make another image like this one, as far as the driver has options for it; what is below it and its keys are not
    /// among them.
    fn made_with(&self) -> Options {
        Options::new()
    }
    /// Whether this image can hold compressed data, where not all of the format can.
    ///
    /// # Errors
    /// `Unsupported` that says which ones can.
    fn check_compressible(&self) -> Result<()> {
        Ok(())
    }
    /// Before the first write into a new image that will replace `old`, shows the same and lies over the same: layers above shall take it for
    /// that one ([`layer_id`](Self::layer_id)).
    fn stand_in_for(&self, _old: &dyn Image) -> Result<()> {
        Ok(())
    }
    /// Drops all guest data of this layer, so that everything shows the layer below.
    fn make_empty(&self) -> Result<()> {
        Err(self.cannot("empty"))
    }
    /// Takes the whole clusters of some ranges, in ascending order, out of this layer, so that what is below shows there again, and gives the
    /// space back, the end of the file that nothing uses with it. A driver that cannot do that keeps them: right only where what is below
    /// shows the same.
    fn forget(&self, _ranges: &[Range<u64>]) -> Result<()> {
        Ok(())
    }
    /// Checks, and mends what `repair` allows.
    fn check(&self, _repair: Repair, _control: &Control) -> Result<CheckReport> {
        Err(self.cannot("check"))
    }
    /// Changes create options of an existing image (`amend`).
    fn amend(&self, _options: &Options, _force: bool, _control: &Control) -> Result<()> {
        Err(self.cannot("amend"))
    }
    /// Internal snapshots.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }
    /// Dirty bitmaps.
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        None
    }
    /// The error that reading and writing data gives because the image was opened without its key; `None` where nothing is missing.
    fn missing_key(&self) -> Option<Error> {
        None
    }
    /// Key slots of an encrypted image.
    fn key_slots(&self) -> Option<&dyn KeySlots> {
        None
    }

    /// The error for what this format cannot do.
    fn cannot(&self, verb: &str) -> Error {
        Error::unsupported(format!("cannot {verb} an image of format '{}'", self.format()))
    }
}

/// Filling an image fast: encode on any thread, place in guest order on one thread, store on any thread.
///
/// Metadata may stay in memory until [`Image::flush`]. Used only for units that are not allocated yet, unless the driver says more.
pub trait BulkWrite: Sync {
    /// Guest bytes of one unit (cluster, grain), at most 2 MiB: runs begin and end at multiples of it. A format with larger blocks gives
    /// a smaller unit, and allocates the block when its first unit is placed.
    fn unit(&self) -> u64;
    /// Whether every unit must be encoded (streamOptimized and the like). Elsewhere [`encode`](Self::encode) is called only when the
    /// caller wants compression; without it whole runs of units are placed and stored as they are. An image of which every unit is encoded
    /// is filled from its start to its end: it takes units in rising guest order alone, by plain writes as well.
    fn encodes(&self) -> bool;
    /// Whether units that are allocated already may be placed again (formats with a fixed place for each byte).
    fn overwrites(&self) -> bool {
        false
    }
    /// Whether the place of plain units that were never stored reads as zeroes and bytes are stored as they are: then zero parts of a
    /// placed run need not be stored.
    fn sparse_store(&self) -> bool {
        false
    }
    /// The stored form of one unit, or `None` when it is better stored as is. `scratch` is one worker's own, kept between calls.
    fn encode(&self, data: &[u8], scratch: &mut Scratch) -> Result<Option<Vec<u8>>>;
    /// Gives a run a place: `encoded` is the stored length of one encoded unit, `None` for a run of plain units, of which the placement may
    /// be the beginning alone: the rest has another place then, and is asked for next. Called by one thread at a time, and in rising guest
    /// order where all units are encoded.
    fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement>;
    /// Writes the bytes of a placement, or of a part of a plain one: any thread, any order.
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()>;
}

/// Buffers and codec contexts that a worker keeps between calls of [`BulkWrite::encode`].
#[derive(Default)]
pub struct Scratch {
    kept: Option<Box<dyn Any + Send>>,
    level: Option<i32>,
}

impl Scratch {
    /// Scratch for a compression level that the user chose.
    pub fn with_level(level: Option<i32>) -> Self {
        Self { kept: None, level }
    }
    /// The compression level to use, where the user chose one.
    pub fn level(&self) -> Option<i32> {
        self.level
    }
    /// The worker's own `T`, made at first use.
    pub fn get<T: Any + Send>(&mut self, make: impl FnOnce() -> Result<T>) -> Result<&mut T> {
        if self.kept.as_ref().is_none_or(|b| !b.is::<T>()) {
            self.kept = Some(Box::new(make()?));
        }
        self.kept
            .as_mut()
            .and_then(|b| b.downcast_mut())
            .ok_or_else(|| Error::invalid("scratch of another type"))
    }
}

/// Where a run of guest bytes goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// First guest byte.
    pub guest: u64,
    /// Which storage and where.
    pub at: HostPlace,
    /// Bytes to store.
    pub len: u64,
    /// Stored in encoded form.
    pub encoded: bool,
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
