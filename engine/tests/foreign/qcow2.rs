//! QCOW2 as other writers lay it out: short and long headers, extensions that nobody knows, tables in any order, compressed clusters packed
//! without regard to sectors, snapshot entries of all ages. Source: QEMU's docs/interop/qcow2.

use std::io::Write as _;

use super::support::{File, noise, open, qemu_agrees, shows, takes_writes};

const CLUSTER: usize = 64 << 10;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Where things are, in clusters; the header is cluster 0.
struct Places {
    l1: usize,
    l2: usize,
    refcount_table: usize,
    refcount_block: usize,
    data: [usize; 2],
    packed: usize,
}

const USUAL: Places = Places {
    l1: 3,
    l2: 4,
    refcount_table: 1,
    refcount_block: 2,
    data: [5, 6],
    packed: 7,
};

struct Layout {
    version: u32,
    header: u32,
    refcount_order: u32,
    extensions: Vec<(u32, Vec<u8>)>,
    places: Places,
    autoclear: u64,
    /// What stands in fields behind those that are known.
    further: u8,
}

fn usual() -> Layout {
    Layout {
        version: 3,
        header: 104,
        refcount_order: 4,
        extensions: Vec::new(),
        places: USUAL,
        autoclear: 0,
        further: 0,
    }
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(6));
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn header(layout: &Layout, size: usize) -> File {
    let mut file = File(vec![0; CLUSTER]);
    let place = |cluster: usize| (cluster * CLUSTER) as u64;
    file.put(0, b"QFI\xfb");
    file.be32(4, layout.version);
    file.be32(20, 16);
    file.be64(24, size as u64);
    file.be32(36, 1);
    file.be64(40, place(layout.places.l1));
    file.be64(48, place(layout.places.refcount_table));
    file.be32(56, 1);
    let mut at = 72;
    if layout.version == 3 {
        file.be64(88, layout.autoclear);
        file.be32(96, layout.refcount_order);
        file.be32(100, layout.header);
        at = layout.header as usize;
        file.0[112.min(at)..at].fill(layout.further);
    }
    for (kind, bytes) in &layout.extensions {
        file.be32(at, *kind);
        file.be32(at + 4, bytes.len() as u32);
        file.put(at + 8, bytes);
        at += 8 + bytes.len().next_multiple_of(8);
    }
    file
}

/// Clusters 0 and 2 plain, 1 not there, 3 a zero cluster where the version knows one, 4 and 5 compressed into one cluster; the last has 1000
/// bytes only. File and guest.
fn image(layout: &Layout) -> (Vec<u8>, Vec<u8>) {
    let mut guest = vec![0; 6 * CLUSTER];
    let p = &layout.places;
    let mut file = header(layout, 5 * CLUSTER + 1024);
    let mut used = vec![
        (0, 1),
        (p.l1, 1),
        (p.l2, 1),
        (p.refcount_table, 1),
        (p.refcount_block, 1),
        (p.packed, 2),
    ];
    for (cluster, host) in [(0, p.data[0]), (2, p.data[1])] {
        let data = noise(CLUSTER, cluster as u8);
        guest[cluster * CLUSTER..][..CLUSTER].copy_from_slice(&data);
        file.put(host * CLUSTER, &data);
        file.be64(p.l2 * CLUSTER + 8 * cluster, (host * CLUSTER) as u64 | COPIED);
        used.push((host, 1));
    }
    if layout.version == 3 {
        file.be64(p.l2 * CLUSTER + 24, ZERO);
    }
    // The second stream begins in the middle of the sector where the first ends.
    let mut at = p.packed * CLUSTER + 37;
    for cluster in [4, 5] {
        let data: Vec<u8> = (0..64).flat_map(|n| [n + cluster as u8; 1024]).collect();
        let stream = deflated(&data);
        file.put(at, &stream);
        let sectors = ((at + stream.len() - 1) / 512 - at / 512) as u64;
        file.be64(p.l2 * CLUSTER + 8 * cluster, COMPRESSED | sectors << 54 | at as u64);
        guest[cluster * CLUSTER..][..CLUSTER].copy_from_slice(&data);
        at += stream.len();
    }
    assert!(at < (p.packed + 1) * CLUSTER);
    file.be64(p.l1 * CLUSTER, (p.l2 * CLUSTER) as u64 | COPIED);
    file.be64(p.refcount_table * CLUSTER, (p.refcount_block * CLUSTER) as u64);
    let width = 1usize << layout.refcount_order >> 3;
    for (cluster, count) in used {
        file.put(p.refcount_block * CLUSTER + cluster * width + width - 1, &[count]);
    }
    let end = file.0.len().next_multiple_of(CLUSTER);
    file.end(end);
    guest.truncate(5 * CLUSTER + 1024);
    (file.0, guest)
}

fn holds(layout: &Layout) -> Vec<u8> {
    let (file, guest) = image(layout);
    shows("qcow2", &file, &guest);
    qemu_agrees("qcow2", &file, &guest);
    takes_writes("qcow2", &file, &guest)
}

#[test]
fn headers_of_all_lengths_are_read() {
    holds(&Layout { version: 2, ..usual() });
    for header in [104, 112, 120, 4096] {
        holds(&Layout { header, ..usual() });
    }
    let after = holds(&Layout {
        header: 144,
        further: 0x5a,
        ..usual()
    });
    assert_eq!(after[112..144], [0x5a; 32], "fields that nobody knows stay");
}

