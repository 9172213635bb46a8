//! Images in a folder, a gate that opens the names beside them, and what peers say.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::tools::{arg, find, ok, run};
use sha2::{Digest, Sha256};
use vdisk_engine::chain::Chain;
use vdisk_engine::env::{CreateSpec, NoSecrets};
use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::image::BackingReference;
use vdisk_engine::ops::convert::{CopyOptions, convert};
use vdisk_engine::ops::create::create;
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Control, CreateEnv, Error, Limits, OpenEnv, Result, StorageRef};

/// A folder whose files may name each other.
pub struct Folder(pub PathBuf);

impl Gate for Folder {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let path = self.0.join(reference.name);
        if path.parent() != Some(self.0.as_path()) {
            return Err(Error::denied(format!("{:?} is outside the folder", reference.name)));
        }
        let storage = Arc::new(FileStorage::open(&path, FileOptions::read())?);
        Ok(Node {
            format: None,
            ..Node::new(storage, "")
        })
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied(reference.name))
    }
}

impl Folder {
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    pub fn open_with(&self, name: &str, format: &str, writable: bool, options: Options) -> Result<Chain> {
        let how = if writable {
            FileOptions::write()
        } else {
            FileOptions::read()
        };
        let storage = Arc::new(FileStorage::open(&self.path(name), how)?);
        let limits = Limits::default();
        let mut env = OpenEnv::closed(&limits).with_gate(self);
        env.writable = writable;
        Chain::open(Node::new(storage, format).with_options(options), &env)
    }
    /// Opens an image and the layer below it, both for writing.
    pub fn open_for_commit(&self, name: &str, below: &str, format: &str) -> Chain {
        let limits = Limits::default();
        let env = OpenEnv::closed(&limits).writable();
        let layer = |name: &str| {
            let storage = Arc::new(FileStorage::open(&self.path(name), FileOptions::write()).unwrap());
            let driver = vdisk_engine::formats::by_name(format).unwrap();
            driver.open(storage, &Options::new(), &env).unwrap()
        };
        Chain::from_layers(vec![layer(name), layer(below)]).unwrap()
    }
    pub fn open(&self, name: &str, format: &str, writable: bool) -> Chain {
        self.open_with(name, format, writable, Options::new()).unwrap()
    }
    pub fn create(&self, name: &str, format: &str, size: u64, backing: Option<&str>, options: Options) -> Result<()> {
        let storage = Arc::new(FileStorage::create_new(&self.path(name), FileOptions::write())?);
        let counter = std::cell::Cell::new(name.bytes().fold(1u8, u8::wrapping_add));
        let random = |bytes: &mut [u8]| {
            bytes
                .iter_mut()
                .for_each(|b| *b = counter.replace(counter.get().wrapping_mul(37).wrapping_add(11)));
        };
        let env = CreateEnv {
            gate: self,
            limits: &Limits::default(),
            secrets: &NoSecrets,
            random: &random,
            now: 1_790_000_000,
        };
        let backing = backing.map(|name| BackingReference {
            name: name.into(),
            format: Some(format.into()),
        });
        let spec = CreateSpec {
            virtual_size: size,
            options,
            backing,
        };
        create(storage, format, &spec, &env)
    }
    /// Copies everything that `source` shows into a new image.
    pub fn convert(&self, source: &Chain, name: &str, format: &str, options: Options) {
        self.create(name, format, source.virtual_size(), None, options).unwrap();
        let target = self.open(name, format, true);
        convert(source, target.top(), &CopyOptions::default(), &Control::default()).unwrap();
        target.top().close().unwrap();
    }
}

/// All bytes of a chain.
pub fn contents(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(chain.virtual_size()).unwrap()];
    chain.read(0, &mut bytes).unwrap();
    bytes
}

