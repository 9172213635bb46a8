//! New images: an empty one is a valid image of zeroes, filled in rising order.
//!
//! Chunks go to the data fork from offset 0 on; the flush makes them stable, then writes property list and trailer behind them. While
//! an image is filled for the first time it has no trailer: there was nothing in it to lose.

use std::collections::BTreeMap;
use std::sync::Mutex;

use base64::Engine as _;
use crc32fast::Hasher;
use libdeflater::{CompressionLvl, Compressor};
use lzfse_rust::LzfseEncoder;
use zerocopy::IntoBytes;

use super::layout::{Codec, Kind, Koly, Mish, RawChecksum, RawChunk, SECTOR, kind};
use super::open::DmgImage;
use super::table::Table;
use crate::env::CreateSpec;
use crate::formats::common::{check_range, lock};
use crate::image::{BulkWrite, HostPlace, Placement, Scratch};
use crate::{CreateEnv, Error, Image, Result, StorageRef};

/// Guest bytes of a chunk.
const UNIT: u64 = 1 << 20;
const LEVEL: i32 = 6;
/// Bytes of the checksum that an encoded chunk carries behind itself until it is stored.
const TAIL: u64 = 4;

/// A chunk that has its place.
#[derive(Debug, Clone, Copy)]
struct Placed {
    len: u64,
    kind: u32,
    at: u64,
    stored: u64,
    /// CRC-32 of the guest bytes, once they were stored.
    crc32: Option<u32>,
}

/// What was placed so far.
pub(super) struct Filling {
    codec: Codec,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: BTreeMap<u64, Placed>,
    end: u64,
}

impl Filling {
    /// For an image without any data: nothing stands before its property list, where the data fork would be. The name of its block table
    /// says how chunks are to be compressed.
    pub(super) fn of(file: &StorageRef, koly: &Koly, table: &Table, size: u64) -> Result<Self> {
        let refused = || Error::unsupported("an existing dmg image cannot be changed").at(file.name());
        // Chunks alone do not tell: what is ignored where data are stored is damage, not a new image.
        let empty = koly.data_len.get() == 0
            && koly.xml_offset.get() == 0
            && table.chunks.iter().all(|c| matches!(c.kind, Kind::Zero | Kind::Ignore));
        if !empty || !size.is_multiple_of(SECTOR) {
            return Err(refused());
        }
        let len = usize::try_from(file.len()?.min(1 << 20)).unwrap_or(0);
        let bytes = crate::storage::read_vec(file.as_ref(), 0, len)?;
        let says = |word: &[u8]| bytes.windows(word.len()).any(|w| w == word);
        let codec = match (says(NAME_ZLIB.as_bytes()), says(NAME_LZFSE.as_bytes())) {
            (true, false) => Codec::Zlib,
            (false, true) => Codec::Lzfse,
            _ => return Err(refused()),
        };
        Ok(Self {
            codec,
            state: Mutex::default(),
        })
    }

    /// Whether anything was placed.
    pub(super) fn is_started(&self) -> bool {
        !lock(&self.state).chunks.is_empty()
    }

    /// Makes the chunks stable, then writes property list and trailer. May be called again after more chunks were placed. While none was,
    /// those of the new image are right.
    pub(super) fn finish(&self, image: &DmgImage) -> Result<()> {
        let state = lock(&self.state);
        image.file.flush()?;
        if state.chunks.is_empty() {
            return Ok(());
        }
        let (chunks, crc) = state.describe(image.size);
        let end = write_tail(&image.file, image.size, self.codec, &chunks, crc, state.end)?;
        image.file.set_len(end)?;
        image.file.flush()
    }
}

/// Names of the block table in a new image: they say how it is to be filled.
const NAME_ZLIB: &str = "whole disk (UDZO)";
const NAME_LZFSE: &str = "whole disk (ULFO)";

