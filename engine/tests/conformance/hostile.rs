//! No bytes make a driver panic, hang or allocate without bound: cut and changed images, and noise.

use std::sync::Arc;

use proptest::prelude::*;
use vdisk_engine::image::Repair;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Chain, Control, Limits, OpenEnv};

use crate::support::{Files, Passphrase, drivers, node};

/// Uses an image as far as it lets itself be used; what comes back does not matter, that it comes back does.
fn exercise(format: &str, bytes: Vec<u8>, files: &Files) {
    let limits = Limits::untrusted();
    let node = |b: Vec<u8>| node(Arc::new(MemoryStorage::new("hostile", b)), format);
    let env = OpenEnv::closed(&limits).with_gate(files).with_secrets(&Passphrase);
    if let Ok(chain) = Chain::open(node(bytes.clone()), &env) {
        let size = chain.virtual_size();
        let _ = chain.top().info();
        let _ = chain.top().check(Repair::No, &Control::default());
        let mut offset = 0;
        for _ in 0..200 {
            if offset >= size {
                break;
            }
            let Ok(extent) = chain.extent(offset, size - offset) else {
                break;
            };
            let mut buf = vec![0; extent.len.min(65_536) as usize];
            let _ = chain.read(offset, &mut buf);
            offset += extent.len;
        }
    }
    if let Ok(chain) = Chain::open(node(bytes), &env.writable()) {
        let _ = chain.write(0, &[1; 512]);
        let _ = chain.top().close();
    }
}

fn sample(format: &str) -> (Files, Vec<u8>) {
    let files = Files::default();
    files.create("disk", format, 2 << 20, None).unwrap();
    let chain = files.open("disk", format, true).unwrap();
    chain.write(65_536, &vec![5; 200_000 / 512 * 512]).unwrap();
    chain.top().close().unwrap();
    drop(chain);
    let bytes = files.get("disk").contents();
    (files, bytes)
}

#[test]
fn an_image_cut_anywhere_never_panics() {
    for driver in drivers(|d| d.capabilities().create && d.capabilities().write) {
        let (files, bytes) = sample(driver.name());
        let ends = (0..=1024).step_by(61).chain((1024..bytes.len()).step_by(4096 * 23));
        for end in ends.filter(|e| *e < bytes.len()) {
            exercise(driver.name(), bytes[..end].to_vec(), &files);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn an_image_changed_anywhere_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), prop::sample::select(vec![0u8, 1, 2, 0x7f, 0x80, 0xfe, 0xff])), 1..8)
    ) {
        for driver in drivers(|d| d.capabilities().create && d.capabilities().write) {
            let (files, mut bytes) = sample(driver.name());
            for (index, in_header, value) in &changes {
                let range = if *in_header { bytes.len().min(1024) } else { bytes.len() };
                let at = index.index(range);
                bytes[at] = *value;
            }
            exercise(driver.name(), bytes, &files);
        }
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..5000)) {
        for driver in drivers(|_| true) {
            exercise(driver.name(), noise.clone(), &Files::default());
        }
    }
}
