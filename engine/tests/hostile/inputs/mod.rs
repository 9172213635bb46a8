//! What a fuzzer's bytes mean: shared by the fuzz targets (`fuzz/`) and by the test that answers their kept corpora again.
//!
//! An image is given *packed*: its length and the sectors that are not zero, followed by what to do with it. Small inputs so reach every
//! place of large files. Checksums are put right before the image is looked at, unless the input says otherwise.

mod build;
mod bundle;
mod changes;
mod deflate;
mod look;
mod nbd;
pub mod packed;
pub mod seal;
mod sparse;

use std::sync::Arc;

use vdisk_engine::env::Secrets;
use vdisk_engine::gate::Node;
use vdisk_engine::options::Options;
use vdisk_engine::{Limits, Result, StorageRef, formats};

pub use build::{create_env, dmg, new_luks};
pub use look::has_data_file;
pub use sparse::SparseStorage;

/// A target of the fuzzer.
pub struct Target {
    /// Its name, which is also that of its folder of inputs.
    pub name: &'static str,
    /// Answers one input; panics where the answer is wrong.
    pub run: fn(&[u8]),
}

macro_rules! images {
    ($($name:literal)*) => {
        &[
            $(Target { name: $name, run: |data| image($name, data) },)*
            Target { name: "vmdk_descriptor", run: |text| alone("vmdk", SparseStorage::of(text)) },
            Target { name: "luks2_json", run: |text| alone("luks", build::luks2(text)) },
            Target { name: "vhdx_log", run: build::vhdx_log },
            Target { name: "dmg_plist", run: |xml| alone("dmg", build::dmg_with_plist(xml)) },
            Target { name: "dmg_tables", run: |data| alone("dmg", build::dmg_with_tables(data)) },
            Target { name: "parallels_bundle", run: bundle::look },
            Target { name: "deflate", run: deflate::round_trip },
            Target { name: "nbd", run: nbd::serve },
            Target { name: "detect", run: detect },
            Target { name: "options", run: options },
        ]
    };
}

/// All of them.
pub const TARGETS: &[Target] = images! {
    "bochs" "cloop" "cow" "dmg" "iso" "luks" "parallels" "qcow" "qcow2" "qed" "raw" "vdi" "vhdx" "vmdk" "vpc"
};

/// Answers an input of the target of this name.
pub fn run(name: &str, data: &[u8]) {
    match TARGETS.iter().find(|t| t.name == name) {
        Some(target) => (target.run)(data),
        None => panic!("no target '{name}'"),
    }
}

/// The passphrase of every encrypted input.
pub struct Passphrase;

impl Secrets for Passphrase {
    fn get(&self, _id: &str) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        Ok(b"open sesame".to_vec().into())
    }
}

/// Small, so that what ignores them is noticed.
pub fn limits() -> Limits {
    Limits {
        chain_depth: 4,
        table_bytes: 4 << 20,
        bitmap_bytes: 4 << 20,
        virtual_size: 64 << 40,
        cache_bytes: 1 << 20,
        decompressed_bytes: 2 << 20,
        kdf_iterations: 1000,
        kdf_memory: 1 << 20,
        kdf_derivations: 16,
        files: 8,
    }
}

fn node(storage: StorageRef, format: &str) -> Node {
    let node = Node::new(storage, format).without_backing();
    match format {
        "luks" => node.with_options(Options::new().with("key-secret", "key")),
        _ => node,
    }
}

/// A packed image: looked at, then changed.
fn image(format: &str, data: &[u8]) {
    let base = |flags: u8| match (format, flags & 12) {
        // Key material is noise, which a fuzzer cannot make: a volume that opens is there to begin with.
        ("luks", 4) => build::new_luks(1).clone(),
        ("luks", 8) => build::new_luks(2).clone(),
        _ => SparseStorage::default(),
    };
    let Some(input) = packed::unpack_over(data, base) else {
        return;
    };
    if input.sealed {
        seal::seal(format, &*input.storage);
    }
    look::look(format, input.storage.clone());
    changes::make(format, &input.storage, input.rest);
}

/// A file that a builder made: looked at.
fn alone(format: &str, file: SparseStorage) {
    look::look(format, Arc::new(file));
}

fn detect(data: &[u8]) {
    let storage = match packed::unpack(data) {
        Some(input) if data.first() == Some(&1) => input.storage,
        _ => Arc::new(SparseStorage::of(data)),
    };
    let found = formats::detect(&*storage).unwrap_or_default();
    assert!(
        found.is_sorted_by(|a, b| a.1 >= b.1),
        "the most likely format is not the first"
    );
    assert!(
        found.iter().any(|(driver, _)| driver.name() == "raw"),
        "everything can be raw"
    );
}

/// `format\nname=value\n...` against the driver's tables.
fn options(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let Ok(driver) = formats::by_name(lines.next().unwrap_or_default()) else {
        return;
    };
    let mut options = Options::new();
    for (name, value) in lines.filter_map(|l| l.split_once('=')) {
        options.set(name, value);
    }
    for table in [driver.create_options(), driver.open_options()] {
        let _ = options.check(table, driver.name());
        for spec in table {
            let _ = (
                options.size(spec.name),
                options.number(spec.name),
                options.flag(spec.name),
            );
        }
    }
    let spec = formats::MeasureSpec {
        virtual_size: options.size("size").ok().flatten().unwrap_or(1 << 20),
        data: &[],
        options: &options,
        backing: false,
    };
    if driver.capabilities().measure && options.check(driver.create_options(), driver.name()).is_ok() {
        let _ = driver.measure(&spec);
    }
}
