//! Layers of chains and what they show: made as images, and as bytes.

use proptest::prelude::*;
use vdisk_engine::formats::FormatDriver;
use vdisk_engine::options::Options;
use vdisk_engine::{Chain, ErrorKind, Result};

use crate::support::{Files, contents, drivers};

pub const FULL: u64 = 3 << 20;

/// One layer: its size and what is written into it, zeroes among it.
#[derive(Debug, Clone)]
pub struct Layer {
    pub size: u64,
    pub writes: Vec<(u64, u64, u8)>,
}

pub fn layer() -> impl Strategy<Value = Layer> {
    let size =
        prop_oneof![3 => Just(FULL), 1 => prop::sample::select(vec![512, 65_536, (1 << 20) + 512, FULL + (1 << 20)])];
    let offset = prop_oneof![0..FULL / 512, (0..FULL / 65_536).prop_map(|c| c * 128)].prop_map(|s| s * 512);
    let len = prop_oneof![4 => 1u64..300, 1 => 1u64..3000].prop_map(|s| s * 512);
    let fill = prop_oneof![1 => Just(0), 3 => 1u8..];
    (size, prop::collection::vec((offset, len, fill), 0..8)).prop_map(|(size, writes)| Layer { size, writes })
}

pub fn layers() -> impl Strategy<Value = [Layer; 3]> {
    [layer(), layer(), layer()]
}

/// Makes a layer and fills it. Formats that want layers of one size get them so.
pub fn make(files: &Files, name: &str, format: &str, layer: &Layer, backing: Option<(&str, &str)>) -> bool {
    make_with(files, name, format, &Options::new(), layer, backing)
}

/// The same with create options.
pub fn make_with(
    files: &Files,
    name: &str,
    format: &str,
    options: &Options,
    layer: &Layer,
    backing: Option<(&str, &str)>,
) -> bool {
    let below = backing.map(|(name, format)| files.open(name, format, false).unwrap().virtual_size());
    let made = [layer.size, below.unwrap_or(FULL)]
        .iter()
        .any(|size| files.create_with(name, format, options, *size, backing).is_ok());
    if made {
        fill(&files.open(name, format, true).unwrap(), layer);
    }
    made
}

/// Writes into the top of a chain what a layer holds, and closes it.
pub fn fill(chain: &Chain, layer: &Layer) {
    for (offset, len, fill) in &layer.writes {
        let len = (*len).min(chain.virtual_size().saturating_sub(*offset));
        if len == 0 {
            continue;
        }
        match fill {
            0 => chain.write_zeroes(*offset, len, false).unwrap(),
            fill => chain.write(*offset, &vec![*fill; len as usize]).unwrap(),
        }
    }
    chain.top().close().unwrap();
}

/// What a layer of this size shows over what `below` shows.
pub fn model(size: u64, below: &[u8], layer: &Layer) -> Vec<u8> {
    let mut bytes = below.to_vec();
    bytes.resize(size as usize, 0);
    for (offset, len, fill) in &layer.writes {
        let end = offset.saturating_add(*len).min(size) as usize;
        if let Some(part) = bytes.get_mut(*offset as usize..end) {
            part.fill(*fill);
        }
    }
    bytes
}

pub fn size_of(files: &Files, name: &str, format: &str) -> u64 {
    files.open(name, format, false).unwrap().virtual_size()
}

/// Ways to create images of a format that store what they hold differently.
pub fn variants(driver: &dyn FormatDriver) -> Vec<Options> {
    let all: &[&[(&str, &str)]] = match driver.name() {
        "qcow2" => &[
            &[("compat", "0.10"), ("cluster_size", "512")],
            &[("compat", "0.10"), ("cluster_size", "4096")],
            &[("compat", "0.10")],
            &[("compat", "0.10"), ("cluster_size", "2M")],
            &[("cluster_size", "512")],
            &[],
            &[("extended_l2", "on")],
        ],
        "qed" => &[&[("cluster_size", "4096")], &[], &[("cluster_size", "1M")]],
        "vmdk" => &[&[], &[("zeroed_grain", "on")], &[("subformat", "twoGbMaxExtentSparse")]],
        "vhdx" => &[&[], &[("block_size", "1M")]],
        _ => &[&[]],
    };
    let options = |pairs: &&[(&str, &str)]| {
        let pairs = pairs.iter();
        pairs.fold(Options::new(), |all, (name, value)| all.with(*name, *value))
    };
    all.iter().map(options).collect()
}

/// The format of bases: raw where a driver's overlays take that.
pub fn base_format(driver: &dyn FormatDriver) -> &'static str {
    let files = Files::default();
    files.create("base", "raw", FULL, None).unwrap();
    match files.create("top", driver.name(), FULL, Some(("base", "raw"))) {
        Ok(()) => "raw",
        Err(_) => driver.name(),
    }
}

pub fn overlays() -> Vec<&'static dyn FormatDriver> {
    drivers(|d| {
        let can = d.capabilities();
        can.create && can.write && can.backing && can.zero
    })
}

pub fn seen(files: &Files, name: &str, driver: &dyn FormatDriver) -> Vec<u8> {
    contents(&files.open(name, driver.name(), false).unwrap())
}

/// Whether it was done; what a format cannot do may be refused, and nothing else.
pub fn done(driver: &dyn FormatDriver, what: &str, result: Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::Unsupported => false,
        Err(error) => panic!("{} {what}: {error}", driver.name()),
    }
}
