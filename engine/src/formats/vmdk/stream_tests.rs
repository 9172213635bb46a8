//! streamOptimized as a stream.

use std::sync::Arc;

use libdeflater::{CompressionLvl, Compressor};

use super::tests::{GRAIN, assert_clean, created, open_on, stream_options, whole};
use crate::deflate::Encoder;
use crate::formats::testing::{All, seen};
use crate::image::{NothingBelow, Scratch};
use crate::storage::MemoryStorage;
use crate::{ErrorKind, StorageRef};

#[test]
fn many_workers_make_the_stream_that_one_makes() {
    let size = 33 << 20;
    let data: Vec<u8> = (0..size as usize).map(|i| (i / 1000 * 7) as u8).collect();
    let one: StorageRef = Arc::new(MemoryStorage::new("d.vmdk", created(size, stream_options())));
    let image = open_on(one.clone()).unwrap();
    image.write(0, &data, &NothingBelow).unwrap();
    image.close().unwrap();
    let many = Arc::new(MemoryStorage::new("d.vmdk", created(size, stream_options())));
    let image = open_on(many.clone()).unwrap();
    let bulk = image.bulk().unwrap();
    assert!(bulk.encodes() && bulk.unit() == GRAIN);
    let mut placed = Vec::new();
    for (number, grain) in data.chunks(GRAIN as usize).enumerate() {
        let bytes = bulk.encode(grain, &mut Scratch::default()).unwrap().unwrap();
        let at = bulk
            .place(number as u64 * GRAIN, grain.len() as u64, Some(bytes.len() as u64))
            .unwrap();
        placed.push((at, bytes));
    }
    placed
        .iter()
        .rev()
        .for_each(|(at, bytes)| bulk.store(at, bytes).unwrap());
    assert!(whole(image.as_ref()) == data, "readable before the end is written");
    image.close().unwrap();
    let mut a = vec![0; one.len().unwrap() as usize];
    one.read_at(0, &mut a).unwrap();
    assert!(a == many.contents());
    assert_clean(open_on(many).unwrap().as_ref());
}

#[test]
fn a_stream_takes_whole_grains_in_rising_order_once() {
    let storage: StorageRef = Arc::new(MemoryStorage::new("d.vmdk", created(4 * GRAIN + 512, stream_options())));
    let image = open_on(storage.clone()).unwrap();
    let refused = |offset, len: usize| image.write(offset, &vec![1; len], &NothingBelow).unwrap_err().kind();
    assert_eq!(refused(512, 512), ErrorKind::Unsupported);
    image.write(2 * GRAIN, &[1; GRAIN as usize], &NothingBelow).unwrap();
    assert_eq!(refused(GRAIN, GRAIN as usize), ErrorKind::Unsupported);
    assert_eq!(refused(2 * GRAIN, GRAIN as usize), ErrorKind::Unsupported);
    image.flush().unwrap();
    image.write(4 * GRAIN, &[2; 512], &NothingBelow).unwrap();
    image.close().unwrap();
    let content = whole(image.as_ref());
    let again = open_on(storage).unwrap();
    assert!(whole(again.as_ref()) == content && content[4 * GRAIN as usize..] == [2; 512]);
    assert_eq!(
        again.write(0, &[1; GRAIN as usize], &NothingBelow).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn a_flushed_stream_survives_a_crash_of_what_follows() {
    let bytes = created(600 * GRAIN, stream_options());
    let storage = Arc::new(MemoryStorage::new("d.vmdk", bytes));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[1; GRAIN as usize], &NothingBelow).unwrap();
    image.flush().unwrap();
    let flushed = storage.contents();
    image.write(550 * GRAIN, &[2; GRAIN as usize], &NothingBelow).unwrap();
    let after = storage.contents();
    assert!(
        after[..flushed.len()] == flushed,
        "what was flushed is not written again"
    );
}

#[test]
fn a_stream_can_be_followed_by_its_markers() {
    let storage = Arc::new(MemoryStorage::new("d.vmdk", created(600 * GRAIN, stream_options())));
    let image = open_on(storage.clone()).unwrap();
    for grain in [0, 5, 511, 512, 599] {
        image.write(grain * GRAIN, &[1; GRAIN as usize], &NothingBelow).unwrap();
    }
    image.close().unwrap();
    let bytes = storage.contents();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut kinds) = (GRAIN as usize, Vec::new());
    while at < bytes.len() {
        let (value, size, kind) = (word(at), word(at + 8), word(at + 12));
        let name = match (size, kind) {
            (0, 0) => "end".to_owned(),
            (0, 1) => "table".into(),
            (0, 2) => "directory".into(),
            (0, 3) => "footer".into(),
            _ => format!("grain {}", value / 128),
        };
        kinds.push(name);
        let data = if size > 0 {
            (12 + size as usize).next_multiple_of(512)
        } else {
            512 + value as usize * 512
        };
        at += data;
    }
    let expected = "grain 0,grain 5,grain 511,table,grain 512,grain 599,table,directory,footer,end";
    assert_eq!(kinds.join(","), expected);
}

