//! An open image.

use std::sync::{Arc, Mutex};

use super::decode::{self, Cursor};
use super::fill::Filling;
use super::layout::{self, Codec, KOLY_LEN, Kind, Koly, SECTOR};
use super::plist;
use super::table::{Chunk, Table};
use crate::formats::common::{check_range, lock, read_table};
use crate::image::{BackingReference, BulkWrite, CheckReport, Extent, ExtentKind, HostPlace, ImageInfo, Repair};
use crate::storage::{Storage, read_vec};
use crate::{Control, Error, Image, OpenEnv, Result, StorageRef};

/// Chunks that may be larger than this are streamed.
const WHOLE: u64 = 8 << 20;

/// A chunk that a partial read inflated, kept for the next one, by its first guest byte.
type LastChunk = Option<(u64, Arc<Vec<u8>>)>;

/// An open layer.
pub(super) struct DmgImage {
    pub(super) file: StorageRef,
    pub(super) koly: Koly,
    pub(super) table: Table,
    pub(super) size: u64,
    whole: u64,
    last: Mutex<LastChunk>,
    cursor: Mutex<Option<Cursor>>,
    /// There while the image is new.
    pub(super) filling: Option<Filling>,
}

/// Finds the trailer: the last 512 bytes, or a little before where something was added.
fn find_koly(file: &dyn Storage) -> Result<Koly> {
    let len = file.len()?;
    let start = len.saturating_sub(2 * KOLY_LEN as u64);
    let tail = read_vec(file, start, usize::try_from(len - start).unwrap_or(0))?;
    if tail.len() < KOLY_LEN {
        return Err(Error::not_this_format("shorter than a UDIF trailer"));
    }
    match layout::trailer_in(&tail) {
        Some(at) => layout::check_koly(tail.get(at..).unwrap_or_default(), len),
        None => {
            let head = read_vec(file, 0, 8.min(usize::try_from(len).unwrap_or(8)))?;
            if head.starts_with(b"encrcdsa") || tail.ends_with(b"cdsaencr") {
                return Err(Error::unsupported("the image is encrypted (encrcdsa)"));
            }
            Err(Error::not_this_format("no UDIF trailer at the end of the file"))
        }
    }
}

fn read_chunks(file: &StorageRef, koly: &Koly, env: &OpenEnv<'_>) -> Result<Table> {
    let (xml, fork) = (koly.xml_len.get(), koly.resource_len.get());
    let tables = if xml > 0 {
        let bytes = read_table(
            file.as_ref(),
            "the property list",
            koly.xml_offset.get(),
            xml,
            env.limits,
        )?;
        plist::tables(&bytes)?
    } else if fork > 0 {
        let what = "the resource fork";
        plist::resources(&read_table(
            file.as_ref(),
            what,
            koly.resource_offset.get(),
            fork,
            env.limits,
        )?)?
    } else {
        return raw_disk(koly, file.len()?);
    };
    let mut table = Table::default();
    let len = file.len()?;
    for blob in &tables {
        table.add(blob, koly.data_offset.get(), len, env.limits)?;
    }
    table.finish()?;
    Ok(table)
}

/// A read-write image (UDRW) has no tables: its data fork is the disk.
fn raw_disk(koly: &Koly, file_len: u64) -> Result<Table> {
    let len = koly.sectors.get() * SECTOR;
    let at = koly.data_offset.get();
    if koly.data_len.get() != len || at.checked_add(len).is_none_or(|e| e > file_len) {
        return Err(Error::corrupt(
            "the image has neither a property list nor a resource fork",
        ));
    }
    let chunk = Chunk {
        start: 0,
        len,
        kind: Kind::Raw,
        at,
        stored: len,
    };
    Ok(Table {
        chunks: if len > 0 { vec![chunk] } else { Vec::new() },
        parts: Vec::new(),
    })
}

/// The size that the trailer claims; without one, what the chunks reach.
fn disk_size(koly: &Koly, table: &Table) -> Result<u64> {
    let claimed = koly.sectors.get() * SECTOR;
    if claimed == 0 {
        return Ok(table.chunks.last().map_or(0, Chunk::end));
    }
    let mut beyond = table.chunks.iter().rev().take_while(|chunk| chunk.end() > claimed);
    match beyond.find(|chunk| chunk.kind != Kind::Ignore) {
        None => Ok(claimed),
        Some(chunk) => Err(Error::corrupt(format!(
            "expected chunks that end in the {claimed} bytes of the disk, which the trailer claims, found one at {:#x} that ends at {:#x}",
            chunk.start,
            chunk.end()
        ))),
    }
}

impl DmgImage {
    pub(super) fn open(file: StorageRef, env: &OpenEnv<'_>) -> Result<Self> {
        let koly = find_koly(file.as_ref())?;
        let table = read_chunks(&file, &koly, env)?;
        let size = disk_size(&koly, &table)?;
        let filling = if env.writable {
            Some(Filling::of(&file, &koly, &table, size)?)
        } else {
            None
        };
        Ok(Self {
            file,
            koly,
            table,
            size,
            whole: WHOLE.min(env.limits.decompressed_bytes),
            last: Mutex::new(None),
            cursor: Mutex::new(None),
            filling,
        })
    }

