//! Whether two folders hold the same disks.

use std::process::{Command, Output};

use e2e::tools::{arg, run};
use serde_json::Value;
use vdisk_engine::image::{Repair, Snapshots};
use vdisk_engine::{Chain, Control, ops};

use super::folder::{BASES, Folder, Shape};
use crate::support::{assert_clean, read_all};

/// Start, length, depth, present, zero of the ranges of a map, neighbours merged.
type Map = Vec<(u64, u64, u64, bool, bool)>;

/// The two folders of a sequence.
pub struct Pair<'a> {
    pub ours: &'a Folder,
    pub theirs: &'a Folder,
    pub shape: &'a Shape,
    /// What was done, for messages.
    pub done: &'a str,
    /// qemu-img left leaks in our folder.
    pub leaks: bool,
}

fn merged(entries: impl Iterator<Item = (u64, u64, u64, bool, bool)>) -> Map {
    let mut list = Map::new();
    for entry in entries {
        match list.last_mut() {
            Some(last) if (last.2, last.3, last.4) == (entry.2, entry.3, entry.4) => last.1 += entry.1,
            _ => list.push(entry),
        }
    }
    list
}

/// Runs qemu-img in a folder: data files are looked for from there.
fn qemu_img(folder: &Folder, args: &[&str]) -> Output {
    Command::new("qemu-img")
        .args(args)
        .current_dir(&folder.path)
        .output()
        .unwrap()
}

fn json(folder: &Folder, verb: &str) -> Value {
    let out = qemu_img(folder, &[verb, "--output=json", "-f", "qcow2", "top"]);
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{verb}: {e}: {out:?}"))
}

fn qemu_map(folder: &Folder) -> Map {
    let map = json(folder, "map");
    merged(map.as_array().unwrap().iter().map(|e| {
        let number = |key: &str| e[key].as_u64().unwrap();
        let flag = |key: &str| e[key].as_bool().unwrap();
        let zero = flag("zero") && !flag("data");
        (
            number("start"),
            number("length"),
            number("depth"),
            flag("present"),
            zero,
        )
    }))
}

fn our_map(chain: &Chain) -> Map {
    let entries = ops::map::map(chain, 0, u64::MAX).map(|e| e.unwrap());
    merged(entries.map(|e| (e.start, e.length, e.depth as u64, e.present, e.zero && !e.data)))
}

/// Without what may differ: holes of raw files below; a growing overlay needs zeroes only as far as the base reaches, where qemu-img
/// stores them to the end; our rebase stores zeroes as such, where qemu-img stores data.
fn comparable(map: &Map, rebased: bool, grown: bool) -> Map {
    merged(
        map.iter()
            .map(|&(start, len, depth, present, zero)| match (rebased, grown) {
                (true, true) => (start, len, 0, false, false),
                (false, true) if zero && depth == 0 => (start, len, 0, false, true),
                (true, _) => (start, len, depth, present, false),
                (false, _) => (start, len, depth, present, zero && depth == 0),
            }),
    )
}

/// What `info` tells, without what may differ: places, lengths, dates and names of folders.
fn info(folder: &Folder) -> Value {
    let mut info = json(folder, "info");
    let fields = info.as_object_mut().unwrap();
    for name in ["filename", "actual-size", "children", "full-backing-filename"] {
        fields.remove(name);
    }
    if let Some(Value::Array(list)) = fields.get_mut("snapshots") {
        for snapshot in list {
            for name in ["date-sec", "date-nsec"] {
                snapshot.as_object_mut().unwrap().remove(name);
            }
        }
    }
    info
}

fn all(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read(0, &mut bytes).unwrap();
    bytes
}

