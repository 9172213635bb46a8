//! What a flush may say after one that failed.

use std::io::ErrorKind;
use std::sync::Arc;

use super::tests::{created, open_on, stream_options};
use crate::image::NothingBelow;
use crate::options::Options;
use crate::storage::{Fault, FaultyStorage, MemoryStorage};

/// Writes, flushes until it works or three times, with a failure of each change in turn: a flush that works has everything stable.
fn a_flush_that_works_has_everything(bytes: &[u8]) {
    let content = [7; 4096];
    let work = |storage: &Arc<FaultyStorage>| {
        let image = open_on(storage.clone()).unwrap();
        image.write(0, &content, &NothingBelow)?;
        let mut done = image.flush();
        for _ in 0..2 {
            done = done.or_else(|_| image.flush());
        }
        done
    };
    let full = Arc::new(FaultyStorage::new(bytes.to_vec()));
    work(&full).unwrap();
    for n in 0..full.changes() {
        let storage = Arc::new(FaultyStorage::new(bytes.to_vec()));
        storage.plan(n, Fault::FailOnce(ErrorKind::StorageFull));
        if work(&storage).is_err() {
            continue;
        }
        let again = open_on(Arc::new(MemoryStorage::new("again", storage.contents()))).unwrap();
        let mut found = [0; 4096];
        again.read(0, &mut found).unwrap();
        assert!(found == content, "after a failure of change {n}");
    }
}

#[test]
fn a_flush_after_one_that_failed_does_not_say_that_a_new_table_is_stable() {
    let mut bytes = created(64 << 20, Options::new());
    for directory in [21 * 512, 30 * 512] {
        bytes[directory..directory + 8].fill(0);
    }
    a_flush_that_works_has_everything(&bytes);
}

#[test]
fn after_a_failed_flush_all_fail() {
    for options in [Options::new(), stream_options()] {
        let bytes = created(64 << 20, options);
        let storage = Arc::new(FaultyStorage::new(bytes));
        let image = open_on(storage.clone()).unwrap();
        image.write(0, &[7; 65536], &NothingBelow).unwrap();
        storage.plan(0, Fault::FailOnce(ErrorKind::StorageFull));
        image.flush().unwrap_err();
        let error = image.flush().unwrap_err().to_string();
        assert!(error.contains("an earlier flush failed"), "{error}");
    }
}