    /// Reads part of one chunk.
    fn read_chunk(&self, chunk: &Chunk, inside: u64, out: &mut [u8]) -> Result<()> {
        match chunk.kind {
            Kind::Zero | Kind::Ignore => {
                out.fill(0);
                Ok(())
            }
            Kind::Raw => self.file.read_at(chunk.at + inside, out),
            Kind::Packed(codec) if out.len() as u64 == chunk.len => decode::whole(&self.file, chunk, codec, out),
            Kind::Packed(codec) if chunk.len <= self.whole => self.read_kept(chunk, codec, inside, out),
            Kind::Packed(codec) => decode::part(&self.file, chunk, codec, inside, out, &mut lock(&self.cursor)),
            Kind::Unknown(kind) => Err(Error::unsupported(format!(
                "chunk at {:#x} has the unknown type {kind:#x}",
                chunk.start
            ))),
        }
        .map_err(|e| e.at(self.file.name()))
    }

    /// Reads part of a chunk that is inflated whole and kept for the next read.
    fn read_kept(&self, chunk: &Chunk, codec: Codec, inside: u64, out: &mut [u8]) -> Result<()> {
        let kept = lock(&self.last)
            .as_ref()
            .filter(|(start, _)| *start == chunk.start)
            .map(|(_, b)| b.clone());
        let bytes = match kept {
            Some(bytes) => bytes,
            None => {
                let mut bytes = vec![0; usize::try_from(chunk.len).unwrap_or(0)];
                decode::whole(&self.file, chunk, codec, &mut bytes)?;
                let bytes = Arc::new(bytes);
                *lock(&self.last) = Some((chunk.start, bytes.clone()));
                bytes
            }
        };
        let from = usize::try_from(inside).unwrap_or(usize::MAX);
        if let Some(part) = bytes.get(from..from.saturating_add(out.len())) {
            out.copy_from_slice(part);
        }
        Ok(())
    }
}

fn extent_kind(chunk: &Chunk, inside: u64) -> ExtentKind {
    match chunk.kind {
        Kind::Zero | Kind::Ignore => ExtentKind::Zero { at: None },
        Kind::Raw => ExtentKind::Data {
            at: Some(HostPlace {
                file: 0,
                offset: chunk.at + inside,
            }),
            direct: true,
        },
        Kind::Packed(_) | Kind::Unknown(_) => ExtentKind::Compressed,
    }
}

impl Image for DmgImage {
    fn format(&self) -> &'static str {
        "dmg"
    }
    fn virtual_size(&self) -> u64 {
        self.size
    }
    fn backing(&self) -> Option<BackingReference> {
        None
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo::default())
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.file.clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.size)?;
        let mut found: Option<(ExtentKind, u64)> = None;
        loop {
            let done = found.map_or(0, |(_, n)| n);
            if done >= len {
                break;
            }
            let at = offset + done;
            let (kind, n) = match self.table.at(at) {
                Ok(chunk) => (extent_kind(chunk, at - chunk.start), chunk.end() - at),
                Err(next) => (ExtentKind::Zero { at: None }, next - at),
            };
            found = match found {
                None => Some((kind, n)),
                Some((first, sum)) if first == kind && !matches!(kind, ExtentKind::Data { .. }) => {
                    Some((first, sum + n))
                }
                Some(_) => break,
            };
        }
        let (kind, sum) = found.unwrap_or((ExtentKind::Zero { at: None }, len));
        Ok(Extent {
            len: sum.min(len),
            kind,
        })
    }
    fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size)?;
        if self.filling.as_ref().is_some_and(Filling::is_started) {
            return Err(Error::unsupported(
                "a dmg image can be read after it was filled and opened again",
            ));
        }
        while !buf.is_empty() {
            let found = self.table.at(offset);
            let end = found.map_or_else(|gap| gap, |chunk| chunk.end());
            let n = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buf.len());
            let (head, rest) = buf.split_at_mut(n);
            match found {
                Ok(chunk) => self.read_chunk(chunk, offset - chunk.start, head)?,
                Err(_) => head.fill(0),
            }
            offset += n as u64;
            buf = rest;
        }
        Ok(())
    }
    fn write_compressed(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let mut scratch = crate::image::Scratch::default();
        let packed = self.encode(buf, &mut scratch)?;
        let placement = self.place(offset, buf.len() as u64, packed.as_ref().map(|p| p.len() as u64))?;
        self.store(&placement, packed.as_deref().unwrap_or(buf))
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        self.filling.is_some().then_some(self)
    }
    fn flush(&self) -> Result<()> {
        match &self.filling {
            Some(filling) => filling.finish(self),
            None => self.file.flush(),
        }
    }
    fn check(&self, _repair: Repair, control: &Control) -> Result<CheckReport> {
        super::check::check(self, control)
    }
}
