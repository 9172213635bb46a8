//! A small valid image of every format: the byte 3 in the first 128 KiB, zeroes behind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use vdisk_engine::env::CreateSpec;
use vdisk_engine::gate::Node;
use vdisk_engine::ops::{self, convert::CopyOptions};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Chain, Control, Limits, OpenEnv};

use crate::inputs::{Passphrase, create_env};

/// Bytes that a guest sees in a sample.
pub const GUEST: [u8; 2] = [0, 3];
const SIZE: usize = 1 << 20;

/// The sample of a format; made once.
pub fn sample(format: &'static str) -> Vec<u8> {
    static MADE: Mutex<BTreeMap<&str, Vec<u8>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(format).or_insert_with(|| sample_with(format, &[])).clone()
}

/// The sample of a format with create options.
pub fn sample_with(format: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let mut guest = vec![0; SIZE];
    guest[..128 << 10].fill(3);
    let limits = Limits::default();
    let raw = Node::new(Arc::new(MemoryStorage::new("source", guest)), "raw");
    let source = Chain::open(raw, &OpenEnv::closed(&limits)).unwrap();
    let storage = Arc::new(MemoryStorage::empty());
    let keyed = format == "luks";
    let mut create = match keyed {
        true => Options::new().with("key-secret", "key").with("iterations", "1000"),
        false => Options::new(),
    };
    options.iter().for_each(|(name, value)| create.set(*name, *value));
    let env = create_env(&limits);
    let spec = CreateSpec {
        virtual_size: SIZE as u64,
        options: create,
        backing: None,
    };
    ops::create::create(storage.clone(), format, &spec, &env).unwrap();
    let env = OpenEnv::closed(&limits).with_secrets(&Passphrase).writable();
    let mut node = Node::new(storage.clone(), format);
    if keyed {
        node = node.with_options(Options::new().with("key-secret", "key"));
    }
    let target = Chain::open(node, &env).unwrap();
    ops::convert::convert(&source, target.top(), &CopyOptions::default(), &Control::default()).unwrap();
    target.top().close().unwrap();
    drop(target);
    storage.contents()
}