#[test]
fn zeroes_over_a_base_with_data_are_stored_in_a_stream() {
    let storage: StorageRef = Arc::new(MemoryStorage::new("d.vmdk", created(6 * GRAIN + 512, stream_options())));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[2; GRAIN as usize], &All(0x11)).unwrap();
    image.write_zeroes(GRAIN, 2 * GRAIN, true, &All(0x11)).unwrap();
    image.write(3 * GRAIN, &[4; GRAIN as usize], &All(0x11)).unwrap();
    image.write_zeroes(4 * GRAIN, GRAIN, true, &NothingBelow).unwrap();
    image.write_zeroes(5 * GRAIN, GRAIN + 512, true, &All(0x11)).unwrap();
    let again = image.write_zeroes(0, GRAIN, true, &All(0x11)).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Unsupported);
    image.close().unwrap();
    let image = open_on(storage).unwrap();
    let content = seen(image.as_ref(), 0x11);
    let grains = content
        .chunks(GRAIN as usize)
        .map(|g| (g[0], g.iter().all(|b| *b == g[0])));
    let expected = [2, 0, 0, 4, 0x11, 0, 0].map(|byte| (byte, true));
    assert_eq!(
        grains.collect::<Vec<_>>(),
        expected,
        "a grain was left to the base alone where zeroes were not said"
    );
    assert_clean(image.as_ref());
}

/// A stream of three grains and its content; the header's flags are at 8, the algorithm at 77.
fn a_stream() -> (Vec<u8>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new("d.vmdk", created(3 * GRAIN, stream_options())));
    let image = open_on(storage.clone()).unwrap();
    let data: Vec<u8> = (0..3 * GRAIN).map(|i| (i / 700) as u8).collect();
    image.write(0, &data, &NothingBelow).unwrap();
    image.close().unwrap();
    (storage.contents(), data)
}

/// qemu-img 10.0.2 reads the first two right, and takes compressed bytes for the guest's in the last three.
#[test]
fn compressed_grains_are_never_taken_for_guest_data() {
    let (good, data) = a_stream();
    for (flags, algorithm, readable) in [
        (0x30001u32, 1u16, true),
        (0x20001, 1, true),
        (0x10001, 1, false),
        (0x1, 1, false),
        (0x30001, 0, true),
        (0x10001, 0, false),
        (0x20001, 0, false),
    ] {
        let mut bytes = good.clone();
        for header in [0, good.len() - 1024] {
            bytes[header + 8..header + 12].copy_from_slice(&flags.to_le_bytes());
            bytes[header + 77..header + 79].copy_from_slice(&algorithm.to_le_bytes());
        }
        let mut seen = vec![0; data.len()];
        let read = open_on(Arc::new(MemoryStorage::new("d.vmdk", bytes))).and_then(|image| image.read(0, &mut seen));
        assert_eq!(read.is_ok(), readable, "{flags:#x} {algorithm}: {read:?}");
        assert!(!readable || seen == data, "{flags:#x} {algorithm}");
    }
}

#[test]
fn a_footer_need_not_repeat_where_the_descriptor_is() {
    let (mut bytes, data) = a_stream();
    let footer = bytes.len() - 1024;
    assert_eq!(bytes[footer..footer + 4], *b"KDMV");
    bytes[footer + 28..footer + 44].fill(0);
    let image = open_on(Arc::new(MemoryStorage::new("d.vmdk", bytes))).unwrap();
    assert!(whole(image.as_ref()) == data);
}

/// An image whose directory lost its entries reads as zeroes, but holds grains: it is not taken for a new one.
#[test]
fn an_empty_directory_does_not_make_a_stream_new() {
    let (mut bytes, _) = a_stream();
    let footer = bytes.len() - 1024;
    let directory = u64::from_le_bytes(bytes[footer + 56..footer + 64].try_into().unwrap()) as usize * 512;
    bytes[directory..directory + 4].fill(0);
    let storage = Arc::new(MemoryStorage::new("d.vmdk", bytes.clone()));
    let image = open_on(storage.clone()).unwrap();
    assert!(whole(image.as_ref()).iter().all(|b| *b == 0));
    assert!(image.bulk().is_none());
    image.write(0, &vec![1; GRAIN as usize], &NothingBelow).unwrap_err();
    image.close().unwrap();
    assert!(storage.contents() == bytes);
}

/// The deflate stream that a new image with grains of so many bytes makes of a grain.
fn stored(grain: usize, data: &[u8], scratch: &mut Scratch) -> Vec<u8> {
    let mut bytes = created(2 * GRAIN, stream_options());
    // The header and the footer, which an end-of-stream marker follows.
    for at in [0, bytes.len() - 1024] {
        bytes[at + 20..at + 28].copy_from_slice(&(grain as u64 / 512).to_le_bytes());
    }
    let image = open_on(Arc::new(MemoryStorage::new("d.vmdk", bytes))).unwrap();
    let stored = image.bulk().unwrap().encode(data, scratch).unwrap().unwrap();
    let len = u32::from_le_bytes(stored[8..12].try_into().unwrap());
    stored[12..][..len as usize].to_vec()
}

fn by_libdeflate(level: i32, data: &[u8]) -> Vec<u8> {
    let mut codec = Compressor::new(CompressionLvl::new(level).unwrap());
    let mut bytes = vec![0; codec.zlib_compress_bound(data.len())];
    let len = codec.zlib_compress(data, &mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

#[test]
fn grains_are_compressed_by_the_chosen_level_or_by_the_own_encoder() {
    let data: Vec<u8> = (0..2 * GRAIN).map(|i| ((i * i) >> 11) as u8).collect();
    let grain = &data[..GRAIN as usize];
    let mut own = Vec::new();
    Encoder::default().zlib(grain, &mut own).unwrap();
    let mut scratch = Scratch::default();
    for _ in 0..2 {
        assert!(stored(grain.len(), grain, &mut scratch) == own);
    }
    for level in [0, 4, 9] {
        let mut scratch = Scratch::with_level(Some(level));
        assert!(
            stored(grain.len(), grain, &mut scratch) == by_libdeflate(level, grain),
            "{level}"
        );
    }
    let large = stored(data.len(), &data, &mut Scratch::default());
    assert!(large == by_libdeflate(4, &data), "a grain of 128 KiB");
}