#[test]
fn extensions_that_nobody_knows_are_passed_over_and_stay() {
    let names = [
        &[0, 0][..],
        b"dirty bit",
        &[0; 37],
        &[1, 63],
        b"a name of forty-six bytes, without any NUL....",
        &[9, 9],
        &[0; 46],
    ]
    .concat();
    let unknown = |kind: u32, len: usize| (kind, noise(len, kind as u8));
    for version in [2, 3] {
        let extensions = vec![
            unknown(0x1234_5678, 13),
            (0x6803_f857, names.clone()),
            unknown(0xfeed_0001, 0),
            unknown(0xfeed_0002, 1),
            unknown(0x1234_5678, 8),
            unknown(0xffff_ffff, 3001),
        ];
        let layout = Layout {
            version,
            extensions,
            ..usual()
        };
        let before = header(&layout, 0).0;
        let after = holds(&layout);
        assert_eq!(after[104..CLUSTER], before[104..]);
    }
}

#[test]
fn tables_in_any_order_and_counts_of_any_width_are_read() {
    let places = Places {
        l1: 9,
        l2: 1,
        refcount_table: 8,
        refcount_block: 3,
        data: [7, 2],
        packed: 5,
    };
    holds(&Layout { places, ..usual() });
    for refcount_order in [3, 5, 6] {
        holds(&Layout {
            refcount_order,
            ..usual()
        });
    }
}

#[test]
fn features_that_a_writer_may_drop_are_dropped_by_the_first_write() {
    let after = holds(&Layout {
        autoclear: 1 << 62 | 1 << 13,
        ..usual()
    });
    assert_eq!(after[88..96], [0; 8]);
}

/// Puts a table of snapshots of the same L1 behind the image: each with an id, a name and more data of this many bytes.
fn with_snapshots(layout: &Layout, entries: &[(&str, &str, usize)]) -> Vec<u8> {
    let (file, _) = image(layout);
    let mut file = File(file);
    // Each snapshot has an L1 table of its own, which shares the L2 table and all below it.
    let (table, l1) = (8 * CLUSTER, 9 * CLUSTER);
    file.be32(60, entries.len() as u32);
    file.be64(64, table as u64);
    let mut at = table;
    for (number, (id, name, more)) in entries.iter().enumerate() {
        file.be64(at, (l1 + number * CLUSTER) as u64);
        file.be32(at + 8, 1);
        file.put(at + 12, &(id.len() as u16).to_be_bytes());
        file.put(at + 14, &(name.len() as u16).to_be_bytes());
        file.be32(at + 16, 1_700_000_000 + number as u32);
        file.be32(at + 20, 999_999_999);
        file.be64(at + 24, 5);
        file.be32(at + 36, *more as u32);
        let mut data = vec![0; *more];
        if *more >= 16 {
            data[8..16].copy_from_slice(&((5 * CLUSTER + 1024) as u64).to_be_bytes());
        }
        if *more > 24 {
            data[24..].fill(0x77);
        }
        file.put(at + 40, &data);
        file.put(at + 40 + more, id.as_bytes());
        file.put(at + 40 + more + id.len(), name.as_bytes());
        at += (40 + more + id.len() + name.len()).next_multiple_of(8);
        file.be64(l1 + number * CLUSTER, (4 * CLUSTER) as u64);
    }
    let block = 2 * CLUSTER;
    let shared = entries.len() as u8 + 1;
    for (cluster, count) in [(4, shared), (5, shared), (6, shared), (7, 2 * shared), (8, 1)] {
        file.put(block + 2 * cluster, &[0, count]);
    }
    for number in 0..entries.len() {
        file.put(block + 2 * (9 + number), &[0, 1]);
    }
    // What is shared may not be written in place.
    for at in [3 * CLUSTER, 4 * CLUSTER, 4 * CLUSTER + 16] {
        file.0[at] &= 0x7f;
    }
    let end = (9 + entries.len()) * CLUSTER;
    file.end(end);
    file.0
}

#[test]
fn snapshots_of_all_ages_are_listed_and_read() {
    // Version 2 knew no more data at first, version 3 wants 16 bytes, or 24 with a count of instructions; whatever else comes stays.
    let old = [("1", "old", 0), ("22", "with a size", 16)];
    let new = [
        ("22", "with a size", 16),
        ("3", "counted", 24),
        ("x", "\u{e9}t\u{e9} ", 47),
    ];
    for (version, entries) in [(2, &old[..]), (3, &new[..])] {
        let layout = Layout { version, ..usual() };
        let (file, (_, guest)) = (with_snapshots(&layout, entries), image(&layout));
        shows("qcow2", &file, &guest);
        qemu_agrees("qcow2", &file, &guest);
        for bytes in [file.clone(), takes_writes("qcow2", &file, &guest)] {
            let (chain, _) = open("qcow2", &bytes, false).unwrap();
            let snapshots = chain.top().snapshots().unwrap();
            let list = snapshots.list().unwrap();
            let found: Vec<_> = list.iter().map(|s| (s.id.as_str(), s.name.as_str())).collect();
            let expected: Vec<_> = entries.iter().map(|(id, name, _)| (*id, *name)).collect();
            assert_eq!(found, expected);
            for snapshot in &list {
                let then = snapshots.open(&snapshot.id).unwrap();
                let mut seen = vec![1; then.virtual_size() as usize];
                then.read(0, &mut seen).unwrap();
                assert!(seen == guest, "{}", snapshot.name);
            }
        }
    }
}
