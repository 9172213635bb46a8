//! The steps of a sequence, each as qemu's tools do it and as we do it.

use std::process::Command;

use vdisk_engine::image::{BackingReference, ExtentKind, Resize};
use vdisk_engine::ops::{self, convert::CopyOptions};
use vdisk_engine::{Chain, Control, Error, Image, Result};

use super::Random;
use super::folder::{BASES, Folder, Shape, parsed};

/// What a guest does.
#[derive(Debug, Clone, Copy)]
pub enum Io {
    Write { at: u64, len: u64, fill: u8 },
    Compressed { at: u64, len: u64, fill: u8 },
    Zero { at: u64, len: u64, unmap: bool },
    Discard { at: u64, len: u64 },
}

#[derive(Debug, Clone)]
pub enum Step {
    Io(Vec<Io>),
    /// `-c`, `-a` or `-d`, and a name.
    Snapshot(&'static str, String),
    /// An option of `qemu-img bitmap` and a name.
    Bitmap(&'static str, String),
    AddBitmap(String, u64),
    MergeBitmap {
        from: String,
        into: String,
    },
    Resize(u64),
    Commit {
        empty: bool,
    },
    Rebase {
        base: Option<(&'static str, &'static str)>,
        safe: bool,
    },
    Amend(String),
}

impl Step {
    pub fn choose(random: &mut Random, shape: &Shape, top: &dyn Image) -> Self {
        let size = top.virtual_size();
        let snapshot = |random: &mut Random| format!("s{}", random.below(3));
        let bitmap = |random: &mut Random| format!("b{}", random.below(3));
        match random.below(25) {
            0 if !shape.data_file => Self::compressed(random, shape, top),
            0..=10 => {
                let count = 1 + random.below(5);
                Self::Io((0..count).map(|_| Io::choose(random, shape, size)).collect())
            }
            11..=13 => Self::Snapshot("-c", snapshot(random)),
            14 => Self::Snapshot("-a", snapshot(random)),
            15 => Self::Snapshot("-d", snapshot(random)),
            16 | 17 => Self::AddBitmap(bitmap(random), random.pick(&[0, 512, 4096, 65_536])),
            18 => {
                let what = random.pick(&["--remove", "--clear", "--enable", "--disable"]);
                Self::Bitmap(what, bitmap(random))
            }
            19 => Self::MergeBitmap {
                from: bitmap(random),
                into: bitmap(random),
            },
            20 | 21 => Self::Resize(match random.below(3) {
                0 => (size / 3).next_multiple_of(512).max(512),
                1 => size + 512 * (1 + random.below(10)),
                _ => (size * 2).min(16 << 20),
            }),
            22 => Self::Commit {
                empty: random.below(3) > 0,
            },
            23 => Self::Rebase {
                base: (random.below(4) > 0).then(|| random.pick(&BASES)),
                safe: random.below(4) > 0,
            },
            _ => {
                let options = [
                    "lazy_refcounts=on",
                    "lazy_refcounts=off",
                    "refcount_bits=64",
                    "refcount_bits=16",
                ];
                let rare = ["compat=0.10", "compat=1.1", "refcount_bits=1", "refcount_bits=8"];
                let list = if random.below(2) == 0 { options } else { rare };
                let option = random.pick(&list);
                // With large clusters qemu-img spends minutes on this; and it makes images of version 2 that need zstd, which nobody opens.
                let slow = option.starts_with("refcount") && shape.cluster > 4096;
                match slow || option == "compat=0.10" && shape.options.contains("zstd") {
                    true => Self::Amend("lazy_refcounts=on".into()),
                    false => Self::Amend(option.into()),
                }
            }
        }
    }

    /// A compressed write where nothing is stored yet: qemu refuses to replace clusters so.
    fn compressed(random: &mut Random, shape: &Shape, top: &dyn Image) -> Self {
        let size = top.virtual_size();
        let (at, len) = random.range(size, shape.cluster * 3);
        let at = at / shape.cluster * shape.cluster;
        let len = len.next_multiple_of(shape.cluster).min(size - at);
        let fill = 1 + random.below(190) as u8;
        let extent = top.extent(at, len).unwrap();
        let free = matches!(extent.kind, ExtentKind::Unallocated | ExtentKind::Compressed) && extent.len == len;
        Self::Io(vec![if free {
            Io::Compressed { at, len, fill }
        } else {
            Io::Write { at, len, fill }
        }])
    }

    /// Does the step by qemu's tools; says whether it worked, and what they said.
    pub fn by_qemu(&self, folder: &Folder) -> (bool, String) {
        let (program, args) = self.command();
        let out = Command::new(program)
            .args(args)
            .current_dir(&folder.path)
            .output()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stderr),
            String::from_utf8_lossy(&out.stdout)
        );
        (out.status.success(), text)
    }

