//! Opening: everything that comes from the file is checked before it is used or sizes anything.

use std::sync::{Arc, Mutex, RwLock};

use super::cache::L2Cache;
use super::codec::Codec;
use super::crypt::Encryption;
use super::host::Host;
use super::image::{Qcow2, Shared};
use super::layout::extensions::text;
use super::layout::header::{V2_LEN, unknown_features};
use super::layout::refcounts::RefcountWidth;
use super::layout::{Autoclear, Extensions, Geometry, Header, Incompatible, words_from_be};
use super::metadata::MetadataMap;
use super::refcounts::Refcounts;
use super::snapshots::{self, Snapshot, SnapshotTable};
use super::writer::Writer;
use crate::env::BackingReference;
use crate::gate::{Reference, Role};
use crate::options::Options;
use crate::storage::read_padded;
use crate::{Error, OpenEnv, Result, Storage, StorageRef};

/// No virtual size may need more: QEMU's bound.
const MOST_L1_ENTRIES: u64 = i32::MAX as u64;
/// Bytes that are read first: header, extensions and backing name of nearly every image.
const FIRST_READ: u64 = 4096;

/// The first cluster: header, extensions, backing name.
pub(super) struct Preamble {
    pub header: Header,
    pub extensions: Extensions,
    pub backing: Option<BackingReference>,
}

impl Preamble {
    /// Reads and checks what is used of the first cluster.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let len = storage.len()?;
        let mut bytes = vec![0; len.min(FIRST_READ) as usize];
        storage.read_at(0, &mut bytes)?;
        let used = Self::used_len(&bytes);
        if used > FIRST_READ {
            bytes.resize(len.min(used) as usize, 0);
            storage.read_at(0, &mut bytes)?;
        }
        Self::parse(&bytes)
    }

    /// Bytes of the first cluster that may be in use: all, or up to the end of the backing file name, which comes last.
    fn used_len(start: &[u8]) -> u64 {
        let cluster = 1 << super::layout::be32(start, 20).unwrap_or(9).clamp(9, 21);
        match (super::layout::be64(start, 8), super::layout::be32(start, 16)) {
            (Ok(at), Ok(len)) if at != 0 => at.saturating_add(u64::from(len)).min(cluster),
            _ => cluster,
        }
    }

    fn parse(cluster: &[u8]) -> Result<Self> {
        let header = Header::parse(cluster)?;
        let size = 1usize << header.cluster_bits;
        let start = (header.header_length as usize).max(V2_LEN);
        let (end, open_ended) = match header.backing_offset {
            0 => (size, true),
            at => (usize::try_from(at).unwrap_or(size).min(size), false),
        };
        let area = cluster.get(start..end.min(cluster.len())).unwrap_or_default();
        let extensions = Extensions::parse(area, open_ended)?;
        let unknown = header.incompatible.unknown();
        if unknown != 0 {
            return Err(unknown_features(unknown, |bit| extensions.feature_name(0, bit)));
        }
        let backing = backing_name(cluster, &header)?.map(|name| BackingReference {
            name,
            format: extensions.backing_format().map(str::to_owned),
        });
        Ok(Self {
            header,
            extensions,
            backing,
        })
    }
}

fn backing_name(cluster: &[u8], header: &Header) -> Result<Option<String>> {
    if header.backing_offset == 0 {
        return Ok(None);
    }
    let start = usize::try_from(header.backing_offset).unwrap_or(usize::MAX);
    let bytes = cluster.get(start..).and_then(|b| b.get(..header.backing_size as usize));
    let bytes = bytes.ok_or_else(|| Error::corrupt("the file ends inside the backing file name"))?;
    text("backing file name", bytes).map(Some)
}

/// Opens an image.
pub(super) fn open(storage: StorageRef, options: &Options, env: &OpenEnv<'_>) -> Result<Qcow2> {
    let Preamble {
        header,
        extensions,
        backing,
    } = Preamble::read(storage.as_ref())?;
    let encryption = Encryption::open(&storage, &header, &extensions, options, env)?.map(Arc::new);
    refuse_damaged(&header, env)?;
    let data = open_data_file(&storage, &header, &extensions, env)?;
    let geometry = Geometry {
        cluster_bits: header.cluster_bits,
        extended_l2: header.incompatible.has(Incompatible::EXTENDED_L2),
        compression: header.compression,
        data_file: header.incompatible.has(Incompatible::DATA_FILE),
    };
    let file_len = storage.len()?;
    let l1 = read_l1(storage.as_ref(), &header, &geometry, env)?;
    let SnapshotTable {
        list: snapshots,
        damage,
    } = snapshots::read(storage.as_ref(), &header)?;
    if let Some(damage) = damage.as_ref().filter(|_| env.writable && !env.for_check) {
        return Err(damage.refusal());
    }
    // Who only reads need not know of blocks that count nothing.
    let covered = if env.writable || env.for_check {
        u64::MAX
    } else {
        file_len
    };
    let reftable = read_reftable(storage.as_ref(), &header, &geometry, covered)?;
    let metadata = build_map(&geometry, &header, &l1, &reftable, &snapshots, &extensions, file_len);
    let metadata = Arc::new(RwLock::new(metadata));
    let host = Arc::new(Host::new(storage, data));
    let writer = if env.writable {
        let cache = env.limits.cache_bytes / 4;
        let refcounts = Refcounts::new(host.clone(), metadata.clone(), geometry, &header, reftable, cache)?;
        Some(Mutex::new(Writer::new(refcounts)))
    } else {
        None
    };
    let mut image = Qcow2 {
        geometry,
        codec: Codec::new(geometry.compression),
        encryption,
        limits: env.limits.clone(),
        over_base: env.over_base,
        writer,
        metadata,
        host,
        unpacked: Mutex::default(),
        notices: damage.iter().map(|d| d.text().to_owned()).collect(),
        shared: RwLock::new(Shared {
            l2: L2Cache::new(env.limits.cache_bytes / 2, geometry.cluster_size()),
            header,
            extensions,
            backing,
            snapshots,
            snapshot_damage: damage,
            l1,
        }),
    };
    if env.writable && !env.for_check {
        image.notices = image.repair_dirty()?;
    }
    Ok(image)
}