impl State {
    /// All chunks with ignored ones between them, and the CRC-32 of what is stored, where it is known: ignored chunks are not part of it.
    fn describe(&self, size: u64) -> (Vec<RawChunk>, Option<u32>) {
        let mut chunks = Vec::new();
        let mut hasher = Some(Hasher::new());
        let mut next = 0;
        for (start, placed) in &self.chunks {
            if *start > next {
                chunks.push(chunk(kind::IGNORE, next, start - next, 0, 0));
            }
            chunks.push(chunk(placed.kind, *start, placed.len, placed.at, placed.stored));
            hasher = hasher.zip(placed.crc32).map(|(mut h, crc)| {
                h.combine(&Hasher::new_with_initial_len(crc, placed.len));
                h
            });
            next = start + placed.len;
        }
        if size > next {
            chunks.push(chunk(kind::IGNORE, next, size - next, 0, 0));
        }
        chunks.push(chunk(kind::END, size, 0, self.end, 0));
        (chunks, hasher.map(Hasher::finalize))
    }
}

fn chunk(kind: u32, start: u64, len: u64, at: u64, stored: u64) -> RawChunk {
    RawChunk {
        kind: kind.into(),
        comment: 0.into(),
        sector: (start / SECTOR).into(),
        sectors: (len / SECTOR).into(),
        offset: at.into(),
        len: stored.into(),
    }
}

/// Writes property list and trailer behind `data_len` bytes of data; returns where the file ends.
fn write_tail(
    file: &StorageRef,
    size: u64,
    codec: Codec,
    chunks: &[RawChunk],
    crc: Option<u32>,
    data_len: u64,
) -> Result<u64> {
    let checksum = crc.map_or(RawChecksum::NONE, RawChecksum::of_crc32);
    let mish = Mish {
        magic: *b"mish",
        version: 1.into(),
        first_sector: 0.into(),
        sectors: (size / SECTOR).into(),
        data_offset: 0.into(),
        buffers: u32::try_from(UNIT / SECTOR + 8).unwrap_or(0).into(),
        descriptor: u32::MAX.into(),
        reserved: [0; 24],
        checksum,
        chunks: u32::try_from(chunks.len())
            .map_err(|_| Error::limit("the image has too many chunks"))?
            .into(),
    };
    let table: Vec<u8> = [mish.as_bytes()]
        .into_iter()
        .chain(chunks.iter().map(|c| c.as_bytes()))
        .flatten()
        .copied()
        .collect();
    let xml = plist(&table, codec);
    let master = crc.map_or(RawChecksum::NONE, |c| {
        RawChecksum::of_crc32(crc32fast::hash(&c.to_be_bytes()))
    });
    let koly = Koly {
        magic: *b"koly",
        version: 4.into(),
        header_size: 512.into(),
        flags: 1.into(),
        running_offset: 0.into(),
        data_offset: 0.into(),
        data_len: data_len.into(),
        resource_offset: 0.into(),
        resource_len: 0.into(),
        segment: 1.into(),
        segments: 1.into(),
        segment_id: [0; 16],
        data_checksum: RawChecksum::NONE,
        xml_offset: data_len.into(),
        xml_len: (xml.len() as u64).into(),
        reserved_1: [0; 120],
        master_checksum: master,
        variant: 1.into(),
        sectors: (size / SECTOR).into(),
        reserved_2: [0; 12],
    };
    file.write_at(data_len, xml.as_bytes())?;
    file.flush()?;
    let at = data_len + xml.len() as u64;
    file.write_at(at, koly.as_bytes())?;
    Ok(at + koly.as_bytes().len() as u64)
}

/// The property list with one block table.
fn plist(table: &[u8], codec: Codec) -> String {
    let name = if codec == Codec::Lzfse { NAME_LZFSE } else { NAME_ZLIB };
    let data = base64::engine::general_purpose::STANDARD.encode(table);
    let lines: Vec<&str> = data
        .as_bytes()
        .chunks(76)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\">\n<dict>\n<key>resource-fork</key>\n<dict>\n<key>blkx</key>\n<array>\n<dict>\n\
         <key>Attributes</key>\n<string>0x0050</string>\n<key>CFName</key>\n<string>{name}</string>\n\
         <key>Data</key>\n<data>\n{}\n</data>\n<key>ID</key>\n<string>0</string>\n\
         <key>Name</key>\n<string>{name}</string>\n</dict>\n</array>\n</dict>\n</dict>\n</plist>\n",
        lines.join("\n")
    )
}

