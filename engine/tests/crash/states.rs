//! Building the states that a power cut can leave, and looking at each.

use vdisk_engine::image::{CheckReport, Repair, Resize};
use vdisk_engine::storage::LoggedOp;
use vdisk_engine::{Chain, Control, Error, ErrorKind, Result, formats};

use crate::lab::{Files, Lab};
use crate::model::Model;

/// A script over a lab whose image is the file `top`.
pub struct Scenario<'s> {
    pub name: String,
    pub format: &'s str,
    pub start: Files,
    /// Largest virtual size it reaches.
    pub most: u64,
    /// It begins with a damaged image, so that each state has to be mended.
    pub damaged: bool,
    pub script: &'s dyn Fn(&Lab, &mut Model<'_>) -> Result<()>,
}

/// A small generator, so that a state is its seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }
}

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What becomes of the changes after the last flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    All,
    None,
    AllButOne,
    Some,
    Torn,
}

impl Scenario<'_> {
    /// Looks at power-cut states; gives their number.
    pub fn power_cuts(&self) -> usize {
        let lab = Lab::new(&self.start);
        let mut model = self.model(&lab);
        (self.script)(&lab, &mut model).unwrap_or_else(|e| panic!("{}: {e:?}", self.name));
        let log = lab.log();
        let wanted = number("VDISK_CRASH_STATES", 40) as usize;
        let mut random = Random::new(number("VDISK_SEED", 1));
        let kinds = [Kept::All, Kept::None, Kept::AllButOne, Kept::Some, Kept::Torn];
        let possible = (log.len() + 1) * kinds.len();
        for index in 0..wanted.min(possible) {
            // Spread over the log and the kinds; all of them where there are fewer than wanted.
            let point = if wanted >= possible {
                index
            } else {
                random.below(possible)
            };
            let (cut, kept) = (point / kinds.len(), kinds[point % kinds.len()]);
            let files = state(&self.start, &log[..cut], kept, &mut random);
            let what = format!(
                "{}: power cut after {cut} of {} changes, kept {kept:?}",
                self.name,
                log.len()
            );
            self.look(files, &model, cut, index.is_multiple_of(10), &what);
        }
        wanted.min(possible)
    }

    pub fn model<'l>(&self, lab: &'l Lab) -> Model<'l> {
        Model::new(lab, &lab.chain("top", self.format, &[]).unwrap(), self.most)
    }

    /// Opens a state for reading and for writing, mends it where it says so, reads and checks it.
    pub fn look(&self, files: Files, model: &Model<'_>, changes: usize, ask_peer: bool, what: &str) {
        let lab = Lab::new(&files);
        match lab.chain("top", self.format, &[]) {
            Ok(chain) => model.check(&chain, changes, &format!("{what}, read-only")),
            // A journal or a mark may have to be dealt with first.
            Err(error) => assert_ne!(error.kind(), ErrorKind::Io, "{what}: {error:?}"),
        }
        let chain = self.open_or_mend(&lab).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        model.check(&chain, changes, what);
        if formats::by_name(self.format).unwrap().capabilities().check {
            let report = check(&chain, Repair::No).unwrap_or_else(|e| panic!("{what}: {e:?}"));
            assert_eq!(
                report.corruptions + report.check_errors,
                0,
                "{what}: {:#?}",
                report.messages
            );
        }
        // It can still be used.
        let size = chain.virtual_size();
        let result = chain
            .write(size / 1024 * 512, &[0xee; 512])
            .and_then(|()| chain.top().close());
        result.unwrap_or_else(|e| panic!("{what}: cannot be written: {e:?}"));
        drop(chain);
        self.grow(&lab, what);
        if ask_peer && self.format == "qcow2" && e2e::tools::have(&["qemu-img"]) {
            self.ask_qemu(&lab, what);
        }
    }

    /// What a larger disk gets is zeroes, whatever was there once.
    fn grow(&self, lab: &Lab, what: &str) {
        let can = formats::by_name(self.format).unwrap().capabilities();
        if !(can.grow && can.zero) {
            return;
        }
        let chain = lab.chain("top", self.format, &[0]).unwrap();
        let from = chain.virtual_size() as usize;
        let virtual_size = (from as u64).max(self.most) + (1 << 20);
        let to = Resize {
            virtual_size,
            ..Resize::default()
        };
        match vdisk_engine::ops::resize::resize(&chain, &to) {
            // Version 2 with snapshots, a bitmap that was in use.
            Err(error) if error.kind() == ErrorKind::Unsupported => return,
            done => done.unwrap_or_else(|e| panic!("{what}: cannot grow: {e:?}")),
        }
        chain.top().close().unwrap();
        drop(chain);
        let chain = lab.chain("top", self.format, &[]).unwrap();
        let mut bytes = vec![0; chain.virtual_size() as usize];
        chain.read(0, &mut bytes).unwrap();
        let stale = bytes[from..].iter().position(|byte| *byte != 0);
        assert_eq!(stale, None, "{what}: what was past the end of {from} bytes came back");
    }

    fn open_or_mend(&self, lab: &Lab) -> Result<Chain> {
        let opened = match self.damaged {
            true => Err(Error::corrupt("damaged")),
            false => lab.chain("top", self.format, &[0]),
        };
        opened.or_else(|error| {
            if !formats::by_name(self.format)?.capabilities().repair {
                return Err(error);
            }
            let image = lab.for_check("top", self.format)?;
            check(&image, Repair::All)?;
            image.top().close()?;
            drop(image);
            lab.chain("top", self.format, &[0])
        })
    }

    fn ask_qemu(&self, lab: &Lab, what: &str) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in lab.contents() {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let out = std::process::Command::new("qemu-img")
            .args(["check", "--object", "secret,id=key,data=open sesame", "--image-opts"])
            .arg(format!(
                "driver={},file.filename=top,encrypt.key-secret=key",
                self.format
            ))
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(matches!(out.status.code(), Some(0 | 3)), "{what}: {out:?}");
    }
}

