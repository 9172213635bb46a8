//! Opening: which kind of file it is, its descriptor, its extents.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use super::descriptor::{
    Access, Descriptor, ExtentLine, ExtentType, LOOKED_AT, NO_PARENT, local_name, looks_like_descriptor,
    may_be_descriptor,
};
use super::esx::{COWD_MAGIC, SESPARSE_MAGIC};
use super::image::{Body, DescriptorPlace, Part, VmdkImage};
use super::layout::{MAGIC, MAX_DESCRIPTOR};
use super::open_extent::{open_esx, open_hosted, read_header};
use super::sparse::SparseExtent;
use super::stream::Stream;
use super::tables::read_inside;
use crate::gate::{Reference, Role};
use crate::storage::{read_padded, read_vec};
use crate::{Error, Limits, OpenEnv, Result, StorageRef};

/// `createType` of descriptors whose extents are all of types that are known.
const CREATE_TYPES: &[&str] = &[
    "custom",
    "monolithicFlat",
    "monolithicSparse",
    "seSparse",
    "streamOptimized",
    "twoGbMaxExtentFlat",
    "twoGbMaxExtentSparse",
    "vmfs",
    "vmfsEagerZeroedThick",
    "vmfsPreallocated",
    "vmfsSparse",
    "vmfsThin",
];

/// What the first bytes of a file say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Hosted,
    Cowd,
    SeSparse,
    Text,
}

pub(super) fn kind_of(head: &[u8]) -> Option<FileKind> {
    let (first, _) = U32::read_from_prefix(head).ok()?;
    match (first.get(), U64::read_from_prefix(head).map(|(m, _)| m.get())) {
        (MAGIC, _) => Some(FileKind::Hosted),
        (COWD_MAGIC, _) => Some(FileKind::Cowd),
        (_, Ok(SESPARSE_MAGIC)) => Some(FileKind::SeSparse),
        _ => looks_like_descriptor(head).then_some(FileKind::Text),
    }
}

pub(super) fn open(main: StorageRef, env: &OpenEnv<'_>) -> Result<VmdkImage> {
    let mut head = [0; LOOKED_AT];
    read_padded(main.as_ref(), 0, &mut head)?;
    match kind_of(&head) {
        Some(FileKind::Text) => open_text(main, env),
        Some(FileKind::Hosted) => open_hosted_main(main, env),
        Some(FileKind::Cowd | FileKind::SeSparse) => {
            let extent = open_esx(&main, env)?;
            alone(main, extent, None, env)
        }
        None if may_be_descriptor(&head) => open_text(main, env),
        None => Err(Error::not_this_format("neither a VMDK descriptor nor a sparse extent")),
    }
}

/// A file that is its one extent, with or without an embedded descriptor.
fn alone(
    main: StorageRef,
    mut extent: SparseExtent,
    descriptor: Option<(Descriptor, DescriptorPlace)>,
    env: &OpenEnv<'_>,
) -> Result<VmdkImage> {
    if descriptor.is_none() {
        extent.read_only = Some("an extent without a descriptor; write through the disk that it belongs to");
    }
    let (len, stream) = (extent.capacity(), Stream::for_fresh(&extent, env));
    let part = Part {
        start: 0,
        len: AtomicU64::new(len),
        word: String::new(),
        body: Body::Sparse {
            file: 0,
            extent: Box::new(extent),
        },
    };
    finish(vec![main], vec![part], descriptor, stream, env)
}

fn open_hosted_main(main: StorageRef, env: &OpenEnv<'_>) -> Result<VmdkImage> {
    let header = read_header(&main)?;
    let descriptor = match header.descriptor {
        None => None,
        Some((offset, len)) => {
            let len = usize::try_from(len).map_err(|_| Error::limit("a descriptor past the address space"))?;
            let raw = read_inside(main.as_ref(), offset, len, "embedded descriptor")?;
            let text = raw.iter().any(|b| *b != 0);
            let room = DescriptorPlace {
                offset,
                room: Some(len as u64),
            };
            text.then(|| embedded(&raw, env.limits)).transpose()?.map(|d| (d, room))
        }
    };
    if let Some((found, _)) = &descriptor
        && header.capacity == 0
        && !matches!(found.create_type.as_str(), "monolithicSparse" | "streamOptimized")
    {
        return from_descriptor(main, descriptor, env);
    }
    let extent = open_hosted(&main, header, env)?;
    alone(main, extent, descriptor, env)
}

/// A descriptor in its sectors: text, then NULs; some writers leave other text behind the first NUL, which nobody reads.
fn embedded(raw: &[u8], limits: &Limits) -> Result<Descriptor> {
    let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
    let descriptor = Descriptor::parse_embedded(raw.get(..end).unwrap_or_default(), limits)
        .map_err(|e| e.at("embedded descriptor"))?;
    if descriptor.extents.len() > 1 {
        return Err(Error::corrupt(
            "an embedded descriptor names more than the one extent it is in",
        ));
    }
    Ok(descriptor)
}

