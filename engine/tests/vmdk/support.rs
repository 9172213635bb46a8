//! Files in a temporary folder, and the gate that opens siblings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use vdisk_engine::env::{BackingReference, CreateSpec, NoSecrets};
use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Chain, CreateEnv, Limits, OpenEnv, Result, StorageRef, formats};

/// The five subformats that can be created.
pub const SUBFORMATS: [&str; 5] = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
];

/// Opens what lies beside the file that names it, as QEMU does.
pub struct Siblings;

fn beside(reference: &Reference<'_>) -> PathBuf {
    let folder = Path::new(reference.from.name()).parent().unwrap();
    folder.join(reference.name)
}

impl Gate for Siblings {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let options = if reference.writable {
            FileOptions::write()
        } else {
            FileOptions::read()
        };
        let storage = Arc::new(FileStorage::open(&beside(reference), options)?);
        Ok(Node::new(storage, reference.format.unwrap_or("raw")))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Ok(Arc::new(FileStorage::create_new(
            &beside(reference),
            FileOptions::write(),
        )?))
    }
}

pub fn options(pairs: &[(&str, &str)]) -> Options {
    pairs
        .iter()
        .fold(Options::new(), |o, (name, value)| o.with(*name, *value))
}

pub fn create(path: &Path, size: u64, options: Options, backing: Option<&str>) -> Result<()> {
    let storage = Arc::new(FileStorage::create_new(path, FileOptions::write())?);
    let limits = Limits::default();
    let env = CreateEnv {
        gate: &Siblings,
        limits: &limits,
        secrets: &NoSecrets,
        random: &|bytes| bytes.fill(0x5a),
        now: 0,
    };
    let backing = backing.map(|name| BackingReference {
        name: name.into(),
        format: Some("vmdk".into()),
    });
    let driver = formats::by_name("vmdk")?;
    options.check(driver.create_options(), "vmdk")?;
    driver.create(
        storage,
        &CreateSpec {
            virtual_size: size,
            options,
            backing,
        },
        &env,
    )
}

pub fn try_open(path: &Path, writable: bool) -> Result<Chain> {
    let options = if writable {
        FileOptions::write()
    } else {
        FileOptions::read()
    };
    let storage = Arc::new(FileStorage::open(path, options)?);
    let limits = Limits::default();
    let mut env = OpenEnv::closed(&limits).with_gate(&Siblings);
    env.writable = writable;
    Chain::open(Node::new(storage, "vmdk"), &env)
}

pub fn open(path: &Path, writable: bool) -> Chain {
    try_open(path, writable).unwrap()
}

pub fn contents(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0xaa; chain.virtual_size() as usize];
    chain.read(0, &mut bytes).unwrap();
    bytes
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The manifest's digest of huge disks: offset and data of every 64 KiB block that is not all zero.
pub fn nonzero_digest(chain: &Chain) -> String {
    let (mut hash, mut buf) = (Sha256::new(), vec![0; 65536]);
    let (mut at, size) = (0, chain.virtual_size());
    while at < size {
        let extent = chain.extent(at, size - at).unwrap();
        if extent.is_zero() && extent.len > 65536 {
            at = (at + extent.len) / 65536 * 65536;
            continue;
        }
        let len = (size - at).min(65536) as usize;
        chain.read(at, &mut buf[..len]).unwrap();
        if buf[..len].iter().any(|b| *b != 0) {
            hash.update(at.to_le_bytes());
            hash.update(&buf[..len]);
        }
        at += len as u64;
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that look like data: compressible, no two grains alike.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|i| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            if i % 4 == 0 {
                (state >> 56) as u8
            } else {
                (i / 512) as u8
            }
        })
        .collect()
}