pub fn check(chain: &Chain, repair: Repair) -> Result<CheckReport> {
    chain.top().check(repair, &Control::default())
}

/// The files after `log`, where what no flush covers is kept as `kept` says.
fn state(start: &Files, log: &[(usize, LoggedOp)], kept: Kept, random: &mut Random) -> Files {
    let mut files = start.clone();
    let open: Vec<usize> = (0..log.len()).filter(|i| !is_stable(log, *i)).collect();
    let special = match kept {
        Kept::Torn => open.last().copied(),
        _ => open.get(random.below(open.len())).copied(),
    };
    for (i, (file, op)) in log.iter().enumerate() {
        let bytes = &mut files[*file].1;
        if !open.contains(&i) {
            op.replay(bytes);
            continue;
        }
        match (kept, op) {
            (Kept::None, _) => {}
            (Kept::AllButOne, _) if special == Some(i) => {}
            (Kept::Some, _) if random.below(2) == 0 => {}
            (Kept::Torn, LoggedOp::Write { offset, data }) if special == Some(i) => {
                tear(*offset, data, random).iter().for_each(|part| part.replay(bytes));
            }
            _ => op.replay(bytes),
        }
    }
    files
}

fn is_stable(log: &[(usize, LoggedOp)], index: usize) -> bool {
    log[index..]
        .iter()
        .any(|(file, op)| *file == log[index].0 && *op == LoggedOp::Flush)
}

/// Some of the sectors of a write.
fn tear(offset: u64, data: &[u8], random: &mut Random) -> Vec<LoggedOp> {
    let first = (512 - offset as usize % 512) % 512;
    let mut cuts = vec![0];
    cuts.extend((first..data.len()).step_by(512).filter(|c| *c > 0));
    cuts.push(data.len());
    let parts = cuts.windows(2).filter(|_| random.below(2) == 0);
    let part = |w: &[usize]| LoggedOp::Write {
        offset: offset + w[0] as u64,
        data: data[w[0]..w[1]].to_vec(),
    };
    parts.map(part).collect()
}
