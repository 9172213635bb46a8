//! raw: the file is the disk.
//!
//! Supported: holes, discard by punching, growing and shrinking, a window of the file (`offset`, `size`), preallocation off, falloc
//! and full. The virtual size is the length of the file in whole sectors of 512 bytes, as QEMU has it: a file that ends inside a sector
//! reads as zeroes up to the sector's end. Nothing in the file is ever interpreted.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::env::CreateSpec;
use crate::formats::common::with_holes;
use crate::formats::{Bound, Capabilities, Confidence, FormatDriver, MeasureSpec, Measurement, Probe};
use crate::image::{
    BackingReference, Below, BulkWrite, Extent, ExtentKind, HostPlace, ImageInfo, Placement, Preallocation, Resize,
    Scratch,
};
use crate::options::{OptionKind, OptionSpec, Options};
use crate::storage::read_guest_padded;
use crate::{CreateEnv, Error, Image, OpenEnv, Result, StorageRef};

const CAPABILITIES: Capabilities = Capabilities {
    create: true,
    write: true,
    backing: false,
    change_backing: false,
    make_empty: false,
    zero: true,
    discard: true,
    compress: false,
    grow: true,
    shrink: true,
    check: false,
    repair: false,
    snapshots: false,
    bitmaps: false,
    amend: false,
    encryption: false,
    several_files: false,
    measure: true,
    size_multiple: 1,
};

const SECTOR: u64 = 512;

/// Written at the start of a new image, as qemu-img does: whoever opens it for direct access finds out the alignment by reading data.
const FIRST_BLOCK: [u8; 4096] = [0; 4096];

/// The driver.
pub struct Raw;

impl FormatDriver for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }
    fn description(&self) -> &'static str {
        "plain disk contents without any header"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
    fn create_options(&self) -> &'static [OptionSpec] {
        &[OptionSpec {
            name: "preallocation",
            kind: OptionKind::Choice(&["off", "falloc", "full"]),
            default: Some("off"),
            help: "Preallocation mode (allowed values: off, falloc, full)",
        }]
    }
    fn open_options(&self) -> &'static [OptionSpec] {
        &[
            OptionSpec {
                name: "offset",
                kind: OptionKind::Size,
                default: Some("0"),
                help: "First byte of the disk in the file",
            },
            OptionSpec {
                name: "size",
                kind: OptionKind::Size,
                default: None,
                help: "Bytes of the disk (default: to the end)",
            },
        ]
    }
    fn detect(&self, _probe: &Probe<'_>) -> Confidence {
        1
    }

    fn open(&self, storage: StorageRef, options: &Options, _env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        let (offset, size) = (options.size("offset")?.unwrap_or(0), options.size("size")?);
        let len = storage.len()?;
        let len = len
            .checked_next_multiple_of(SECTOR)
            .ok_or_else(|| Error::limit(format!("length {len} is too large")))?;
        if offset == 0 && size.is_none() {
            return Ok(Box::new(RawImage {
                file: storage,
                start: 0,
                size: len.into(),
                window: false,
            }));
        }
        let rest = len.checked_sub(offset).ok_or_else(|| {
            Error::invalid(format!("offset {offset} lies past the end of the file at {len}")).at(storage.name())
        })?;
        if let Some(size) = size.filter(|size| !size.is_multiple_of(SECTOR)) {
            return Err(Error::invalid(format!(
                "expected a size of whole sectors of 512 bytes, found {size}"
            )));
        }
        let size = size.unwrap_or(rest);
        if size > rest {
            return Err(Error::invalid(format!(
                "{size} bytes at {offset} end past the end of the file at {len}"
            ))
            .at(storage.name()));
        }
        Ok(Box::new(RawImage {
            file: storage,
            start: offset,
            size: size.into(),
            window: true,
        }))
    }

    fn create(&self, storage: StorageRef, spec: &CreateSpec, _env: &CreateEnv<'_>) -> Result<()> {
        if spec.backing.is_some() {
            return Err(Error::unsupported("format 'raw' cannot have a backing file"));
        }
        if !storage.can_resize() {
            let len = storage.len()?;
            if len < spec.virtual_size {
                return Err(
                    Error::invalid(format!("expected a device of {} bytes, found {len}", spec.virtual_size))
                        .at(storage.name()),
                );
            }
            // The rest stays as it is, as with qemu-img, but the magic of an older image must not be found again.
            return storage.write_at(0, &FIRST_BLOCK[..len.min(SECTOR) as usize]);
        }
        storage.set_len(spec.virtual_size)?;
        match spec.options.get("preallocation") {
            Some("falloc") => reserve(&storage, Preallocation::Falloc, 0, spec.virtual_size),
            Some("full") => reserve(&storage, Preallocation::Full, 0, spec.virtual_size),
            _ => storage.write_at(
                0,
                &FIRST_BLOCK[..spec.virtual_size.min(FIRST_BLOCK.len() as u64) as usize],
            ),
        }
    }

    fn measure(&self, spec: &MeasureSpec<'_>) -> Result<Measurement> {
        // The length of the file, as qemu-img measures it: holes count.
        Ok(Measurement {
            required: spec.virtual_size,
            fully_allocated: spec.virtual_size,
            bitmaps: None,
        })
    }

    fn bound(&self, spec: &MeasureSpec<'_>) -> Result<Bound> {
        let len = spec.virtual_size;
        if let Some("falloc" | "full") = spec.options.get("preallocation") {
            return Ok(with_holes(len, len, 0, &[]));
        }
        Ok(with_holes(len, FIRST_BLOCK.len() as u64, 0, spec.data))
    }
}

