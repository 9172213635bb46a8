//! VHDX with logical sectors of 4096 bytes, and logs of several entries that were not done. Numbers: [MS-VHDX], sections named below.

use vdisk_engine::ErrorKind;

use super::support::{File, content, noise, open, shows, takes_writes};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// Where this test puts things.
const LOG: usize = MIB;
const METADATA: usize = 2 * MIB;
const BAT: usize = 3 * MIB;
/// "PAYLOAD_BLOCK_FULLY_PRESENT" (2.5.1.1).
const PRESENT: u64 = 6;

fn guid(text: &str) -> [u8; 16] {
    uuid::Uuid::parse_str(text).unwrap().to_bytes_le()
}

/// The CRC-32C at 4 of a structure (2.2).
fn seal(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// 2.2.2; `log_id`: zero where the log is empty.
fn header(sequence: u64, log_id: u8) -> Vec<u8> {
    let mut file = File(vec![0; PAGE]);
    file.put(0, b"head");
    file.le64(8, sequence);
    file.put(16, &[1; 16]);
    file.put(32, &[2; 16]);
    file.put(48, &[log_id; 16]);
    file.put(66, &[1, 0]);
    file.le32(68, MIB as u32);
    file.le64(72, LOG as u64);
    seal(&mut file.0);
    file.0
}

/// 2.2.3.
fn regions(bat: usize) -> Vec<u8> {
    let mut file = File(vec![0; 64 << 10]);
    file.put(0, b"regi");
    file.le32(8, 2);
    let regions = [
        ("2DC27766-F623-4200-9D64-115E9BFD4A08", BAT, bat),
        ("8B7CA206-4790-4B9A-B8FE-575F050F886E", METADATA, MIB),
    ];
    for (number, (id, offset, length)) in regions.into_iter().enumerate() {
        let at = 16 + 32 * number;
        file.put(at, &guid(id));
        file.le64(at + 16, offset as u64);
        file.le32(at + 24, length as u32);
        file.le32(at + 28, 1);
    }
    seal(&mut file.0);
    file.0
}

/// 2.6: items whose places are not in the table's order, as other writers have them.
fn metadata(block: u32, sector: u32, size: u64) -> Vec<u8> {
    let mut file = File(vec![0; MIB]);
    file.put(0, b"metadata");
    let items: [(&str, usize, Vec<u8>, u32); 5] = [
        ("BECA12AB-B2E6-4523-93EF-C309E000C746", 65_600, vec![3; 16], 6),
        (
            "CAA16737-FA36-4D43-B3B6-33F0AA44E76B",
            65_536,
            [block, 0].map(u32::to_le_bytes).concat(),
            4,
        ),
        (
            "2FA54224-CD1B-4876-B211-5DBED83BF4B8",
            65_560,
            size.to_le_bytes().to_vec(),
            6,
        ),
        (
            "CDA348C7-445D-4471-9CC9-E9885251C556",
            65_568,
            4096u32.to_le_bytes().to_vec(),
            6,
        ),
        (
            "8141BF1D-A96F-4709-BA47-F233A8FAAB5F",
            65_544,
            sector.to_le_bytes().to_vec(),
            6,
        ),
    ];
    file.put(10, &[items.len() as u8, 0]);
    for (number, (id, at, bytes, flags)) in items.into_iter().enumerate() {
        let entry = 32 + 32 * number;
        file.put(entry, &guid(id));
        file.le32(entry + 16, at as u32);
        file.le32(entry + 20, bytes.len() as u32);
        file.le32(entry + 24, flags);
        file.put(at, &bytes);
    }
    file.0
}

/// Everything before the blocks; the table is `bat` bytes.
fn image(block: u32, sector: u32, size: u64, bat: usize) -> File {
    let mut file = File::default();
    file.put(0, b"vhdxfile");
    file.put(64 << 10, &header(8, 0));
    file.put(128 << 10, &header(7, 0));
    file.put(192 << 10, &regions(bat));
    file.put(256 << 10, &regions(bat));
    file.put(METADATA, &metadata(block, sector, size));
    file.end(BAT + bat);
    file
}

fn entry(megabyte: usize) -> u64 {
    (megabyte as u64) << 20 | PRESENT
}

#[test]
fn sectors_of_4096_bytes_put_the_bitmap_entries_of_the_table_further_apart() {
    // 2.5.1: chunks of 2^23 x 4096 / 1 MiB = 32768 blocks, each with an entry for a bitmap behind it; 40,001 blocks.
    let blocks = 40_001usize;
    let mut file = image(MIB as u32, 4096, (blocks * MIB - 8192) as u64, MIB);
    let data = noise(MIB, 5);
    for (place, index) in [(4, 0), (5, 4096), (6, 32_767), (7, 32_769), (8, 40_001)] {
        file.le64(BAT + 8 * index, entry(place));
        file.put(place * MIB, &data);
        file.put(place * MIB, &[place as u8; 512]);
    }
    for write in [false, true] {
        let (chain, _) = open("vhdx", &file.0, write).unwrap();
        assert_eq!(chain.virtual_size(), (blocks * MIB - 8192) as u64);
        let mut buf = vec![0; 1024];
        for (block, first) in [
            (0usize, 4),
            (4096, 5),
            (32_767, 6),
            (32_768, 7),
            (40_000, 8),
            (1, 0),
            (4095, 0),
            (4097, 0),
        ] {
            chain.read((block * MIB) as u64, &mut buf).unwrap();
            assert!(buf[..512].iter().all(|b| *b == first), "block {block}");
            assert_eq!(buf[512] != 0, first != 0, "block {block}");
        }
    }
}

#[test]
fn disks_of_4096_byte_sectors_are_read_and_written_in_pieces_of_any_size() {
    let mut file = image(2 << 20, 4096, 5 << 20, MIB);
    let guest = [noise(2 * MIB, 1), vec![0; 2 * MIB], noise(MIB, 2)].concat();
    file.le64(BAT, entry(6));
    file.le64(BAT + 16, entry(4));
    file.put(4 * MIB, &guest[4 * MIB..]);
    file.put(6 * MIB, &guest[..2 * MIB]);
    shows("vhdx", &file.0, &guest);
    takes_writes("vhdx", &file.0, &guest);
}

/// A change of 4 KiB (2.3.1.3), or zeroes over a range (2.3.1.2).
enum Change {
    Data(usize, Vec<u8>),
    Zero(usize, usize),
}

/// One entry (2.3.1.1) whose log begins at page `tail`.
fn log_entry(sequence: u64, tail: usize, file_len: usize, changes: &[Change]) -> Vec<u8> {
    let heads = (64 + 32 * changes.len()).div_ceil(PAGE);
    let mut entry = File(vec![0; heads * PAGE]);
    entry.put(0, b"loge");
    entry.le32(12, (tail * PAGE) as u32);
    entry.le64(16, sequence);
    entry.le32(24, changes.len() as u32);
    entry.put(32, &[5; 16]);
    entry.le64(48, file_len as u64);
    entry.le64(56, file_len as u64);
    for (number, change) in changes.iter().enumerate() {
        let at = 64 + 32 * number;
        entry.le64(at + 24, sequence);
        match change {
            Change::Zero(offset, len) => {
                entry.put(at, b"zero");
                entry.le64(at + 8, *len as u64);
                entry.le64(at + 16, *offset as u64);
            }
            Change::Data(offset, bytes) => {
                entry.put(at, b"desc");
                entry.put(at + 4, &bytes[PAGE - 4..]);
                entry.put(at + 8, &bytes[..8]);
                entry.le64(at + 16, *offset as u64);
                let sector = entry.0.len();
                entry.put(sector, b"data");
                entry.le32(sector + 4, (sequence >> 32) as u32);
                entry.put(sector + 8, &bytes[8..PAGE - 4]);
                entry.le32(sector + PAGE - 4, sequence as u32);
            }
        }
    }
    let len = entry.0.len();
    entry.le32(8, len as u32);
    seal(&mut entry.0);
    entry.0
}

/// Puts an entry at a page of the log, round its end.
fn put_entry(file: &mut File, page: usize, entry: &[u8]) -> usize {
    for (number, bytes) in entry.chunks(PAGE).enumerate() {
        file.put(LOG + (page + number) % 256 * PAGE, bytes);
    }
    (page + entry.len() / PAGE) % 256
}

/// A page of the table with these entries.
fn table(entries: &[(usize, u64)]) -> Vec<u8> {
    let mut page = File(vec![0; PAGE]);
    for (number, value) in entries {
        page.le64(8 * number, *value);
    }
    page.0
}

/// Three entries from page `start` on, with numbers from `first` on: the table gets block 0, then block 1 as well and zeroes over a MiB that
/// holds old bytes, then block 2. Around them lies what must not count. The file and what the guest sees.
fn dirty(start: usize, first: u64) -> (File, Vec<u8>) {
    let mut file = image(MIB as u32, 512, 3 << 20, MIB);
    let guest = [noise(MIB, 1), vec![0; MIB], noise(MIB, 3)].concat();
    file.put(4 * MIB, &guest[..MIB]);
    file.put(5 * MIB, &noise(MIB, 9));
    file.put(6 * MIB, &guest[2 * MIB..]);
    let len = file.0.len();
    file.put(64 << 10, &header(9, 5));
    let (a, b, c) = (entry(4), entry(5), entry(6));
    let at = |n: u64| first + n;
    // Older entries that were done long ago: their numbers do not lead to the first.
    let old = log_entry(
        first - 2,
        (start + 60) % 256,
        len,
        &[Change::Data(BAT, table(&[(0, c)]))],
    );
    put_entry(&mut file, (start + 60) % 256, &old);
    let one = log_entry(
        first,
        start,
        len,
        &[
            Change::Data(BAT, table(&[(0, a)])),
            Change::Data(BAT + PAGE, vec![0; PAGE]),
        ],
    );
    let next = put_entry(&mut file, start, &one);
    // More descriptors than one page holds.
    let mut two: Vec<_> = (0..200).map(|n| Change::Zero(5 * MIB + n * PAGE, PAGE)).collect();
    two.extend([Change::Zero(5 * MIB, MIB), Change::Data(BAT, table(&[(0, a), (1, b)]))]);
    let next = put_entry(&mut file, next, &log_entry(at(1), start, len, &two));
    let three = log_entry(
        at(2),
        start,
        len,
        &[Change::Data(BAT, table(&[(0, a), (1, b), (2, c)]))],
    );
    let next = put_entry(&mut file, next, &three);
    // One that was being written when the power went: its sum is wrong.
    let mut torn = log_entry(at(3), start, len, &[Change::Data(BAT, table(&[]))]);
    torn[PAGE + 100] ^= 1;
    put_entry(&mut file, next, &torn);
    (file, guest)
}

#[test]
fn a_log_of_several_entries_is_done_wherever_it_begins() {
    // Page 255: it goes round in the middle of the first entry; 250: in a later one. The numbers cross 32 bits, which data are marked with
    // in halves.
    for (start, first) in [(0, 3), (250, 0xffff_fffe), (253, 0xffff_ffff), (255, u64::MAX - 5)] {
        let (file, guest) = dirty(start, first);
        let (chain, _) = open("vhdx", &file.0, false).unwrap_or_else(|e| panic!("{start}: {e}"));
        assert!(content(&chain) == guest, "read only, from page {start}");
        drop(chain);
        let after = takes_writes("vhdx", &file.0, &guest);
        assert_eq!(after[4 * MIB + 4096..5 * MIB], guest[4096..MIB], "from page {start}");
    }
}

#[test]
fn entries_of_another_log_and_gaps_in_the_numbers_do_not_count() {
    let (mut file, guest) = dirty(250, 50);
    // The entry behind the torn one goes on with the right number, but nobody can get there.
    let beyond = log_entry(54, 250, 7 * MIB, &[Change::Data(BAT, table(&[]))]);
    put_entry(&mut file, 30, &beyond);
    let (chain, _) = open("vhdx", &file.0, false).unwrap();
    assert!(content(&chain) == guest);
    drop(chain);
    // Of another log: newer, whole, and not ours.
    let mut foreign = log_entry(90, 100, 7 * MIB, &[Change::Data(BAT, table(&[]))]);
    foreign[32..48].fill(6);
    seal(&mut foreign);
    put_entry(&mut file, 100, &foreign);
    let (chain, _) = open("vhdx", &file.0, false).unwrap();
    assert!(content(&chain) == guest);
}

#[test]
fn a_log_whose_last_entry_needs_a_lost_one_is_refused() {
    let (mut file, _) = dirty(10, 50);
    file.0[LOG + 10 * PAGE + 200] ^= 1;
    let error = open("vhdx", &file.0, false).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}
