//! One open layer.

mod bulk;
mod facts;
mod parts;

use std::ops::Range;

pub use self::bulk::{BulkWrite, Placement, Scratch};
pub use self::facts::{CheckReport, ImageInfo, Preallocation, Repair, Resize};
pub use self::parts::{BitmapInfo, Bitmaps, KeySlots, SnapshotInfo, Snapshots};
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