    fn command(&self) -> (&'static str, Vec<String>) {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let (verb, rest) = match self {
            Self::Io(list) => {
                let mut args = words(&["-f", "qcow2", "-d", "unmap"]);
                list.iter().for_each(|io| args.extend(["-c".to_owned(), io.command()]));
                args.push("top".into());
                return ("qemu-io", args);
            }
            Self::Snapshot(flag, name) => ("snapshot", words(&[flag, name, "top"])),
            Self::Bitmap(flag, name) => ("bitmap", words(&[flag, "-f", "qcow2", "top", name])),
            Self::AddBitmap(name, 0) => ("bitmap", words(&["--add", "-f", "qcow2", "top", name])),
            Self::AddBitmap(name, granularity) => {
                let granularity = granularity.to_string();
                let args = ["--add", "-g", &granularity, "-f", "qcow2", "top", name];
                ("bitmap", words(&args))
            }
            Self::MergeBitmap { from, into } => ("bitmap", words(&["--merge", from, "-f", "qcow2", "top", into])),
            Self::Resize(size) => ("resize", words(&["-f", "qcow2", "--shrink", "top", &size.to_string()])),
            Self::Commit { empty: true } => ("commit", words(&["-f", "qcow2", "top"])),
            Self::Commit { empty: false } => ("commit", words(&["-d", "-f", "qcow2", "top"])),
            Self::Rebase { base, safe } => {
                let (name, format) = base.unwrap_or_default();
                let mut args = words(&["-f", "qcow2", "-b", name]);
                if base.is_some() {
                    args.extend(words(&["-F", format]));
                }
                if !safe {
                    args.push("-u".into());
                }
                args.push("top".into());
                ("rebase", args)
            }
            Self::Amend(option) => ("amend", words(&["-f", "qcow2", "-o", option, "top"])),
        };
        ("qemu-img", [vec![verb.to_owned()], rest].concat())
    }

    /// Does the step by the engine.
    pub fn by_us(&self, folder: &Folder) -> Result<()> {
        let copy = CopyOptions::default();
        let control = Control::default();
        match self {
            Self::Io(list) => {
                let chain = folder.chain("top", "qcow2", &[0])?;
                let done = list.iter().map(|io| io.by_us(&chain)).fold(Ok(()), Result::and);
                chain.top().close()?;
                done
            }
            Self::Snapshot(flag, name) => {
                let chain = folder.alone("top", true)?;
                let snapshots = chain.top().snapshots().unwrap();
                match *flag {
                    "-c" => snapshots.create(name, (0, 0)).map(|_| ())?,
                    "-a" => snapshots.apply(name)?,
                    _ => snapshots.delete(name)?,
                }
                chain.top().close()
            }
            Self::Bitmap(..) | Self::AddBitmap(..) | Self::MergeBitmap { .. } => {
                let chain = folder.alone("top", true)?;
                self.change_bitmaps(&chain)?;
                chain.top().close()
            }
            Self::Resize(size) => {
                let to = Resize {
                    virtual_size: *size,
                    shrink: true,
                    ..Resize::default()
                };
                ops::resize::resize(&folder.chain("top", "qcow2", &[0])?, &to)
            }
            Self::Commit { empty } => {
                if folder.chain("top", "qcow2", &[])?.layers().len() < 2 {
                    return Err(Error::invalid("no backing file"));
                }
                let chain = folder.chain("top", "qcow2", &[0, 1])?;
                ops::commit::commit(&chain, 1, *empty, &copy, &control)
            }
            Self::Rebase { base, safe } => {
                let reference = base.map(|(name, format)| BackingReference {
                    name: name.into(),
                    format: Some(format.into()),
                });
                if !safe {
                    return ops::rebase::rebase_unsafe(folder.alone("top", true)?.top(), reference.as_ref());
                }
                let chain = folder.chain("top", "qcow2", &[0])?;
                let new = base.map(|(name, format)| folder.chain(name, format, &[])).transpose()?;
                ops::rebase::rebase(&chain, new.as_ref(), reference.as_ref(), &copy, &control)
            }
            Self::Amend(option) => {
                let chain = folder.alone("top", true)?;
                chain.top().amend(&parsed(option), false, &control)?;
                chain.top().close()
            }
        }
    }

    fn change_bitmaps(&self, chain: &Chain) -> Result<()> {
        let bitmaps = chain.top().bitmaps().unwrap();
        match self {
            Self::AddBitmap(name, granularity) => bitmaps.add(name, *granularity, true),
            Self::MergeBitmap { from, into } => bitmaps.mark(into, &bitmaps.dirty(from)?),
            Self::Bitmap("--remove", name) => bitmaps.remove(name),
            Self::Bitmap("--clear", name) => bitmaps.clear(name),
            Self::Bitmap(flag, name) => bitmaps.set_enabled(name, *flag == "--enable"),
            _ => Ok(()),
        }
    }
}

impl Io {
    fn choose(random: &mut Random, shape: &Shape, size: u64) -> Self {
        let reach = random.pick(&[4096, shape.cluster * 2, shape.cluster * 20, size / 2]);
        let (at, len) = random.range(size, reach.max(512));
        let fill = 1 + random.below(190) as u8;
        match random.below(10) {
            0..=4 => Self::Write { at, len, fill },
            5 | 6 => Self::Zero { at, len, unmap: false },
            7 => Self::Zero { at, len, unmap: true },
            _ => Self::Discard { at, len },
        }
    }
    fn command(&self) -> String {
        match self {
            Self::Write { at, len, fill } => format!("write -P {fill} {at} {len}"),
            Self::Compressed { at, len, fill } => format!("write -c -P {fill} {at} {len}"),
            Self::Zero { at, len, unmap: false } => format!("write -z {at} {len}"),
            Self::Zero { at, len, unmap: true } => format!("write -z -u {at} {len}"),
            Self::Discard { at, len } => format!("discard {at} {len}"),
        }
    }
    fn by_us(&self, chain: &Chain) -> Result<()> {
        match *self {
            Self::Write { at, len, fill } => chain.write(at, &vec![fill; len as usize]),
            Self::Compressed { at, len, fill } => {
                let unit = chain.top().info()?.cluster_size.unwrap();
                let mut starts = (at..at + len).step_by(unit as usize);
                starts.try_for_each(|start| {
                    let n = unit.min(at + len - start);
                    chain.top().write_compressed(start, &vec![fill; n as usize])
                })
            }
            Self::Zero { at, len, unmap } => chain.write_zeroes(at, len, unmap),
            Self::Discard { at, len } => chain.top().discard(at, len),
        }
    }
}
