//! Every number of headers and tables, set to values that hurt; sums are put right.

use crate::cases::sealed;
use crate::exercise::exercise;
use crate::samples::{GUEST, sample};

/// A number in a file.
struct Field {
    name: &'static str,
    at: usize,
    width: usize,
}

const fn f(name: &'static str, at: usize, width: usize) -> Field {
    Field { name, at, width }
}

struct Format {
    name: &'static str,
    big_endian: bool,
    fields: &'static [Field],
}

const FORMATS: &[Format] = &[
    Format {
        name: "qcow2",
        big_endian: true,
        fields: &[
            f("magic", 0, 4),
            f("version", 4, 4),
            f("backing offset", 8, 8),
            f("backing size", 16, 4),
            f("cluster bits", 20, 4),
            f("size", 24, 8),
            f("encryption", 32, 4),
            f("L1 size", 36, 4),
            f("L1 offset", 40, 8),
            f("refcount table", 48, 8),
            f("refcount table clusters", 56, 4),
            f("snapshots", 60, 4),
            f("snapshot table", 64, 8),
            f("incompatible", 72, 8),
            f("compatible", 80, 8),
            f("autoclear", 88, 8),
            f("refcount order", 96, 4),
            f("header length", 100, 4),
            f("compression", 104, 1),
            f("extension", 112, 4),
            f("extension length", 116, 4),
            f("refcount block", 0x1_0000, 8),
            f("refcount", 0x2_0008, 2),
            f("L1 entry", 0x3_0000, 8),
            f("L2 entry", 0x4_0000, 8),
            f("second L2 entry", 0x4_0008, 8),
        ],
    },
    Format {
        name: "qcow",
        big_endian: true,
        fields: &[
            f("magic", 0, 4),
            f("version", 4, 4),
            f("backing offset", 8, 8),
            f("backing size", 16, 4),
            f("size", 24, 8),
            f("cluster bits", 32, 1),
            f("L2 bits", 33, 1),
            f("encryption", 36, 4),
            f("L1 offset", 40, 8),
            f("L1 entry", 48, 8),
        ],
    },
    Format {
        name: "qed",
        big_endian: false,
        fields: &[
            f("magic", 0, 4),
            f("cluster size", 4, 4),
            f("table size", 8, 4),
            f("header size", 12, 4),
            f("features", 16, 8),
            f("compatible", 24, 8),
            f("autoclear", 32, 8),
            f("L1 offset", 40, 8),
            f("size", 48, 8),
            f("backing offset", 56, 4),
            f("backing size", 60, 4),
            f("L1 entry", 0x1_0000, 8),
        ],
    },
    Format {
        name: "vdi",
        big_endian: false,
        fields: &[
            f("signature", 64, 4),
            f("version", 68, 4),
            f("header size", 72, 4),
            f("type", 76, 4),
            f("flags", 80, 4),
            f("map offset", 0x154, 4),
            f("data offset", 0x158, 4),
            f("sector size", 0x168, 4),
            f("size", 0x170, 8),
            f("block size", 0x178, 4),
            f("block extra", 0x17c, 4),
            f("blocks", 0x180, 4),
            f("allocated", 0x184, 4),
            f("link", 0x1a8, 8),
            f("parent", 0x1b8, 8),
            f("map entry", 0x200, 4),
        ],
    },
    Format {
        name: "vpc",
        big_endian: true,
        fields: &[
            f("features", 8, 4),
            f("version", 12, 4),
            f("header place", 16, 8),
            f("original size", 40, 8),
            f("size", 48, 8),
            f("geometry", 56, 4),
            f("type", 60, 4),
            f("saved state", 84, 1),
            f("next header", 520, 8),
            f("table", 528, 8),
            f("header version", 536, 4),
            f("entries", 540, 4),
            f("block size", 544, 4),
            f("parent", 552, 8),
            f("locator", 1088, 8),
            f("table entry", 1536, 4),
        ],
    },
    Format {
        name: "vhdx",
        big_endian: false,
        fields: &[
            f("sequence", (64 << 10) + 8, 8),
            f("log id", (64 << 10) + 48, 8),
            f("log version", (64 << 10) + 64, 2),
            f("version", (64 << 10) + 66, 2),
            f("log length", (64 << 10) + 68, 4),
            f("log offset", (64 << 10) + 72, 8),
            f("regions", (192 << 10) + 8, 4),
            f("region id", (192 << 10) + 16, 8),
            f("region offset", (192 << 10) + 32, 8),
            f("region length", (192 << 10) + 40, 4),
            f("region required", (192 << 10) + 44, 4),
            f("second region offset", (192 << 10) + 64, 8),
            f("second region length", (192 << 10) + 72, 4),
        ],
    },
    Format {
        name: "vmdk",
        big_endian: false,
        fields: &[
            f("magic", 0, 4),
            f("version", 4, 4),
            f("flags", 8, 4),
            f("capacity", 12, 8),
            f("grain", 20, 8),
            f("descriptor", 28, 8),
            f("descriptor size", 36, 8),
            f("entries a table", 44, 4),
            f("redundant directory", 48, 8),
            f("directory", 56, 8),
            f("overhead", 64, 8),
            f("newline", 73, 4),
            f("compression", 77, 2),
            f("descriptor text", 520, 8),
        ],
    },
    Format {
        name: "parallels",
        big_endian: false,
        fields: &[
            f("magic", 0, 8),
            f("version", 16, 4),
            f("heads", 20, 4),
            f("cylinders", 24, 4),
            f("tracks", 28, 4),
            f("entries", 32, 4),
            f("sectors", 36, 8),
            f("in use", 44, 4),
            f("data offset", 48, 4),
            f("flags", 52, 4),
            f("extension", 56, 8),
            f("entry", 64, 4),
        ],
    },
    Format {
        name: "bochs",
        big_endian: false,
        fields: &[
            f("magic", 0, 8),
            f("type", 32, 8),
            f("subtype", 48, 8),
            f("version", 64, 4),
            f("header", 68, 4),
            f("catalog", 72, 4),
            f("bitmap", 76, 4),
            f("extent", 80, 4),
            f("reserved or size", 84, 8),
            f("size", 88, 8),
            f("catalog entry", 512, 4),
        ],
    },
    Format {
        name: "cloop",
        big_endian: true,
        fields: &[
            f("block size", 128, 4),
            f("blocks", 132, 4),
            f("offset", 136, 8),
            f("second offset", 144, 8),
        ],
    },
    Format {
        name: "luks",
        big_endian: true,
        fields: &[
            f("magic", 0, 4),
            f("version", 6, 2),
            f("cipher", 8, 8),
            f("mode", 40, 8),
            f("hash", 72, 8),
            f("payload", 104, 4),
            f("key bytes", 108, 4),
            f("iterations", 164, 4),
            f("slot", 208, 4),
            f("slot iterations", 212, 4),
            f("slot place", 248, 4),
            f("stripes", 252, 4),
            f("second slot", 256, 4),
        ],
    },
    Format {
        name: "cow",
        big_endian: true,
        fields: &[
            f("magic", 0, 4),
            f("version", 4, 4),
            f("backing", 8, 8),
            f("time", 1032, 4),
            f("size", 1036, 8),
            f("size, aligned", 1040, 8),
            f("sector size", 1048, 4),
        ],
    },
];

