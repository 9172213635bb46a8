//! Random damage: whatever it is, there is an answer, and never other data for the right key.

use std::sync::Arc;

use proptest::prelude::*;
use vdisk_engine::crypto::luks::{KeyWork, LuksHeader, VolumeLayout};
use vdisk_engine::image::{NothingBelow, Repair};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, Limits, StorageRef};

use super::support::{create_on, metadata, open_on, pattern};

const SIZE: u64 = 8192;

fn volume(version: &str) -> Vec<u8> {
    let memory = Arc::new(MemoryStorage::empty());
    let options = Options::new()
        .with("version", version)
        .with("iterations", "1000")
        .with("cipher-alg", "aes-128");
    let options = if version == "2" {
        options.with("pbkdf", "pbkdf2")
    } else {
        options
    };
    create_on(memory.clone(), SIZE, options, "letmein").unwrap();
    let image = open_on(memory.clone(), b"letmein").unwrap();
    image.write(0, &pattern(SIZE as usize, 1), &NothingBelow).unwrap();
    memory.contents()
}

fn layout(storage: StorageRef, limits: &Limits) -> Option<VolumeLayout> {
    LuksHeader::read(storage, &KeyWork::within(limits)).ok()?.layout().ok()
}

/// Shows, checks and reads. Where the header still says the same about the data, the right key must give the same data.
fn survive(good: &[u8], bytes: Vec<u8>) {
    let limits = Limits {
        kdf_iterations: 20_000,
        kdf_memory: 4 << 20,
        ..Limits::default()
    };
    let whole = layout(Arc::new(MemoryStorage::new("good", good.to_vec())), &limits);
    let storage = Arc::new(MemoryStorage::new("mutated", bytes));
    if let Ok(image) = metadata(storage.clone(), &limits) {
        assert!(image.info().unwrap().encrypted);
        assert!(image.check(Repair::No, &Control::default()).is_ok());
    }
    let Ok(image) = open_on(storage.clone(), b"letmein") else {
        return;
    };
    let mut data = vec![0; image.virtual_size().min(SIZE) as usize];
    image.read(0, &mut data).unwrap();
    if layout(storage, &limits) == whole {
        assert!(data == pattern(SIZE as usize, 1));
    }
}

fn changes(header: usize) -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..header, any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn luks1_headers_with_random_bytes(changes in changes(592)) {
        let good = volume("1");
        let mut bytes = good.clone();
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        survive(&good, bytes);
    }

    #[test]
    fn luks2_json_with_random_bytes(changes in changes(900), at in prop::sample::select(vec![0, 4096])) {
        let good = volume("2");
        let mut bytes = good.clone();
        for copy in [0, 0x4000] {
            changes.iter().for_each(|(offset, byte)| bytes[copy + at + *offset] = *byte);
            let mut header = bytes[copy..copy + 0x4000].to_vec();
            header[448..512].fill(0);
            use sha2::Digest;
            bytes[copy + 448..copy + 480].copy_from_slice(&sha2::Sha256::digest(&header));
        }
        survive(&good, bytes);
    }
}
