//! A copy that is cut off at any write goes on where its last mark says, and copies no more than one segment again.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use vdisk_engine::image::NothingBelow;
use vdisk_engine::ops::convert::{CopyOptions, CopyTarget, Mark, Segments, convert_in_segments};
use vdisk_engine::ops::{GuestSource, Walk};
use vdisk_engine::storage::{Fault, FaultyStorage, MemoryStorage};
use vdisk_engine::{Chain, Control, Error, Limits, OpenEnv, Result, StorageRef};

use crate::support::{Files, Passphrase, contents, drivers, node};

const SIZE: usize = 10 << 20;
const SEGMENT: u64 = 1 << 20;
/// A segment ends with a batch.
const BATCH: u64 = 4 << 20;

/// Data with holes, and with zeroes inside the data.
fn sample() -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for (i, b) in bytes[..5 << 20].iter_mut().enumerate() {
        *b = (i / 311 % 251) as u8;
    }
    bytes[(2 << 20) + 4096..3 << 20].fill(0);
    for (i, b) in bytes[7 << 20..].iter_mut().enumerate() {
        *b = (i / 97 % 253) as u8 + 1;
    }
    bytes
}

/// Counts the bytes that are read from it, and the looks at what it holds.
struct Counted<'a> {
    chain: &'a Chain,
    bytes: AtomicU64,
    looks: AtomicU64,
}

impl<'a> Counted<'a> {
    fn new(chain: &'a Chain) -> Self {
        let (bytes, looks) = Default::default();
        Self { chain, bytes, looks }
    }
}

impl GuestSource for Counted<'_> {
    fn len(&self) -> u64 {
        self.chain.virtual_size()
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        let mut walk = self.chain.walk();
        Box::new(move |offset, len| {
            self.looks.fetch_add(1, Ordering::Relaxed);
            walk.extent(offset, len)
        })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        GuestSource::read(self.chain, offset, buf)
    }
    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.chain.read_data(layer, offset, buf)
    }
}

struct Case<'a> {
    format: &'a str,
    source: &'a Chain,
    files: &'a Files,
    compress: bool,
    workers: usize,
}

impl Case<'_> {
    fn open(&self, storage: StorageRef, writable: bool) -> Result<Chain> {
        let limits = Limits::default();
        let env = OpenEnv::closed(&limits).with_gate(self.files).with_secrets(&Passphrase);
        Chain::open(node(storage, self.format), &if writable { env.writable() } else { env })
    }

    /// Bytes read from the source, and looks at it.
    fn copy(&self, storage: StorageRef, segments: &Segments<'_>) -> Result<(u64, u64)> {
        let target = self.open(storage, true)?;
        let can = vdisk_engine::formats::by_name(self.format)?.capabilities();
        let into = CopyTarget {
            image: target.top(),
            below: &NothingBelow,
            fresh: true,
            is_zero: can.zero,
        };
        let options = CopyOptions {
            workers: self.workers,
            compress: self.compress,
            ..CopyOptions::default()
        };
        let source = Counted::new(self.source);
        convert_in_segments(&source, &into, &options, segments, &Control::default())?;
        Ok((source.bytes.into_inner(), source.looks.into_inner()))
    }

    /// Cuts the copy off at a change and goes on. Gives the mark it went on from.
    fn cut_at(&self, new: &[u8], change: u64, fault: Fault) -> Option<Mark> {
        let faulty = Arc::new(FaultyStorage::new(new.to_vec()));
        faulty.plan(change, fault);
        let marks = Mutex::new(Vec::new());
        let save = |mark| {
            // The cut ends the process: it saves no marks any more.
            if faulty.changes() > change {
                return Err(Error::cancelled());
            }
            marks.lock().unwrap().push(mark);
            Ok(())
        };
        let _ = self.copy(faulty.clone(), &segments(None, &save));
        let mark = marks.lock().unwrap().last().copied();
        let bytes = if mark.is_some() {
            faulty.contents()
        } else {
            new.to_vec()
        };
        let left = Arc::new(MemoryStorage::new("disk", bytes));
        let (copied, _) = self.copy(left.clone(), &segments(mark, &|_| Ok(()))).unwrap();
        let shown = contents(&self.open(left, false).unwrap());
        let same = shown[..SIZE] == contents(self.source)[..];
        assert!(same, "{} cut at change {change}, gone on from {mark:?}", self.format);
        let rest = SIZE as u64 - mark.map_or(0, |mark| mark.done);
        assert!(copied <= rest + BATCH, "{}: {copied} bytes for {rest}", self.format);
        mark
    }
}