fn reserve(storage: &StorageRef, how: Preallocation, offset: u64, len: u64) -> Result<()> {
    match how {
        Preallocation::Off => Ok(()),
        Preallocation::Metadata => Err(Error::unsupported("format 'raw' has no metadata to preallocate")),
        Preallocation::Falloc => storage.allocate(offset, len),
        Preallocation::Full => crate::storage::write_zero_bytes(storage.as_ref(), offset, len),
    }
}

struct RawImage {
    file: StorageRef,
    /// First byte of the disk in the file.
    start: u64,
    /// Virtual size: the length in whole sectors. The file may end inside the last one.
    size: AtomicU64,
    /// Whether the disk is a window of the file, which never changes its size.
    window: bool,
}

impl RawImage {
    fn inside(&self, offset: u64, len: u64) -> Result<u64> {
        let end = self.virtual_size();
        match offset.checked_add(len) {
            Some(e) if e <= end => Ok(self.start + offset),
            _ => Err(
                Error::invalid(format!("{len} bytes at {offset:#x} end past the virtual size {end}"))
                    .at(self.file.name()),
            ),
        }
    }
}

impl Image for RawImage {
    fn format(&self) -> &'static str {
        "raw"
    }
    fn virtual_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }
    fn backing(&self) -> Option<BackingReference> {
        None
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            dirty: Some(false),
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.file.clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let place = self.inside(offset, len)?;
        let at = Some(HostPlace { file: 0, offset: place });
        // Only the last sector may lie past the end of the file.
        if place + SECTOR >= self.start + self.virtual_size() && place >= self.file.len()? {
            return Ok(Extent {
                len,
                kind: ExtentKind::Zero { at },
            });
        }
        let found = self.file.extent(place, len)?;
        let kind = if found.data {
            ExtentKind::Data { at, direct: true }
        } else {
            ExtentKind::Zero { at }
        };
        Ok(Extent { len: found.len, kind })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let place = self.inside(offset, buf.len() as u64)?;
        if place + buf.len() as u64 + SECTOR <= self.start + self.virtual_size() {
            return self.file.read_guest_at(place, buf);
        }
        read_guest_padded(self.file.as_ref(), place, buf)
    }
    fn write(&self, offset: u64, buf: &[u8], _below: &dyn Below) -> Result<()> {
        self.file.write_at(self.inside(offset, buf.len() as u64)?, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, _below: &dyn Below) -> Result<()> {
        self.file.write_zeroes(self.inside(offset, len)?, len, unmap)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.file.discard(self.inside(offset, len)?, len)
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        Some(self)
    }
    fn resumable(&self) -> bool {
        true
    }
    fn is_zero_when_new(&self) -> bool {
        self.file.can_resize()
    }
    fn flush(&self) -> Result<()> {
        self.file.flush()
    }
    fn resize(&self, to: &Resize) -> Result<()> {
        let now = self.virtual_size();
        if self.window {
            return Err(Error::unsupported("a window of a file cannot change its size").at(self.file.name()));
        }
        if to.virtual_size < now && !to.shrink {
            return Err(Error::invalid(format!(
                "shrinking from {now} to {} bytes loses data; allow it explicitly",
                to.virtual_size
            )));
        }
        if to.preallocation == Preallocation::Metadata {
            return Err(Error::unsupported("unsupported preallocation mode: metadata"));
        }
        let len = self.file.len()?;
        self.file.set_len(to.virtual_size)?;
        if to.virtual_size > now {
            reserve(&self.file, to.preallocation, now, to.virtual_size - now).inspect_err(|_| {
                // The first error is the one to tell.
                let _ = self.file.set_len(len);
            })?;
        }
        self.size
            .store(to.virtual_size.next_multiple_of(SECTOR), Ordering::Release);
        Ok(())
    }
}

