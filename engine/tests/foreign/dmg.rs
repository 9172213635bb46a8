//! Disk images of several partitions, as Disk Utility makes them: a table of blocks for each part of the partition map, chunks of all kinds and
//! sizes. Source: libmodi's description of the format.

use std::io::Write as _;

use base64::Engine as _;

use super::support::{File, noise, qemu_agrees, shows};

const SECTOR: usize = 512;
const RAW: u32 = 1;
const IGNORE: u32 = 2;
const ZERO: u32 = 0;
const ZLIB: u32 = 0x8000_0005;
const BZIP2: u32 = 0x8000_0006;
const COMMENT: u32 = 0x7fff_fffe;
const END: u32 = 0xffff_ffff;

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A part of the partition map: its name and its chunks, each of a kind, with guest bytes.
struct Part {
    name: &'static str,
    chunks: Vec<(u32, Vec<u8>)>,
}

/// Builds the file as `hdiutil` does: data fork, property list, trailer. The chunks' places count from the beginning of the data fork, which lies
/// behind `before` bytes, or from each table's own data when `relative`.
fn image(parts: &[Part], before: usize, relative: bool) -> (Vec<u8>, Vec<u8>) {
    let (mut data, mut guest, mut tables) = (Vec::new(), Vec::new(), String::new());
    for (number, part) in parts.iter().enumerate() {
        let mut mish = File(vec![0; 204]);
        let (first, base) = (guest.len(), if relative { data.len() } else { 0 });
        let chunk = |mish: &mut File, kind: u32, sector: usize, len: usize, at: usize, stored: usize| {
            let entry = mish.0.len();
            mish.be32(entry, kind);
            mish.be32(entry + 4, if kind == COMMENT { 0x2b62_6567 } else { 0 });
            for (place, value) in [(8, sector), (16, len / SECTOR), (24, at), (32, stored)] {
                mish.be64(entry + place, value as u64);
            }
        };
        for (kind, bytes) in &part.chunks {
            let stored = match *kind {
                RAW => bytes.clone(),
                ZLIB => zlib(bytes),
                BZIP2 => bzip2(bytes),
                _ => Vec::new(),
            };
            let sector = (guest.len() - first) / SECTOR;
            chunk(&mut mish, *kind, sector, bytes.len(), data.len() - base, stored.len());
            data.extend(&stored);
            guest.extend(bytes);
        }
        let sectors = (guest.len() - first) / SECTOR;
        chunk(&mut mish, END, sectors, 0, data.len() - base, 0);
        mish.put(0, b"mish");
        mish.be32(4, 1);
        mish.be64(8, (first / SECTOR) as u64);
        mish.be64(16, sectors as u64);
        mish.be64(24, base as u64);
        mish.be32(32, 2056);
        mish.be32(36, number as u32);
        let checked: Vec<_> = part
            .chunks
            .iter()
            .filter(|(k, _)| *k != IGNORE)
            .map(|(_, b)| b.as_slice())
            .collect();
        mish.be32(64, 2);
        mish.be32(68, 32);
        mish.be32(72, crc(&checked.concat()));
        mish.be32(200, part.chunks.len() as u32 + 1);
        let text = base64::engine::general_purpose::STANDARD.encode(&mish.0);
        // In lines, indented, as the system's own writer breaks them.
        let lines: Vec<_> = text
            .as_bytes()
            .chunks(52)
            .map(|l| std::str::from_utf8(l).unwrap())
            .collect();
        tables += &format!(
            "\t\t\t<dict>\n\t\t\t\t<key>Attributes</key>\n\t\t\t\t<string>0x0050</string>\n\t\t\t\t<key>CFName</key>\n\t\t\t\t<string>{0}</string>\n\
             \t\t\t\t<key>Data</key>\n\t\t\t\t<data>\n\t\t\t\t{1}\n\t\t\t\t</data>\n\t\t\t\t<key>ID</key>\n\t\t\t\t<string>{number}</string>\n\
             \t\t\t\t<key>Name</key>\n\t\t\t\t<string>{0}</string>\n\t\t\t</dict>\n",
            part.name,
            lines.join("\n\t\t\t\t")
        );
    }
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
         \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n<plist version=\"1.0\">\n<dict>\n\t<key>resource-fork</key>\n\t<dict>\n\
         \t\t<key>blkx</key>\n\t\t<array>\n{tables}\t\t</array>\n\t\t<key>plst</key>\n\t\t<array>\n\t\t\t<dict>\n\t\t\t\t<key>Data</key>\n\
         \t\t\t\t<data>\n\t\t\t\tAAAAAA==\n\t\t\t\t</data>\n\t\t\t</dict>\n\t\t</array>\n\t</dict>\n</dict>\n</plist>\n"
    );
    (file(&data, &xml, guest.len(), before), guest)
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn file(data: &[u8], xml: &str, size: usize, before: usize) -> Vec<u8> {
    let mut file = File(vec![0; before]);
    file.put(before, data);
    let list = file.0.len();
    file.put(list, xml.as_bytes());
    let at = file.0.len();
    file.end(at + 512);
    file.put(at, b"koly");
    file.be32(at + 4, 4);
    file.be32(at + 8, 512);
    file.be32(at + 12, 1);
    for (place, value) in [(24, before), (32, data.len()), (216, list), (224, xml.len())] {
        file.be64(at + place, value as u64);
    }
    file.be32(at + 56, 1);
    file.be32(at + 60, 1);
    file.be32(at + 80, 2);
    file.be32(at + 84, 32);
    file.be32(at + 88, crc(data));
    file.be32(at + 488, 1);
    file.be64(at + 492, (size / SECTOR) as u64);
    file.0
}