impl Pair<'_> {
    /// Everything that must be equal is.
    pub fn compare(&self) {
        let done = self.done;
        self.checks();
        self.content_by_qemu();
        assert_eq!(info(self.ours), info(self.theirs), "info differs: {done}");
        let chain = self.ours.chain("top", "qcow2", &[]).unwrap();
        let peer = self.theirs.chain("top", "qcow2", &[]).unwrap();
        let bytes = all(&chain);
        assert!(bytes == all(&peer), "we read other content: {done}");
        let seen = qemu_map(self.ours);
        assert_eq!(
            our_map(&chain),
            seen,
            "we and qemu see another map of our image: {done}"
        );
        let rebased = done.contains("safe: true }: true");
        // qemu-img's rebase copies subclusters, ours whole clusters.
        if !(rebased && self.shape.options.contains("extended_l2")) {
            let grown = done.contains("Resize");
            let [a, b] = [seen, qemu_map(self.theirs)].map(|map| comparable(&map, rebased, grown));
            assert_eq!(a, b, "maps differ: {done}");
        }
        self.snapshots_and_bitmaps(&chain, &peer);
        self.bases();
        if self.shape.options.contains("data_file_raw") {
            let raw = std::fs::read(self.ours.file("data")).unwrap();
            assert!(bytes == raw[..bytes.len()], "the raw data file differs: {done}");
        }
    }

    fn checks(&self) {
        let check = qemu_img(self.ours, &["check", "-f", "qcow2", "top"]);
        let code = check.status.code();
        assert!(
            code == Some(0) || self.leaks && code == Some(3),
            "{}{check:?}",
            self.done
        );
        for (folder, leaks) in [(self.ours, self.leaks), (self.theirs, true)] {
            let top = folder.alone("top", false).unwrap();
            let report = top.top().check(Repair::No, &Control::default()).unwrap();
            let bad = report.corruptions + report.check_errors + if leaks { 0 } else { report.leaks };
            assert_eq!(bad, 0, "{:?}: {:#?}\n{}", folder.path, report.messages, self.done);
        }
    }

    fn content_by_qemu(&self) {
        let name = |folder: &Folder| {
            let mut name = format!("driver=qcow2,file.filename={}", arg(&folder.file("top")));
            if self.shape.data_file {
                let data = folder.file("data");
                name += &format!(",data-file.driver=file,data-file.filename={}", arg(&data));
            }
            name
        };
        let same = run(
            "qemu-img",
            &["compare", "--image-opts", &name(self.ours), &name(self.theirs)],
        );
        assert!(same.status.success(), "{}{same:?}", self.done);
    }

    fn snapshots_and_bitmaps(&self, ours: &Chain, theirs: &Chain) {
        let done = self.done;
        let (a, b) = (ours.top().snapshots().unwrap(), theirs.top().snapshots().unwrap());
        for snapshot in b.list().unwrap() {
            let open = |list: &dyn Snapshots| read_all(&*list.open(&snapshot.id).unwrap());
            assert!(open(a) == open(b), "snapshot {} differs: {done}", snapshot.name);
        }
        let (a, b) = (ours.top().bitmaps().unwrap(), theirs.top().bitmaps().unwrap());
        let list = b.list().unwrap();
        assert_eq!(a.list().unwrap(), list, "{done}");
        for bitmap in list {
            let name = &bitmap.name;
            let (ours, theirs) = (a.dirty(name).unwrap(), b.dirty(name).unwrap());
            if done.contains("Resize") {
                // Zeroes that hide a longer base from a grown overlay count as changes for us.
                let covered = |&(at, len): &(u64, u64)| ours.iter().any(|o| o.0 <= at && at + len <= o.0 + o.1);
                assert!(theirs.iter().all(covered), "bitmap {name}: {ours:?} {theirs:?} {done}");
            } else {
                assert_eq!(ours, theirs, "bitmap {name}: {done}");
            }
        }
    }

    /// What commits changed.
    fn bases(&self) {
        for (name, format) in BASES {
            let open = |folder: &Folder| folder.chain(name, format, &[]).unwrap();
            let (a, b) = (open(self.ours), open(self.theirs));
            assert!(all(&a) == all(&b), "{name} differs: {}", self.done);
            if format == "qcow2" {
                assert_clean(a.top());
            }
        }
    }
}