/// Compares without printing megabytes.
pub fn assert_same(theirs: &[u8], ours: &[u8], what: &str) {
    assert_eq!(theirs.len(), ours.len(), "{what}");
    let first = theirs.iter().zip(ours).position(|(a, b)| a != b);
    assert_eq!(first, None, "{what}: first difference");
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The manifest's digest of what is not zero, by 64 KiB blocks; only what the map calls data is read.
pub fn nonzero_digest(chain: &Chain) -> String {
    const BLOCK: u64 = 65536;
    let size = chain.virtual_size();
    let (mut sha, mut offset) = (Sha256::new(), 0);
    let mut buf = vec![0; BLOCK as usize];
    while offset < size {
        let extent = chain.extent(offset, size - offset).unwrap();
        if extent.is_zero() && extent.len >= BLOCK {
            offset += extent.len / BLOCK * BLOCK;
            continue;
        }
        let len = BLOCK.min(size - offset) as usize;
        chain.read(offset, &mut buf[..len]).unwrap();
        if buf[..len].iter().any(|b| *b != 0) {
            sha.update(offset.to_le_bytes());
            sha.update(&buf[..len]);
        }
        offset += BLOCK;
    }
    hex(&sha.finalize())
}

/// What `qemu-img map` says: start, length, whether zero, offset.
pub fn qemu_map(path: &Path, format: &str) -> Vec<(u64, u64, bool, Option<u64>)> {
    let text = ok("qemu-img", &["map", "--output=json", "-f", format, arg(path)]);
    let map: serde_json::Value = serde_json::from_str(&text).unwrap();
    let row = |e: &serde_json::Value| {
        let number = |name: &str| e[name].as_u64();
        (
            number("start").unwrap(),
            number("length").unwrap(),
            e["zero"].as_bool().unwrap(),
            number("offset"),
        )
    };
    map.as_array().unwrap().iter().map(row).collect()
}

/// What libvhdi sees, through its FUSE mount; `None` where it cannot be run.
pub fn libvhdi_contents(path: &Path) -> Option<Vec<u8>> {
    if find("vhdimount").is_none() || !Path::new("/dev/fuse").exists() {
        e2e::skip("vhdimount (libvhdi-utils) or /dev/fuse is not there");
        return None;
    }
    let mount = tempfile::tempdir().unwrap();
    let mut child = Mounted {
        process: Command::new(find("vhdimount").unwrap())
            .args(["-X", "allow_other", arg(path), arg(mount.path())])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
        at: mount.path().to_owned(),
    };
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        // Of a chain the highest number is the top.
        let mut names: Vec<_> = std::fs::read_dir(mount.path())
            .map(|dir| dir.filter_map(|e| e.ok()).map(|e| e.path()).collect())
            .unwrap_or_default();
        names.sort();
        if let Some(top) = names.last() {
            let bytes = std::fs::read(top).unwrap();
            drop(child);
            return Some(bytes);
        }
        if let Some(status) = child.process.try_wait().unwrap()
            && !status.success()
        {
            panic!("vhdimount refuses {}: {status}", path.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("vhdimount shows nothing of {}", path.display());
}

/// What libvhdi sees in an overlay over a base, through its Python module; `None` where that is not there.
pub fn libvhdi_overlay(top: &Path, base: &Path) -> Option<Vec<u8>> {
    const SCRIPT: &str = "
import pyvhdi, sys
top, base = pyvhdi.file(), pyvhdi.file()
top.open(sys.argv[1]); base.open(sys.argv[2]); top.set_parent(base)
left = top.get_media_size()
while left:
    part = top.read_buffer(min(left, 1 << 20))
    sys.stdout.buffer.write(part); left -= len(part)
";
    // A python of its own in PATH does not see the distribution's modules.
    let python = ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        (find(python).is_some() || Path::new(python).is_file())
            && run(python, &["-c", "import pyvhdi"]).status.success()
    });
    let Some(python) = python else {
        e2e::skip("python3 with pyvhdi (python3-libvhdi) is not there");
        return None;
    };
    let out = run(python, &["-c", SCRIPT, arg(top), arg(base)]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(out.stdout)
}

struct Mounted {
    process: Child,
    at: PathBuf,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
