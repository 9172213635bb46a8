//! info: the facts about a layer, under qemu-img's keys.

use serde_json::{Map, Value, json};

use crate::image::{BackingReference, ImageInfo, SnapshotInfo};
use crate::{Image, Result, StorageRef};

/// The facts about one layer.
#[derive(Debug, Clone)]
pub struct Description {
    /// The main file's name.
    pub filename: String,
    /// The driver's name.
    pub format: &'static str,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes the files occupy on the host; `None` where a storage cannot tell.
    pub actual_size: Option<u64>,
    /// The layer below as the header names it.
    pub backing: Option<BackingReference>,
    /// What the driver says.
    pub image: ImageInfo,
}

/// One storage below an image.
#[derive(Debug, Clone)]
pub struct Child {
    /// What it is to the image.
    pub name: String,
    /// QEMU's name for the kind of storage: `file`, `nbd` and so on.
    pub protocol: String,
    /// Its own name.
    pub filename: String,
    /// Its bytes, in whole sectors.
    pub len: u64,
    /// Bytes it occupies on the host; `None` where it cannot tell.
    pub allocated: Option<u64>,
}

/// Collects the facts about one layer.
///
/// # Errors
/// What the driver and the storages say.
pub fn describe(image: &dyn Image) -> Result<Description> {
    let storages = image.storages();
    let actual_size = storages
        .iter()
        .map(|s| s.allocated().ok())
        .try_fold(0, |sum: u64, n| sum.checked_add(n?));
    Ok(Description {
        filename: storages.first().map_or_else(String::new, |s| s.name().to_owned()),
        format: image.format(),
        virtual_size: image.virtual_size(),
        actual_size,
        backing: image.backing(),
        image: image.info()?,
    })
}

/// The storages that a layer is made of, all of the kind `protocol`, as QEMU lists them: what is opened last comes first.
///
/// # Errors
/// What the storages say.
pub fn children(image: &dyn Image, protocol: &str) -> Result<Vec<Child>> {
    let storages = image.storages();
    let child = |(index, storage): (usize, &StorageRef)| {
        Ok(Child {
            name: image.child_name(index),
            protocol: protocol.to_owned(),
            filename: storage.name().to_owned(),
            len: storage.len()?.next_multiple_of(512),
            allocated: storage.allocated().ok(),
        })
    };
    storages.iter().enumerate().rev().map(child).collect()
}

impl Description {
    /// As `qemu-img info --output=json` has it. `full_backing` is the resolved name of the layer below, `children` are the storages to show.
    pub fn to_json(&self, full_backing: Option<&str>, children: &[Child]) -> Map<String, Value> {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| {
            out.insert(key.to_owned(), value);
        };
        put("virtual-size", self.virtual_size.into());
        put("filename", self.filename.as_str().into());
        if let Some(size) = self.image.cluster_size {
            put("cluster-size", size.into());
        }
        put("format", self.format.into());
        if let Some(bytes) = self.actual_size {
            put("actual-size", bytes.into());
        }
        if self.image.encrypted {
            put("encrypted", true.into());
        }
        if self.image.compressed {
            put("compressed", true.into());
        }
        if let Some(backing) = &self.backing {
            put("backing-filename", backing.name.as_str().into());
            put("full-backing-filename", full_backing.unwrap_or(&backing.name).into());
            if let Some(format) = &backing.format {
                put("backing-filename-format", format.as_str().into());
            }
        }
        if !self.image.snapshots.is_empty() {
            put("snapshots", self.image.snapshots.iter().map(snapshot_json).collect());
        }
        if let Some(specific) = &self.image.specific {
            put("format-specific", json!({ "type": self.format, "data": specific }));
        }
        if let Some(dirty) = self.image.dirty {
            put("dirty-flag", dirty.into());
        }
        put("children", children.iter().map(Child::to_json).collect());
        out
    }
}

impl Child {
    /// Whether it lies with a server, which cannot say all that a file can.
    pub fn is_remote(&self) -> bool {
        matches!(self.protocol.as_str(), "nbd" | "http" | "https")
    }

    fn to_json(&self) -> Value {
        let mut info = Map::new();
        info.insert("filename".to_owned(), self.filename.as_str().into());
        info.insert("format".to_owned(), self.protocol.as_str().into());
        if !self.is_remote() {
            info.insert("dirty-flag".to_owned(), false.into());
        }
        if let Some(bytes) = self.allocated {
            info.insert("actual-size".to_owned(), bytes.into());
        }
        info.insert("virtual-size".to_owned(), self.len.into());
        if matches!(self.protocol.as_str(), "file" | "host_device") {
            info.insert("format-specific".to_owned(), json!({"type": "file", "data": {}}));
        }
        info.insert("children".to_owned(), json!([]));
        json!({"name": self.name, "info": info})
    }
}

fn snapshot_json(snapshot: &SnapshotInfo) -> Value {
    let mut out = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": snapshot.vm_clock_nsec / 1_000_000_000,
        "vm-clock-nsec": snapshot.vm_clock_nsec % 1_000_000_000,
    });
    if let Some(icount) = snapshot.icount {
        out["icount"] = icount.into();
    }
    out
}
