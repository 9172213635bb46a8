//! The catalogue of hostile images, by number: a malformed field, a value, and what must come of it. Numbers are those of the list of cases
//! that every disk image tool should survive (1 to 31 qcow2, 32 qcow, 33 qed, 34 vdi, 35 vhd, 36 vhdx, 37 vmdk, 38 parallels, 39 bochs,
//! 40 cloop, 41 dmg, 42 luks, 43 and 44 polyglots and false claims, 46 nbd, 47 http, 48 archives).
//!
//! Each image goes through [`exercise`]: info, check, map, read, convert and a writable open, with time, memory and foreign names watched; then
//! its verdict is looked at.

mod luks;
mod qcow2;
mod rows;
mod small;
mod udif;
mod vhd;
mod vhdx;
mod vmdk;

pub use rows::{put, sealed};

use std::collections::BTreeMap;
use std::sync::Arc;

use vdisk_engine::image::Repair;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Chain, Control, ErrorKind, Limits, OpenEnv};

use crate::exercise::{Passphrase, exercise, with_key};
use crate::samples::GUEST;

/// What must come of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Opening it fails, for reading as for writing.
    Refused,
    /// Opening it fails, or reading the first 192 KiB does; it is not written.
    Unreadable,
    /// Opens or not; `check` reports corruption or refuses it, and reads give the guest's bytes or an error.
    Damaged,
    /// It may be read; opening it for writing fails or mends it first.
    ReadOnly,
    /// It is a good image.
    Good,
}

/// One image.
pub struct Case {
    /// Its number in the catalogue.
    pub number: u8,
    /// Field and value.
    pub what: String,
    /// The format it is opened as.
    pub format: &'static str,
    /// The file.
    pub file: File,
    /// What must come of it.
    pub verdict: Verdict,
}

impl Case {
    /// Its name in messages.
    pub fn name(&self) -> String {
        format!("case {}, {}: {}", self.number, self.format, self.what)
    }
}

/// A file without its zeroes: all cases together would take gigabytes.
pub struct File {
    len: usize,
    pages: Vec<(usize, Vec<u8>)>,
}

const PAGE: usize = 4096;

impl From<Vec<u8>> for File {
    fn from(bytes: Vec<u8>) -> Self {
        let pages = bytes.chunks(PAGE).enumerate();
        let stored = pages.filter(|(_, page)| page.iter().any(|b| *b != 0));
        Self {
            len: bytes.len(),
            pages: stored.map(|(number, page)| (number * PAGE, page.to_vec())).collect(),
        }
    }
}

impl File {
    /// The file whole.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        for (at, page) in &self.pages {
            bytes[*at..at + page.len()].copy_from_slice(page);
        }
        bytes
    }
}

/// Cases that are no image alone: what else tests them.
const ELSEWHERE: &[(u8, &str)] = &[
    (10, "hostile names::"),
    (11, "hostile names::"),
    (43, "vdisk-service disk::inspect::"),
    (44, "vdisk-service disk::inspect::"),
    (45, "vdisk-service disk::content::"),
    (46, "vdisk-engine storage::nbd::"),
    (47, "vdisk-engine storage::http::"),
    (48, "vdisk-service disk::inspect::"),
];

/// The catalogue.
pub fn all() -> Vec<Case> {
    [
        qcow2::cases(),
        small::cases(),
        vhd::cases(),
        vhdx::cases(),
        vmdk::cases(),
        udif::cases(),
        luks::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn chain(case: &Case, env: &OpenEnv<'_>) -> Result<Chain, vdisk_engine::Error> {
    let storage = Arc::new(MemoryStorage::new("hostile", case.file.bytes()));
    let node = vdisk_engine::Node::new(storage, case.format).without_backing();
    Chain::open(with_key(node), env)
}

/// Why the verdict is not what it must be.
fn wrong(case: &Case) -> Option<String> {
    let limits = Limits::untrusted();
    let env = OpenEnv::closed(&limits).with_secrets(&Passphrase);
    let (reading, writing) = (chain(case, &env), chain(case, &env.writable()));
    let first = |chain: &Chain| {
        let mut buf = vec![0; chain.virtual_size().min(192 << 10) as usize];
        chain.read(0, &mut buf)
    };
    let read = reading.as_ref().map(first);
    let refused = |result: &Result<Chain, vdisk_engine::Error>| result.as_ref().err().is_some_and(typed);
    let good = match case.verdict {
        // What can never be written says so whatever else is wrong with it.
        Verdict::Refused => refused(&reading) && refused(&writing),
        Verdict::Unreadable => !matches!(read, Ok(Ok(()))),
        Verdict::Damaged => damaged(case, &env),
        Verdict::ReadOnly => reading.is_ok() && writing.as_ref().map_or_else(typed, |c| c.top().close().is_ok()),
        Verdict::Good => matches!(read, Ok(Ok(()))),
    };
    let shown =
        |r: &Result<Chain, vdisk_engine::Error>| r.as_ref().map_or_else(|e| e.to_string(), |_| "opens".to_owned());
    (!good).then(|| {
        format!(
            "expected {:?}: reading {}; writing {}",
            case.verdict,
            shown(&reading),
            shown(&writing)
        )
    })
}

fn typed(error: &vdisk_engine::Error) -> bool {
    error.kind() != ErrorKind::Io
}

fn damaged(case: &Case, env: &OpenEnv<'_>) -> bool {
    match chain(case, &env.for_check()).map(|c| c.top().check(Repair::No, &Control::default())) {
        Ok(Ok(report)) => report.corruptions + report.check_errors > 0,
        Ok(Err(error)) | Err(error) => typed(&error),
    }
}

#[test]
fn every_case_has_its_verdict() {
    let _alone = crate::alone();
    let (mut counts, mut bad) = (BTreeMap::<u8, u32>::new(), Vec::new());
    for case in all() {
        let what = case.name();
        // Elsewhere in the file or with another key there is noise, which no reader can tell from data.
        let noise = matches!(case.format, "luks" | "bochs") || case.verdict == Verdict::Good;
        let guest = (!noise).then_some(&GUEST[..]);
        if std::panic::catch_unwind(|| exercise(case.format, &case.file.bytes(), guest, &what)).is_err() {
            bad.push(what.clone());
        }
        bad.extend(wrong(&case).map(|why| format!("{what}: {why}")));
        *counts.entry(case.number).or_default() += 1;
    }
    let total: u32 = counts.values().sum();
    println!("{total} hostile cases: {counts:?}; elsewhere: {ELSEWHERE:?}");
    assert!(bad.is_empty(), "{} wrong:\n{}", bad.len(), bad.join("\n"));
    let missing: Vec<_> = (1..=48)
        .filter(|n| !counts.contains_key(n) && !ELSEWHERE.iter().any(|(number, _)| number == n))
        .collect();
    assert!(missing.is_empty(), "cases without a test: {missing:?}");
    assert!(total >= 600, "{total} cases");
}