impl BulkWrite for RawImage {
    fn unit(&self) -> u64 {
        4096
    }
    fn encodes(&self) -> bool {
        false
    }
    fn overwrites(&self) -> bool {
        true
    }
    fn sparse_store(&self) -> bool {
        self.file.can_resize()
    }
    fn encode(&self, _data: &[u8], _scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    fn place(&self, offset: u64, len: u64, _encoded: Option<u64>) -> Result<Placement> {
        let at = HostPlace {
            file: 0,
            offset: self.inside(offset, len)?,
        };
        Ok(Placement {
            guest: offset,
            at,
            len,
            encoded: false,
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.file.write_at(placement.at.offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Limits;
    use crate::image::NothingBelow;
    use crate::storage::{Fault, FaultyStorage, MemoryStorage};

    fn open(bytes: Vec<u8>, options: Options) -> Result<Box<dyn Image>> {
        Raw.open(
            Arc::new(MemoryStorage::new("m", bytes)),
            &options,
            &OpenEnv::closed(&Limits::default()),
        )
    }

    #[test]
    fn a_window_shows_only_its_bytes() {
        let image = open(
            (0..200).cycle().take(1000).collect(),
            Options::new().with("offset", "10").with("size", "512"),
        )
        .unwrap();
        let mut buf = [0; 5];
        image.read(0, &mut buf).unwrap();
        assert_eq!((image.virtual_size(), buf), (512, [10, 11, 12, 13, 14]));
        assert!(image.read(508, &mut buf).is_err());
    }

    /// As qemu-img refuses them.
    #[test]
    fn a_window_ends_with_a_sector() {
        for size in ["5", "511", "513"] {
            let error = open(vec![0; 1024], Options::new().with("size", size)).err().unwrap();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidArgument, "{error}");
        }
    }

    // As qemu-img: the last sector of the file counts whole.
    #[test]
    fn a_window_ends_with_the_last_sector_of_the_file() {
        let image = open(vec![7; 1300], Options::new().with("offset", "512")).unwrap();
        let mut buf = [1; 1024];
        image.read(0, &mut buf).unwrap();
        assert_eq!(
            (image.virtual_size(), &buf[..788], &buf[788..]),
            (1024, &[7; 788][..], &[0; 236][..])
        );
    }

    #[test]
    fn writes_past_the_virtual_size_are_refused() {
        let image = open(vec![0; 512], Options::new()).unwrap();
        assert_eq!(
            image.write(511, &[1, 2], &NothingBelow).unwrap_err().kind(),
            crate::ErrorKind::InvalidArgument
        );
    }

    #[test]
    fn shrinking_needs_permission() {
        let image = open(vec![1; 1024], Options::new()).unwrap();
        let mut to = Resize {
            virtual_size: 512,
            ..Resize::default()
        };
        assert!(image.resize(&to).is_err());
        to.shrink = true;
        image.resize(&to).unwrap();
        assert_eq!(image.virtual_size(), 512);
    }

    #[test]
    fn growth_that_finds_no_space_leaves_the_disk_as_it_was() {
        let storage = Arc::new(FaultyStorage::new(vec![1; 700]));
        let image = Raw
            .open(storage.clone(), &Options::new(), &OpenEnv::closed(&Limits::default()))
            .unwrap();
        // After the new length, the first zeroes.
        storage.plan(1, Fault::FailOnce(std::io::ErrorKind::StorageFull));
        let to = Resize {
            virtual_size: 1 << 20,
            preallocation: Preallocation::Full,
            ..Resize::default()
        };
        assert_eq!(image.resize(&to).unwrap_err().kind(), crate::ErrorKind::Io);
        assert_eq!((image.virtual_size(), storage.contents()), (1024, vec![1; 700]));
        image.resize(&to).unwrap();
        assert_eq!((image.virtual_size(), storage.contents().len()), (1 << 20, 1 << 20));
    }

    #[test]
    fn a_file_that_ends_inside_a_sector_reads_as_zeroes_to_its_end() {
        let image = open(vec![7; 700], Options::new()).unwrap();
        let mut buf = [1; 1024];
        image.read(0, &mut buf).unwrap();
        assert_eq!(
            (image.virtual_size(), &buf[..700], &buf[700..]),
            (1024, &[7; 700][..], &[0; 324][..])
        );
        assert_eq!(image.extent(0, 1024).unwrap().len, 700);
        assert_eq!(
            image.extent(700, 324).unwrap().kind,
            ExtentKind::Zero {
                at: Some(HostPlace { file: 0, offset: 700 })
            }
        );
    }
}