fn segments<'a>(from: Option<Mark>, save: &'a dyn Fn(Mark) -> Result<()>) -> Segments<'a> {
    Segments {
        bytes: SEGMENT,
        from,
        save,
    }
}

/// Where to ask costs as much as to copy, as on file systems that walk to the end of the data, segments must not ask again.
#[test]
fn segments_look_at_the_source_no_more_often_than_one_copy() {
    let files = Files::default();
    files.add("raw", sample());
    let source = files.open("raw", "raw", false).unwrap();
    let marks_and_looks = |bytes| {
        files.create("disk", "qcow2", SIZE as u64, None).unwrap();
        let saved = AtomicU64::new(0);
        let save = |_| {
            saved.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let case = Case {
            format: "qcow2",
            source: &source,
            files: &files,
            compress: false,
            workers: 2,
        };
        let from = None;
        let save: &dyn Fn(Mark) -> Result<()> = &save;
        let (_, looks) = case.copy(files.get("disk"), &Segments { bytes, from, save }).unwrap();
        (saved.into_inner(), looks)
    };
    let (one, whole) = marks_and_looks(u64::MAX);
    let (marks, in_segments) = marks_and_looks(SEGMENT);
    assert!(one == 1 && marks > 5, "{one} and {marks} marks");
    assert_eq!(in_segments, whole);
}

#[test]
fn a_copy_that_was_cut_off_goes_on() {
    let files = Files::default();
    files.add("raw", sample());
    let source = files.open("raw", "raw", false).unwrap();
    for driver in drivers(|d| d.capabilities().create && d.capabilities().write) {
        for (compress, workers) in [(false, 1), (false, 2), (true, 1)] {
            if compress && !driver.capabilities().compress {
                continue;
            }
            files.create("disk", driver.name(), SIZE as u64, None).unwrap();
            let new = files.get("disk").contents();
            let (format, source, files) = (driver.name(), &source, &files);
            let case = Case {
                format,
                source,
                files,
                compress,
                workers,
            };
            let whole = Arc::new(FaultyStorage::new(new.clone()));
            let resumable = case.open(whole.clone(), true).unwrap().top().resumable();
            if !resumable {
                continue;
            }
            case.copy(whole.clone(), &segments(None, &|_| Ok(()))).unwrap();
            let all = whole.changes();
            let mut marks = 0;
            for change in (0..all).step_by((all as usize / 9).max(1)) {
                let fault = if change % 2 == 0 { Fault::Freeze } else { Fault::Tear };
                marks += u64::from(case.cut_at(&new, change, fault).is_some());
            }
            assert!(marks > 2, "{format}: {marks} cuts of {all} changes came after a mark");
        }
    }
}

#[test]
fn a_mark_of_another_copy_is_refused() {
    let files = Files::default();
    files.add("raw", sample());
    let source = files.open("raw", "raw", false).unwrap();
    let target = files.add("disk", vec![0; SIZE]);
    let case = Case {
        format: "raw",
        source: &source,
        files: &files,
        compress: false,
        workers: 1,
    };
    let next = SIZE as u64 + 512;
    let refused = case.copy(target, &segments(Some(Mark { done: 0, next }), &|_| Ok(())));
    assert_eq!(refused.unwrap_err().kind(), vdisk_engine::ErrorKind::InvalidArgument);
}