/// Writes an image of zeroes that says how it is to be filled.
pub(super) fn create(storage: &StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    if spec.backing.is_some() {
        return Err(Error::unsupported("format 'dmg' cannot have a backing file"));
    }
    let size = spec
        .virtual_size
        .checked_next_multiple_of(SECTOR)
        .filter(|s| *s <= env.limits.virtual_size)
        .ok_or_else(|| Error::invalid(format!("the virtual size {} is too large", spec.virtual_size)))?;
    let codec = match spec.options.get("subformat") {
        Some("ULFO") => Codec::Lzfse,
        _ => Codec::Zlib,
    };
    storage.set_len(0)?;
    let (chunks, crc) = State::default().describe(size);
    write_tail(storage, size, codec, &chunks, crc, 0)?;
    storage.flush()
}

fn pack(codec: Codec, data: &[u8], scratch: &mut Scratch) -> Result<Vec<u8>> {
    if codec == Codec::Lzfse {
        let encoder: &mut LzfseEncoder = scratch.get(|| Ok(LzfseEncoder::default()))?;
        let mut packed = Vec::new();
        encoder
            .encode_bytes(data, &mut packed)
            .map_err(|e| Error::io("cannot compress a chunk", e))?;
        return Ok(packed);
    }
    let wanted = scratch.level().unwrap_or(LEVEL);
    let level = || CompressionLvl::new(wanted).map_err(|_| Error::invalid(format!("no compression level {wanted}")));
    let compressor: &mut Compressor = scratch.get(|| Ok(Compressor::new(level()?)))?;
    let mut packed = vec![0; compressor.zlib_compress_bound(data.len())];
    let len = compressor
        .zlib_compress(data, &mut packed)
        .map_err(|_| Error::invalid("the chunk does not fit its buffer"))?;
    packed.truncate(len);
    Ok(packed)
}

impl BulkWrite for DmgImage {
    fn unit(&self) -> u64 {
        UNIT
    }
    fn encodes(&self) -> bool {
        true
    }
    /// The compressed bytes with the CRC-32 of the plain ones behind them, which [`store`](Self::store) takes off.
    fn encode(&self, data: &[u8], scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        let Some(filling) = &self.filling else {
            return Err(self.cannot("write"));
        };
        let mut packed = pack(filling.codec, data, scratch)?;
        if packed.len() >= data.len() {
            return Ok(None);
        }
        packed.extend(crc32fast::hash(data).to_be_bytes());
        Ok(Some(packed))
    }
    fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement> {
        let Some(filling) = &self.filling else {
            return Err(self.cannot("write"));
        };
        check_range(offset, len, self.size)?;
        if !offset.is_multiple_of(UNIT) || !len.is_multiple_of(SECTOR) || len == 0 {
            return Err(Error::invalid(format!(
                "{len} bytes at {offset:#x} are not whole chunks"
            )));
        }
        let mut state = lock(&filling.state);
        if state
            .chunks
            .last_key_value()
            .is_some_and(|(start, c)| start + c.len > offset)
        {
            return Err(Error::unsupported("a dmg image is filled from its start to its end"));
        }
        let stored = match encoded {
            Some(bytes) => bytes
                .checked_sub(TAIL)
                .ok_or_else(|| Error::invalid("an encoded chunk carries its checksum"))?,
            None => len,
        };
        let at = state.end;
        state.end = at
            .checked_add(stored)
            .ok_or_else(|| Error::limit("the file would become too large"))?;
        let kind = match (encoded, filling.codec) {
            (None, _) => kind::RAW,
            (Some(_), Codec::Lzfse) => kind::LZFSE,
            (Some(_), _) => kind::ZLIB,
        };
        let placed = Placed {
            len,
            kind,
            at,
            stored,
            crc32: None,
        };
        state.chunks.insert(offset, placed);
        Ok(Placement {
            guest: offset,
            at: HostPlace { file: 0, offset: at },
            len: encoded.unwrap_or(len),
            encoded: encoded.is_some(),
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        let Some(filling) = &self.filling else {
            return Err(self.cannot("write"));
        };
        let (data, crc) = match bytes.split_last_chunk::<4>() {
            Some((data, crc)) if placement.encoded => (data, u32::from_be_bytes(*crc)),
            _ => (bytes, crc32fast::hash(bytes)),
        };
        self.file.write_at(placement.at.offset, data)?;
        if let Some(placed) = lock(&filling.state).chunks.get_mut(&placement.guest) {
            placed.crc32 = Some(crc);
        }
        Ok(())
    }
}
