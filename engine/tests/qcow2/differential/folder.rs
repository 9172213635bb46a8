//! A folder with a disk called `top` and what lies below it; what `top` is made of, chosen by a seed.

use std::path::PathBuf;
use std::sync::Arc;

use e2e::tools::{arg, ok};
use vdisk_engine::env::{CreateSpec, NoSecrets};
use vdisk_engine::gate::Node;
use vdisk_engine::image::BackingReference;
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Chain, CreateEnv, Limits, OpenEnv, Result, StorageRef, ops};

use super::Random;
use crate::support::InFolder;

/// What the top image is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    pub options: String,
    pub cluster: u64,
    pub size: u64,
    /// Name and format of the layer below.
    pub base: Option<(&'static str, &'static str)>,
    pub data_file: bool,
}

/// Images a disk may be put on.
pub const BASES: [(&str, &str); 3] = [("base", "qcow2"), ("other", "qcow2"), ("flat", "raw")];

impl Shape {
    pub fn choose(random: &mut Random) -> Self {
        let bits = random.pick(&[9, 9, 10, 12, 12, 14, 16, 16, 16, 18, 21]);
        let cluster = 1u64 << bits;
        let mut options = vec![format!("cluster_size={cluster}")];
        let old = random.below(6) == 0;
        options.push(format!("compat={}", if old { "0.10" } else { "1.1" }));
        let mut data_file = false;
        if !old {
            if bits >= 14 && random.below(3) == 0 {
                options.push("extended_l2=on".into());
            }
            if random.below(2) == 0 {
                options.push(format!("refcount_bits={}", 1 << random.below(7)));
            }
            if random.below(4) == 0 {
                options.push("lazy_refcounts=on".into());
            }
            if random.below(3) == 0 {
                options.push("compression_type=zstd".into());
            }
            data_file = random.below(8) == 0;
        }
        // Not always a multiple of the cluster: the last one may be short.
        let clusters = 8 + random.below(if bits > 16 { 12 } else { 120 });
        let size = (cluster * clusters).clamp(64 << 10, 12 << 20) + random.pick(&[0, 0, 512, 1536]);
        let mut base = (random.below(2) == 0).then(|| random.pick(&BASES));
        if data_file {
            options.push("data_file=data".into());
            if random.below(2) == 0 {
                options.push("data_file_raw=on".into());
                base = None;
            }
        }
        Self {
            options: options.join(","),
            cluster,
            size,
            base,
            data_file,
        }
    }
}

pub fn parsed(options: &str) -> Options {
    options.split(',').fold(Options::new(), |options, pair| {
        let (name, value) = pair.split_once('=').unwrap();
        options.with(name, value)
    })
}

/// One of the two folders.
pub struct Folder {
    pub path: PathBuf,
    limits: Limits,
}

impl Folder {
    pub fn new(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        Self {
            path,
            limits: Limits::default(),
        }
    }
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
    fn gate(&self) -> InFolder {
        InFolder(self.path.clone())
    }
    /// Opens a chain with the layers at `writable` open for writing.
    pub fn chain(&self, name: &str, format: &str, writable: &[usize]) -> Result<Chain> {
        self.open(name, format, writable, |node| node)
    }
    /// Opens one image alone.
    pub fn alone(&self, name: &str, writable: bool) -> Result<Chain> {
        let depths: &[usize] = if writable { &[0] } else { &[] };
        self.open(name, "qcow2", depths, Node::without_backing)
    }
    fn open(&self, name: &str, format: &str, writable: &[usize], change: impl FnOnce(Node) -> Node) -> Result<Chain> {
        let gate = self.gate();
        let env = OpenEnv::closed(&self.limits).with_gate(&gate);
        let options = match writable.is_empty() {
            true => FileOptions::read(),
            false => FileOptions::write(),
        };
        let storage: StorageRef = Arc::new(FileStorage::open(&self.file(name), options)?);
        let node = change(Node::new(storage, format));
        match writable.is_empty() {
            true => Chain::open(node, &env),
            false => Chain::open_writable(node, &env.writable(), writable),
        }
    }
    fn create(&self, name: &str, format: &str, size: u64, options: Options, base: Option<(&str, &str)>) {
        let gate = self.gate();
        let env = CreateEnv {
            gate: &gate,
            limits: &self.limits,
            secrets: &NoSecrets,
            random: &|buf| buf.fill(7),
            now: 0,
        };
        let spec = CreateSpec {
            virtual_size: size,
            options,
            backing: base.map(|(name, format)| BackingReference {
                name: name.into(),
                format: Some(format.into()),
            }),
        };
        let storage = Arc::new(FileStorage::create_new(&self.file(name), FileOptions::write()).unwrap());
        ops::create::create(storage, format, &spec, &env).unwrap();
    }

    /// Fills an empty folder: the bases with some content, and the top, created by us or by qemu-img.
    pub fn fill(&self, shape: &Shape, random: &mut Random) {
        for (name, format) in BASES {
            let size = match random.below(3) {
                0 => (shape.size / 2).next_multiple_of(512),
                1 => shape.size,
                _ => shape.size * 3 / 2 / 512 * 512,
            };
            let options = match format {
                "qcow2" => parsed(random.pick(&["cluster_size=4096", "cluster_size=65536", "cluster_size=512"])),
                _ => Options::new(),
            };
            self.create(name, format, size, options, None);
            let chain = self.chain(name, format, &[0]).unwrap();
            if format == "raw" {
                // No holes, which a copy of the folder may keep or not.
                chain.write(0, &vec![0; size as usize]).unwrap();
            }
            for _ in 0..6 {
                let (at, len) = random.range(size, size / 4 + 512);
                chain
                    .write(at, &vec![200 + random.below(50) as u8; len as usize])
                    .unwrap();
            }
            chain.top().close().unwrap();
        }
        if random.below(4) > 0 {
            self.create("top", "qcow2", shape.size, parsed(&shape.options), shape.base);
            return;
        }
        let (path, size) = (self.file("top"), shape.size.to_string());
        let options = shape
            .options
            .replace("data_file=data", &format!("data_file={}", arg(&self.file("data"))));
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        let base = shape.base.map(|(name, format)| (self.file(name), format));
        if let Some((name, format)) = &base {
            args.extend(["-b", arg(name), "-F", format]);
        }
        args.extend([arg(&path), &size]);
        ok("qemu-img", &args);
        // Names relative to the folder, which is about to be copied.
        if let Some((name, format)) = shape.base {
            ok(
                "qemu-img",
                &["rebase", "-u", "-f", "qcow2", "-b", name, "-F", format, arg(&path)],
            );
        }
        if shape.data_file {
            ok(
                "qemu-img",
                &["amend", "-f", "qcow2", "-o", "data_file=data", arg(&path)],
            );
        }
    }

    pub fn copy_from(&self, other: &Self) {
        for entry in std::fs::read_dir(&other.path).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), self.path.join(entry.file_name())).unwrap();
        }
    }
}
