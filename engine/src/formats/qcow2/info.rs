//! Facts for `info`, under QEMU's keys.

use serde_json::{Map, Value, json};

use super::image::{Qcow2, Shared};
use super::layout::{Autoclear, Compatible, Incompatible};
use crate::Result;
use crate::image::{BitmapInfo, Bitmaps, ImageInfo};
use crate::options::Options;

impl Qcow2 {
    /// Everything that `info` says.
    pub fn describe(&self) -> Result<ImageInfo> {
        let bitmaps = Bitmaps::list(self)?;
        let shared = self.read_shared();
        let header = &shared.header;
        let mut specific = self.specific(&shared);
        drop_in_bitmaps(&mut specific, &bitmaps);
        Ok(ImageInfo {
            cluster_size: Some(self.geometry.cluster_size()),
            encrypted: self.encryption.is_some(),
            compressed: false,
            dirty: Some(header.incompatible.has(Incompatible::DIRTY)),
            snapshots: shared.snapshots.iter().map(|s| s.info(header.virtual_size)).collect(),
            specific: Some(specific),
        })
    }

    /// Options that make another one like this.
    pub fn made_with_options(&self) -> Options {
        let shared = self.read_shared();
        let header = &shared.header;
        let options = Options::new()
            .with("cluster_size", self.geometry.cluster_size().to_string())
            .with("compression_type", header.compression.name())
            .with("refcount_bits", header.refcount_bits().to_string());
        if header.version < 3 {
            return options.with("compat", "0.10");
        }
        let flag = |on: bool| if on { "on" } else { "off" };
        options
            .with("compat", "1.1")
            .with(
                "lazy_refcounts",
                flag(header.compatible & Compatible::LAZY_REFCOUNTS != 0),
            )
            .with("extended_l2", flag(self.geometry.extended_l2))
    }

    fn specific(&self, shared: &Shared) -> Map<String, Value> {
        let header = &shared.header;
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        let compat = if header.version < 3 { "0.10" } else { "1.1" };
        put("compat", json!(compat));
        put("compression-type", json!(header.compression.name()));
        if header.version >= 3 {
            put(
                "lazy-refcounts",
                json!(header.compatible & Compatible::LAZY_REFCOUNTS != 0),
            );
        }
        put("refcount-bits", json!(header.refcount_bits()));
        if let Some(encryption) = &self.encryption {
            put("encrypt", encryption.describe());
        }
        if header.version >= 3 {
            if let Some(name) = shared.extensions.data_file() {
                put("data-file", json!(name));
            }
            if self.geometry.data_file {
                put("data-file-raw", json!(header.autoclear & Autoclear::RAW_DATA_FILE != 0));
            }
            put("corrupt", json!(header.incompatible.has(Incompatible::CORRUPT)));
            put("extended-l2", json!(self.geometry.extended_l2));
        }
        map
    }
}

fn drop_in_bitmaps(map: &mut Map<String, Value>, bitmaps: &[BitmapInfo]) {
    if bitmaps.is_empty() {
        return;
    }
    let one = |b: &BitmapInfo| {
        let flags: Vec<&str> = [(b.in_use, "in-use"), (b.enabled, "auto")]
            .into_iter()
            .filter_map(|(on, name)| on.then_some(name))
            .collect();
        json!({"flags": flags, "name": b.name, "granularity": b.granularity})
    };
    map.insert("bitmaps".to_owned(), bitmaps.iter().map(one).collect());
}