fn refuse_damaged(header: &Header, env: &OpenEnv<'_>) -> Result<()> {
    if env.writable && !env.for_check && header.incompatible.has(Incompatible::CORRUPT) {
        return Err(Error::corrupt(
            "the image is marked corrupt; it can be read, and written after a repair",
        ));
    }
    Ok(())
}

fn open_data_file(
    storage: &StorageRef,
    header: &Header,
    extensions: &Extensions,
    env: &OpenEnv<'_>,
) -> Result<Option<StorageRef>> {
    let raw = header.autoclear & Autoclear::RAW_DATA_FILE != 0;
    if !header.incompatible.has(Incompatible::DATA_FILE) {
        if raw {
            return Err(Error::corrupt(
                "the raw data file bit is set, but there is no external data file",
            ));
        }
        return Ok(None);
    }
    let name = extensions.data_file();
    if env.metadata_only {
        return Ok(None);
    }
    let opened = env.gate.open(&Reference {
        name: name.unwrap_or_default(),
        format: Some("raw"),
        role: Role::DataFile,
        from: storage,
        writable: env.writable,
    });
    // Without a name the gate must know which file is meant.
    let node = match name {
        Some(_) => opened?,
        None => opened.map_err(|_| Error::corrupt("the image has an external data file, but does not name it"))?,
    };
    let same = node.storage.identity().is_some() && node.storage.identity() == storage.identity();
    if same {
        return Err(Error::corrupt("the image names itself as its data file"));
    }
    Ok(Some(node.storage))
}

fn read_l1(storage: &dyn Storage, header: &Header, geometry: &Geometry, env: &OpenEnv<'_>) -> Result<Vec<u64>> {
    let bytes = u64::from(header.l1_size) * 8;
    let needed = geometry.l1_entries(header.virtual_size);
    if needed > MOST_L1_ENTRIES {
        return Err(Error::corrupt("image is too big"));
    }
    if u64::from(header.l1_size) < needed {
        return Err(Error::corrupt("L1 table is too small"));
    }
    read_table(storage, "L1 table", header.l1_offset, bytes, env.limits.table_bytes)
}

/// Reads a table of words that must lie wholly in the file.
pub(super) fn read_table(storage: &dyn Storage, what: &str, at: u64, bytes: u64, most: u64) -> Result<Vec<u64>> {
    if bytes == 0 {
        return Ok(Vec::new());
    }
    let end = storage.len()?;
    if at.checked_add(bytes).is_none_or(|e| e > end) {
        return Err(Error::corrupt(format!(
            "the {what} of {bytes} bytes at {at:#x} ends past the end of the file at {end:#x}"
        )));
    }
    if bytes > most {
        return Err(Error::limit(format!(
            "the {what} of {bytes} bytes exceeds the limit of {most}"
        )));
    }
    let len = usize::try_from(bytes).map_err(|_| Error::limit(format!("the {what} is too large")))?;
    let mut buf = vec![0; len];
    storage.read_at(at, &mut buf)?;
    Ok(words_from_be(&buf))
}

/// Reads the refcount table, at most 8 MiB, as far as it is about the first `covered` bytes of the file. What lies past the end of the file
/// counts as empty: `check` tells.
pub(super) fn read_reftable(
    storage: &dyn Storage,
    header: &Header,
    geometry: &Geometry,
    covered: u64,
) -> Result<Vec<u64>> {
    let per_block = RefcountWidth::new(header.refcount_order).count(geometry.cluster_size());
    let needed = geometry.clusters(covered).div_ceil(per_block).saturating_mul(8);
    let bytes = u64::from(header.reftable_clusters) << header.cluster_bits;
    let mut buf = vec![0; bytes.min(needed) as usize];
    read_padded(storage, header.reftable_offset, &mut buf)?;
    Ok(words_from_be(&buf))
}

pub(super) fn build_map(
    geometry: &Geometry,
    header: &Header,
    l1: &[u64],
    reftable: &[u64],
    snapshots: &[Snapshot],
    extensions: &Extensions,
    file_len: u64,
) -> MetadataMap {
    let mut map = MetadataMap::build(geometry, header, l1, reftable, file_len);
    if !snapshots.is_empty() {
        map.add(
            header.snapshots_offset,
            snapshots.iter().map(Snapshot::stored_len).sum(),
        );
    }
    for snapshot in snapshots.iter().filter(|s| s.check(geometry).is_ok()) {
        map.add(snapshot.l1_offset, snapshot.l1_bytes());
    }
    if let Some(bitmaps) = extensions.bitmaps()
        && header.autoclear & Autoclear::BITMAPS != 0
        && bitmaps.directory_offset.saturating_add(bitmaps.directory_size) <= file_len
    {
        map.add(bitmaps.directory_offset, bitmaps.directory_size);
    }
    if let Some((at, len)) = extensions.crypto()
        && at.saturating_add(len) <= file_len
    {
        map.add(at, len);
    }
    map.complete()
}
