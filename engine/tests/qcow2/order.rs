//! What is stable before what, after a write of the tables that failed in the middle.

use std::sync::Arc;

use vdisk_engine::Image;
use vdisk_engine::image::NothingBelow;
use vdisk_engine::options::Options;
use vdisk_engine::storage::{Fault, FaultyStorage, LoggedOp, MemoryStorage};

use crate::support::{Files, assert_clean};

/// Guest bytes of an L2 table, and L1 entries of a sector, with clusters of 512 bytes.
const SPAN: u64 = 64 * 512;
const SECTOR_ENTRIES: u64 = 64;

fn place_of(change: &LoggedOp) -> Option<u64> {
    match change {
        LoggedOp::Write { offset, .. } => Some(*offset),
        _ => None,
    }
}

/// Makes two L2 tables, whose L1 entries stand in two sectors.
fn two_tables(image: &dyn Image) -> vdisk_engine::Result<()> {
    image.write(0, &[1; 512], &NothingBelow)?;
    image.write(SECTOR_ENTRIES * SPAN, &[2; 512], &NothingBelow)?;
    image.flush()
}

/// The file's L1 table names one of two new L2 tables when the write of the other entry fails. From then on the first one is written only
/// after a flush of the data that it points to, like any table that the file knows.
#[test]
fn a_table_that_the_file_may_know_is_written_behind_its_data() {
    let files = Files::default();
    let memory = Arc::new(MemoryStorage::empty());
    let options = Options::new().with("cluster_size", "512");
    files.create_on(memory.clone(), 2 * SECTOR_ENTRIES * SPAN, options, None);
    let start = memory.contents();
    let l1 = u64::from_be_bytes(start[40..48].try_into().unwrap());
    let storage = Arc::new(FaultyStorage::new(start.clone()));
    two_tables(&*files.open_on(storage.clone(), true).unwrap()).unwrap();
    let second = storage
        .log()
        .iter()
        .position(|op| place_of(op) == Some(l1 + 512))
        .unwrap();

    let storage = Arc::new(FaultyStorage::new(start));
    let image = files.open_on(storage.clone(), true).unwrap();
    storage.plan(second as u64, Fault::FailOnce(std::io::ErrorKind::Other));
    assert!(two_tables(&*image).is_err());
    let stored = storage.contents();
    let entry = u64::from_be_bytes(stored[l1 as usize..l1 as usize + 8].try_into().unwrap());
    let table = entry & ((1 << 56) - 1);
    assert_ne!(table, 0, "the file names the first table");
    let before = storage.log().len();
    image.write(512, &[3; 512], &NothingBelow).unwrap();
    image.flush().unwrap();
    let log = storage.log().split_off(before);
    let written = log.iter().position(|op| place_of(op) == Some(table)).unwrap();
    let flushed = log.iter().position(|op| *op == LoggedOp::Flush).unwrap();
    let data = log
        .iter()
        .position(|op| matches!(op, LoggedOp::Write { data, .. } if *data == [3; 512]));
    assert!(data.unwrap() < flushed && flushed < written, "{log:?}");
    image.close().unwrap();
    assert_clean(&*image);
}
