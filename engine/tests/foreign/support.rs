//! Files of bytes, and what must hold of an image in one.

use std::sync::Arc;

use e2e::tools::{arg, have, ok};
use vdisk_engine::gate::Node;
use vdisk_engine::image::Repair;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Chain, Control, Limits, OpenEnv, Result, formats};

/// A file that grows where it is written.
#[derive(Default, Clone)]
pub struct File(pub Vec<u8>);

impl File {
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0.resize(self.0.len().max(at + bytes.len()), 0);
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
    pub fn be32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }
    pub fn be64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_be_bytes());
    }
    pub fn le32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }
    pub fn le64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
    /// Makes the file this long.
    pub fn end(&mut self, len: usize) {
        self.0.resize(len, 0);
    }
}

/// Bytes that differ from place to place and with the seed, none of them zero.
pub fn noise(len: usize, seed: u8) -> Vec<u8> {
    // A period that no unit of any format divides.
    let period: Vec<u8> = (0..7919usize)
        .map(|at| ((at * 7 + at / 253 + usize::from(seed)) % 255) as u8 + 1)
        .collect();
    let mut bytes = period.repeat(len.div_ceil(period.len()));
    bytes.truncate(len);
    bytes
}

pub fn open(format: &str, bytes: &[u8], write: bool) -> Result<(Chain, Arc<MemoryStorage>)> {
    let storage = Arc::new(MemoryStorage::new("foreign", bytes.to_vec()));
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits);
    let env = if write { env.writable() } else { env };
    Ok((Chain::open(Node::new(storage.clone(), format), &env)?, storage))
}

/// All that the guest sees.
pub fn content(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0xee; chain.virtual_size() as usize];
    chain.read(0, &mut bytes).unwrap();
    bytes
}

fn same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    if found == expected {
        return;
    }
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: byte {at:#x} is {:#x}, expected {:#x}", found[at], expected[at]);
    }
}

/// The file is recognised, shows this, and is sound.
pub fn shows(format: &str, bytes: &[u8], expected: &[u8]) {
    let storage = MemoryStorage::new("foreign", bytes.to_vec());
    assert_eq!(formats::detect(&storage).unwrap()[0].0.name(), format);
    let (chain, _) = open(format, bytes, false).unwrap();
    same(&content(&chain), expected, format);
    if formats::by_name(format).unwrap().capabilities().check {
        let report = chain.top().check(Repair::No, &Control::default()).unwrap();
        assert_eq!(
            (report.corruptions, report.check_errors),
            (0, 0),
            "{:?}",
            report.messages
        );
    }
}

/// It can be changed in several places, and shows the change and nothing else, sound as before. Gives the file.
pub fn takes_writes(format: &str, bytes: &[u8], expected: &[u8]) -> Vec<u8> {
    let (chain, storage) = open(format, bytes, true).unwrap();
    let mut model = expected.to_vec();
    for (number, at) in [0, model.len() / 3, model.len() - 700].into_iter().enumerate() {
        let at = at / 512 * 512;
        let len = (model.len() - at).min(1100);
        let data = noise(len, 100 + number as u8);
        chain.write(at as u64, &data).unwrap();
        model[at..at + len].copy_from_slice(&data);
    }
    chain.top().close().unwrap();
    drop(chain);
    let after = storage.contents();
    shows(format, &after, &model);
    after
}

/// qemu-img sees the same in the file.
pub fn qemu_agrees(format: &str, bytes: &[u8], expected: &[u8]) {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("image"), folder.path().join("raw"));
    std::fs::write(&from, bytes).unwrap();
    ok(
        "qemu-img",
        &["convert", "-f", format, "-O", "raw", arg(&from), arg(&to)],
    );
    same(&std::fs::read(&to).unwrap(), expected, "qemu-img");
}