fn open_text(main: StorageRef, env: &OpenEnv<'_>) -> Result<VmdkImage> {
    let len = main.len()?;
    if len > MAX_DESCRIPTOR {
        return Err(Error::limit(format!(
            "a descriptor file of {len} bytes; at most 1 MiB is read"
        )));
    }
    let raw = read_vec(main.as_ref(), 0, usize::try_from(len).unwrap_or(usize::MAX))?;
    let descriptor = Descriptor::parse(&raw, env.limits)?;
    from_descriptor(main, Some((descriptor, DescriptorPlace { offset: 0, room: None })), env)
}

fn from_descriptor(
    main: StorageRef,
    descriptor: Option<(Descriptor, DescriptorPlace)>,
    env: &OpenEnv<'_>,
) -> Result<VmdkImage> {
    let Some((found, _)) = &descriptor else {
        return Err(Error::corrupt("no descriptor"));
    };
    if found.create_type.is_empty() {
        return Err(Error::corrupt("the descriptor has no createType"));
    }
    if !CREATE_TYPES.contains(&found.create_type.as_str()) {
        let kind = found.create_type.escape_debug();
        return Err(Error::unsupported(format!("Unsupported image type '{kind}'")));
    }
    if found.extents.is_empty() {
        return Err(Error::corrupt("the descriptor names no extent"));
    }
    let (mut storages, mut parts, mut start) = (vec![main], Vec::new(), 0u64);
    for line in &found.extents {
        let body = open_line(line, &mut storages, env)?;
        parts.push(Part {
            start,
            len: AtomicU64::new(line.len),
            word: line.word.clone(),
            body,
        });
        start = start
            .checked_add(line.len)
            .ok_or_else(|| Error::corrupt("the extents are longer than 2^64 bytes"))?;
    }
    finish(storages, parts, descriptor, None, env)
}

fn finish(
    storages: Vec<StorageRef>,
    parts: Vec<Part>,
    descriptor: Option<(Descriptor, DescriptorPlace)>,
    stream: Option<Stream>,
    env: &OpenEnv<'_>,
) -> Result<VmdkImage> {
    let size = parts.iter().map(Part::end).max().unwrap_or(0);
    if size > env.limits.virtual_size {
        let limit = env.limits.virtual_size;
        return Err(Error::limit(format!(
            "the virtual size {size} exceeds the limit of {limit} bytes"
        )));
    }
    if let Some((found, _)) = &descriptor
        && found.parent_cid == NO_PARENT
        && found.parent_hint.is_some()
        && !env.for_check
        && !env.metadata_only
    {
        return Err(
            Error::corrupt("parentFileNameHint names a layer below, parentCID says there is none").at("descriptor"),
        );
    }
    Ok(VmdkImage {
        storages,
        parts,
        descriptor: Mutex::new(descriptor),
        cid_changed: AtomicBool::new(false),
        stream: stream.map(Mutex::new),
        dirty_limit: env.limits.cache_bytes.max(8 << 20),
        limits: env.limits.clone(),
    })
}

fn open_line(line: &ExtentLine, storages: &mut Vec<StorageRef>, env: &OpenEnv<'_>) -> Result<Body> {
    if line.kind == ExtentType::Zero {
        return Ok(Body::Zero);
    }
    let main = storages
        .first()
        .cloned()
        .ok_or_else(|| Error::invalid("no main file"))?;
    let writable = env.writable && line.access == Access::ReadWrite;
    let name = local_name(&line.name);
    let reference = Reference {
        name: &name,
        format: None,
        role: Role::Extent,
        from: &main,
        writable,
    };
    let storage = env.gate.open(&reference)?.storage;
    if storage.identity().is_some() && storage.identity() == main.identity() {
        let name = line.name.escape_debug();
        return Err(Error::corrupt(format!("the extent \"{name}\" is the descriptor itself")).at("descriptor"));
    }
    let env = OpenEnv { writable, ..*env };
    let body = if line.kind == ExtentType::Flat {
        Body::Flat {
            file: storages.len(),
            storage: storage.clone(),
            offset: line.offset,
            writable,
        }
    } else {
        let mut extent = open_extent(line, &storage, &env).map_err(|e| e.at(storage.name()))?;
        if !writable && env.writable {
            extent.read_only = Some("the descriptor says RDONLY");
        }
        Body::Sparse {
            file: storages.len(),
            extent: Box::new(extent),
        }
    };
    storages.push(storage);
    Ok(body)
}

fn open_extent(line: &ExtentLine, storage: &StorageRef, env: &OpenEnv<'_>) -> Result<SparseExtent> {
    let extent = match line.kind {
        ExtentType::VmfsSparse | ExtentType::SeSparse => open_esx(storage, env)?,
        _ => open_hosted(storage, read_header(storage)?, env)?,
    };
    if extent.capacity() < line.len {
        let (has, wants) = (extent.capacity(), line.len);
        return Err(Error::corrupt(format!(
            "the extent has {has} bytes, the descriptor says {wants}"
        )));
    }
    Ok(extent)
}