/// Values that are wrong somewhere: nothing, one, not aligned, huge, about to overflow.
fn values(width: usize) -> Vec<u64> {
    let most = u64::MAX >> (64 - width * 8);
    let mut list = vec![
        0,
        1,
        3,
        0x7f,
        0x1234_5601 & most,
        most >> 1,
        (most >> 1) + 1,
        most - 1,
        most,
    ];
    if width == 8 {
        list.extend([
            1 << 20,
            1 << 32,
            1 << 40,
            (1 << 56) - 1,
            0xffff_ffff,
            (1 << 63) - 512,
            u64::MAX - 511,
        ]);
    }
    if width == 4 {
        list.extend([512, 513, 1 << 20, 1 << 28]);
    }
    list
}

#[test]
fn numbers_that_hurt_are_answered() {
    let _alone = crate::alone();
    let (mut count, mut wrong) = (0, Vec::new());
    for format in FORMATS {
        let good = sample(format.name);
        for field in format.fields {
            for value in values(field.width) {
                let mut bad = good.clone();
                let be = value.to_be_bytes();
                let place = &mut bad[field.at..field.at + field.width];
                place.copy_from_slice(&be[8 - field.width..]);
                if !format.big_endian {
                    place.reverse();
                }
                let bad = sealed(format.name, bad);
                let what = format!("{}, {} = {value:#x}", format.name, field.name);
                // Within the limits, but slow without optimisation.
                if field.name.ends_with("iterations") && (1 << 18..12_000_000).contains(&value) {
                    continue;
                }
                // Another key or another place of the data gives noise, which no reader can tell from data.
                let moved =
                    format.name == "luks" || format.name == "bochs" && ["bitmap", "extent"].contains(&field.name);
                let guest = (!moved).then_some(&GUEST[..]);
                if std::panic::catch_unwind(|| exercise(format.name, &bad, guest, &what)).is_err() {
                    wrong.push(what);
                }
                count += 1;
            }
        }
    }
    println!("{count} hostile images answered");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count >= 600);
}
