//! What `info` says about a header.

use serde_json::{Map, Value};

use super::{LuksHeader, LuksSlot, VolumeLayout};
use crate::crypto::{CipherMode, CipherSpec, IvKind};

/// A header for `info`, under QEMU's keys; `version` and more of a slot where QEMU has none. Nothing in it is secret.
#[must_use]
pub fn describe(header: &LuksHeader, layout: &VolumeLayout, detached: bool) -> Map<String, Value> {
    let info = header.info();
    let mut out = Map::new();
    put_iv(&mut out, &layout.spec);
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("detached-header", (detached || layout.payload_offset == 0).into());
    put("hash-alg", info.hash.name().into());
    put("cipher-alg", layout.spec.algorithm().name().into());
    put("uuid", info.uuid.into());
    put("cipher-mode", layout.spec.mode().name().into());
    put("slots", info.slots.iter().map(slot).collect());
    put("payload-offset", layout.payload_offset.into());
    put("master-key-iters", info.digest_iterations.into());
    if info.version != 1 {
        put("version", info.version.into());
        put("sector-size", layout.sector_size.into());
    }
    out
}

fn put_iv(out: &mut Map<String, Value>, spec: &CipherSpec) {
    let (name, hash) = match spec.iv() {
        // A header names some generator even where the mode takes none.
        IvKind::Null if spec.mode() == CipherMode::Ecb => ("plain64".to_owned(), None),
        IvKind::Essiv(hash) => ("essiv".to_owned(), Some(hash)),
        other => (other.text(), None),
    };
    out.insert("ivgen-alg".to_owned(), name.into());
    if let Some(hash) = hash {
        out.insert("ivgen-hash-alg".to_owned(), hash.name().into());
    }
}

fn slot(slot: &LuksSlot) -> Value {
    let mut out = Map::new();
    out.insert("active".to_owned(), slot.active.into());
    if slot.active {
        out.insert("iters".to_owned(), slot.iterations.into());
    }
    out.insert("key-offset".to_owned(), slot.key_offset.into());
    if slot.active {
        out.insert("stripes".to_owned(), slot.stripes.into());
    }
    if slot.memory_kib > 0 {
        out.insert("kdf".to_owned(), slot.kdf.into());
        out.insert("memory-kib".to_owned(), slot.memory_kib.into());
    }
    Value::Object(out)
}