/// Driver descriptor map, partition map, a driver, HFS in chunks of `len` bytes, free space.
fn parts(len: usize) -> Vec<Part> {
    let part = |name, chunks| Part { name, chunks };
    let (text, mixed) = (vec![b'x'; len], noise(len, 1));
    let hfs = vec![
        (ZLIB, text.clone()),
        (COMMENT, Vec::new()),
        (ZERO, vec![0; 3 * len]),
        (BZIP2, mixed.clone()),
        (IGNORE, vec![0; len]),
        (RAW, mixed),
        (ZLIB, text[..SECTOR].to_vec()),
    ];
    vec![
        part("Driver Descriptor Map (DDM : 0)", vec![(ZLIB, noise(SECTOR, 2))]),
        part("Apple (Apple_partition_map : 1)", vec![(ZLIB, noise(63 * SECTOR, 3))]),
        part("Macintosh (Apple_Driver_ATAPI : 2)", vec![(RAW, noise(8 * SECTOR, 4))]),
        part("disk image (Apple_HFS : 3)", hfs),
        part(" (Apple_Free : 4)", vec![(IGNORE, vec![0; 10 * SECTOR])]),
    ]
}

#[test]
fn partitions_are_put_together() {
    for (before, relative) in [(0, false), (0, true), (4096, false)] {
        let (file, guest) = image(&parts(32 << 10), before, relative);
        shows("dmg", &file, &guest);
    }
}

#[test]
fn tables_in_any_order_are_put_together() {
    let (file, guest) = image(&parts(16 << 10), 0, false);
    let start = file.windows(8).position(|w| w == b"<array>\n").unwrap() + 8;
    let stop = file.windows(10).position(|w| w == b"\t\t</array>").unwrap();
    let items: Vec<&[u8]> = split(&file[start..stop]);
    let turned: Vec<u8> = items.iter().rev().flat_map(|i| i.to_vec()).collect();
    assert_eq!(turned.len(), stop - start);
    let other = [&file[..start], &turned, &file[stop..]].concat();
    shows("dmg", &other, &guest);
}

/// The dictionaries of an array.
fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    const END: &[u8] = b"\t\t\t</dict>\n";
    let mut items = Vec::new();
    while let Some(at) = bytes.windows(END.len()).position(|w| w == END) {
        let (item, rest) = bytes.split_at(at + END.len());
        items.push(item);
        bytes = rest;
    }
    items
}

#[test]
fn chunks_of_many_mebibytes_are_read() {
    // Larger than the usual ones, and not of whole MiB; of bzip2 qemu-img has a module only.
    let plain: Vec<_> = parts((4 << 20) + 512)
        .into_iter()
        .map(|p| Part {
            chunks: p.chunks.into_iter().filter(|(k, _)| *k != BZIP2).collect(),
            ..p
        })
        .collect();
    let (file, guest) = image(&plain, 0, true);
    shows("dmg", &file, &guest);
    qemu_agrees("dmg", &file, &guest);
}
