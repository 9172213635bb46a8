//! VHD as Disk2vhd, Azure, Virtual PC and XenServer leave them. Numbers: "Virtual Hard Disk Image Format Specification" 1.0.

use super::support::{File, noise, qemu_agrees, shows, takes_writes};

const MIB: usize = 1 << 20;
const BLOCK: usize = 2 * MIB;

struct Footer {
    creator: [u8; 4],
    version: u32,
    os: [u8; 4],
    size: usize,
    geometry: (u16, u8, u8),
    kind: u32,
    header: u64,
}

fn sum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)))
}

fn footer(f: &Footer) -> Vec<u8> {
    let mut file = File(vec![0; 512]);
    file.put(0, b"conectix");
    file.be32(8, 2);
    file.be32(12, 0x0001_0000);
    file.be64(16, f.header);
    file.be32(24, 0x1234_5678);
    file.put(28, &f.creator);
    file.be32(32, f.version);
    file.put(36, &f.os);
    file.be64(40, f.size as u64);
    file.be64(48, f.size as u64);
    file.put(56, &f.geometry.0.to_be_bytes());
    file.put(58, &[f.geometry.1, f.geometry.2]);
    file.be32(60, f.kind);
    file.put(68, &[9; 16]);
    let sum = sum(&file.0);
    file.be32(64, sum);
    file.0
}

fn header(table: u64, entries: u32, block: usize) -> Vec<u8> {
    let mut file = File(vec![0; 1024]);
    file.put(0, b"cxsparse");
    file.be64(8, u64::MAX);
    file.be64(16, table);
    file.be32(24, 0x0001_0000);
    file.be32(28, entries);
    file.be32(32, block as u32);
    let sum = sum(&file.0);
    file.be32(36, sum);
    file.0
}

/// Blocks 1 and 0 of three, in this order, with all bits of their bitmaps set. `gap`: bytes between the structures; `more`: entries of the
/// table behind those that are needed.
fn dynamic(f: &Footer, gap: usize, more: u32) -> (Vec<u8>, Vec<u8>) {
    let entries = f.size.div_ceil(BLOCK);
    let table = 512 + 1024 + gap;
    let first = (table + 4 * (entries + more as usize)).next_multiple_of(512) + gap;
    let mut file = File::default();
    file.put(0, &footer(f));
    file.put(512, &header(table as u64, entries as u32 + more, BLOCK));
    file.put(table, &vec![0xff; 4 * (entries + more as usize)]);
    let mut guest = vec![0; entries * BLOCK];
    let mut at = first;
    for block in [1, 0] {
        let data = noise(BLOCK, block as u8);
        file.be32(table + 4 * block, (at / 512) as u32);
        file.put(at, &[0xff; 512]);
        file.put(at + 512, &data);
        guest[block * BLOCK..][..BLOCK].copy_from_slice(&data);
        at += 512 + BLOCK;
    }
    guest.truncate(f.size);
    file.put(at, &footer(f));
    (file.0, guest)
}

#[test]
fn dynamic_disks_whose_size_is_no_product_of_their_geometry_are_read_whole() {
    // 6 MiB less 5 sectors; its geometry by the specification's algorithm has fewer: 180 x 4 x 17 = 12240 of 12283 sectors.
    let odd = Footer {
        creator: *b"d2v ",
        version: 0x0001_0000,
        os: *b"Wi2k",
        size: 3 * BLOCK - 5 * 512,
        geometry: (180, 4, 17),
        kind: 3,
        header: 512,
    };
    let (file, guest) = dynamic(&odd, 0, 0);
    shows("vpc", &file, &guest);
    qemu_agrees("vpc", &file, &guest);
    takes_writes("vpc", &file, &guest);
    for (creator, version) in [
        (*b"win ", 0x0006_0003),
        (*b"tap\0", 0x0001_0003),
        (*b"qem2", 0x0005_0003),
    ] {
        let (file, guest) = dynamic(
            &Footer {
                creator,
                version,
                ..odd
            },
            1536,
            300,
        );
        shows("vpc", &file, &guest);
        qemu_agrees("vpc", &file, &guest);
        takes_writes("vpc", &file, &guest);
    }
}

#[test]
fn a_fixed_disk_of_whole_mib_is_read_as_azure_wants_it() {
    let size = 3 * MIB;
    let guest = noise(size, 3);
    let azure = Footer {
        creator: *b"win ",
        version: 0x000a_0000,
        os: *b"Wi2k",
        size,
        geometry: (90, 4, 17),
        kind: 2,
        header: u64::MAX,
    };
    let file = [guest.clone(), footer(&azure)].concat();
    shows("vpc", &file, &guest);
    qemu_agrees("vpc", &file, &guest);
    let changed = takes_writes("vpc", &file, &guest);
    assert_eq!(changed[size..], file[size..], "the footer stays");
}

#[test]
fn a_footer_of_511_bytes_is_read() {
    let size = 4 * 17 * 100 * 512;
    let guest = noise(size, 4);
    let old = Footer {
        creator: *b"vpc ",
        version: 0x0005_0000,
        os: *b"Mac ",
        size,
        geometry: (100, 4, 17),
        kind: 2,
        header: u64::MAX,
    };
    let mut file = [guest.clone(), footer(&old)].concat();
    file.pop();
    shows("vpc", &file, &guest);
}
