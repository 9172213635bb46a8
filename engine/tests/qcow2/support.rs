//! What the qcow2 tests share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vdisk_engine::env::{CreateSpec, Secrets};
use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::image::{NothingBelow, Repair};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage, MemoryStorage};
use vdisk_engine::{
    Control, CreateEnv, Error, ErrorKind, Image, Limits, OpenEnv, Result, Storage, StorageRef, formats,
};

pub const CLUSTER_SIZES: [u64; 13] = [
    512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131_072, 262_144, 524_288, 1_048_576, 2_097_152,
];

/// One passphrase under the id `s`, and a clock that runs so fast that key slots get the fewest iterations.
pub struct Passphrase;

impl Secrets for Passphrase {
    fn get(&self, id: &str) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        match id {
            "s" => Ok(b"letmein".to_vec().into()),
            "wrong" => Ok(b"letmeout".to_vec().into()),
            _ => Err(Error::new(ErrorKind::WrongKey, format!("no secret with id '{id}'"))),
        }
    }
    fn elapsed(&self) -> Option<Duration> {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        Some(Duration::from_secs(CALLS.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The options that open an image created with them.
pub fn opening(created: &[(&str, String)]) -> Options {
    match created.iter().any(|(name, _)| *name == "encrypt.key-secret") {
        true => Options::new().with("encrypt.key-secret", "s"),
        false => Options::new(),
    }
}

/// Create options of an encrypted image.
pub fn encrypted(format: &'static str) -> Vec<(&'static str, String)> {
    let mut list = vec![("encrypt.format", format.into()), ("encrypt.key-secret", "s".into())];
    if format == "luks" {
        list.push(("encrypt.iter-time", "10".into()));
    }
    list
}

/// A folder that goes away, and images in it.
pub struct Scratch {
    dir: tempfile::TempDir,
    pub limits: Limits,
}

/// Opens plain file names in one folder.
pub struct InFolder(pub PathBuf);

impl Gate for InFolder {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let name = Path::new(reference.name)
            .file_name()
            .ok_or_else(|| Error::denied("no name"))?;
        let options = if reference.writable {
            FileOptions::write()
        } else {
            FileOptions::read()
        };
        let storage = FileStorage::open(&self.0.join(name), options)?;
        Ok(Node::new(Arc::new(storage), reference.format.unwrap_or("raw")))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        let path = self.0.join(reference.name);
        let _ = std::fs::remove_file(&path);
        Ok(Arc::new(FileStorage::create_new(&path, FileOptions::write())?))
    }
}

impl Scratch {
    pub fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() {
            tempfile::tempdir_in(shm)
        } else {
            tempfile::tempdir()
        };
        Self {
            dir: dir.unwrap(),
            limits: Limits::default(),
        }
    }
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    /// Makes an image by our driver, over whatever stood there.
    pub fn create(&self, path: &Path, size: u64, options: Options) {
        self.create_spec(
            path,
            &CreateSpec {
                virtual_size: size,
                options,
                backing: None,
            },
        )
        .unwrap();
    }
    pub fn create_spec(&self, path: &Path, spec: &CreateSpec) -> Result<()> {
        let _ = std::fs::remove_file(path);
        let storage = Arc::new(FileStorage::create_new(path, FileOptions::write())?);
        let env = CreateEnv {
            gate: &InFolder(self.dir.path().to_owned()),
            limits: &self.limits,
            secrets: &Passphrase,
            random: &|buf| buf.fill(7),
            now: 0,
        };
        let driver = formats::by_name("qcow2")?;
        spec.options.check(driver.create_options(), "qcow2")?;
        driver.create(storage, spec, &env)
    }
    pub fn try_open(&self, path: &Path, change: impl FnOnce(OpenEnv<'_>) -> OpenEnv<'_>) -> Result<Box<dyn Image>> {
        self.try_open_with(path, &Options::new(), change)
    }
    pub fn try_open_with(
        &self,
        path: &Path,
        with: &Options,
        change: impl FnOnce(OpenEnv<'_>) -> OpenEnv<'_>,
    ) -> Result<Box<dyn Image>> {
        let gate = InFolder(self.dir.path().to_owned());
        let env = change(OpenEnv::closed(&self.limits));
        let env = env.with_gate(&gate).with_secrets(&Passphrase);
        let options = if env.writable {
            FileOptions::write()
        } else {
            FileOptions::read()
        };
        let storage = Arc::new(FileStorage::open(path, options)?);
        formats::by_name("qcow2")?.open(storage, with, &env)
    }
    pub fn open(&self, path: &Path) -> Box<dyn Image> {
        self.try_open(path, |env| env).unwrap()
    }
    pub fn open_writable(&self, path: &Path) -> Box<dyn Image> {
        self.try_open(path, |env| env.writable()).unwrap()
    }
}

/// Bytes that compress somewhat, with a hole and with noise.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 12345u64;
    let mut bytes = vec![0u8; len];
    for (i, b) in bytes.iter_mut().enumerate() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *b = match i / 40_000 % 5 {
            0 | 1 => (i / 700 % 251) as u8,
            2 => (state >> 56) as u8,
            3 => 0,
            _ => b"qcow2 "[i % 6],
        };
    }
    bytes
}

pub fn read_all(image: &dyn Image) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    for (n, part) in bytes.chunks_mut(300_000).enumerate() {
        image.read(n as u64 * 300_000, part).unwrap();
    }
    bytes
}

/// Images in memory: several, by name.
#[derive(Clone, Default)]
pub struct Files(Arc<std::sync::Mutex<std::collections::HashMap<String, StorageRef>>>);

impl Files {
    pub fn put(&self, name: &str, storage: StorageRef) {
        self.0.lock().unwrap().insert(name.to_owned(), storage);
    }
    pub fn get(&self, name: &str) -> StorageRef {
        self.0.lock().unwrap()[name].clone()
    }
    pub fn create_on(&self, storage: StorageRef, size: u64, options: Options, backing: Option<(&str, &str)>) {
        let driver = formats::by_name("qcow2").unwrap();
        options.check(driver.create_options(), "qcow2").unwrap();
        let spec = CreateSpec {
            virtual_size: size,
            options,
            backing: backing.map(|(name, format)| vdisk_engine::image::BackingReference {
                name: name.into(),
                format: Some(format.into()),
            }),
        };
        let env = CreateEnv {
            gate: self,
            limits: &Limits::default(),
            secrets: &Passphrase,
            random: &|buf| buf.fill(7),
            now: 0,
        };
        driver.create(storage, &spec, &env).unwrap();
    }
    pub fn open_on(&self, storage: StorageRef, writable: bool) -> Result<Box<dyn Image>> {
        self.open_with(storage, writable, &Options::new())
    }
    /// Opens for writing within other limits than the usual.
    pub fn open_within(&self, storage: StorageRef, limits: &Limits) -> Result<Box<dyn Image>> {
        let env = OpenEnv::closed(limits).with_gate(self).writable();
        formats::by_name("qcow2")?.open(storage, &Options::new(), &env)
    }
    pub fn open_with(&self, storage: StorageRef, writable: bool, with: &Options) -> Result<Box<dyn Image>> {
        let limits = Limits::default();
        let env = OpenEnv::closed(&limits).with_gate(self).with_secrets(&Passphrase);
        let env = if writable { env.writable() } else { env };
        formats::by_name("qcow2")?.open(storage, with, &env)
    }
}

impl Gate for Files {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        Ok(Node::new(self.get(reference.name), reference.format.unwrap_or("raw")))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        let storage: StorageRef = Arc::new(MemoryStorage::empty());
        self.put(reference.name, storage.clone());
        Ok(storage)
    }
}

/// Fails unless `check` finds nothing wrong and nothing leaked.
pub fn assert_clean(image: &dyn Image) {
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.leaks, report.check_errors),
        (0, 0, 0),
        "{:#?}",
        report.messages
    );
}

/// Fails unless qemu-img finds nothing wrong; `leaks` says whether leaks are fine.
pub fn assert_qemu_clean(bytes: &[u8], scratch: &Scratch, leaks: bool, what: &str) {
    let path = scratch.file("checked.qcow2");
    std::fs::write(&path, bytes).unwrap();
    let mut source = format!("driver=qcow2,file.filename={}", e2e::tools::arg(&path));
    // An encrypted image: QEMU does not even check without the secret.
    if bytes[32..36] != [0; 4] {
        source.push_str(",encrypt.key-secret=s");
    }
    let secret = "secret,id=s,data=letmein";
    let out = e2e::tools::run("qemu-img", &["check", "--object", secret, "--image-opts", &source]);
    let code = out.status.code();
    assert!(code == Some(0) || leaks && code == Some(3), "{what}: {out:?}");
}

/// A number in the tables of an image.
pub fn word(storage: &MemoryStorage, at: u64) -> u64 {
    let mut word = [0; 8];
    storage.read_at(at, &mut word).unwrap();
    u64::from_be_bytes(word)
}

/// Changes a number in the tables of an image.
pub fn set_word(storage: &MemoryStorage, at: u64, value: u64) {
    storage.write_at(at, &value.to_be_bytes()).unwrap();
}

/// Corruptions that a check or a repair leaves, and those that it mended.
pub fn corruptions(storage: StorageRef, files: &Files, repair: Repair) -> (u64, u64) {
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).with_gate(files).writable().for_check();
    let driver = formats::by_name("qcow2").unwrap();
    let image = driver.open(storage, &Options::new(), &env).unwrap();
    let report = image.check(repair, &Control::default()).unwrap();
    image.close().unwrap();
    (report.corruptions, report.corruptions_fixed)
}

/// A disk of 1 MiB with clusters of 64 KiB, of which the first three are written with 1, 2 and 3.
pub fn three_clusters(files: &Files, options: Options) -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::empty());
    files.create_on(storage.clone(), 1 << 20, options, None);
    let image = files.open_on(storage.clone(), true).unwrap();
    for n in 0..3 {
        image.write(n << 16, &[n as u8 + 1; 1 << 16], &NothingBelow).unwrap();
    }
    image.close().unwrap();
    storage
}

pub fn fails_as_corrupt(what: &str, done: Result<()>) {
    let Err(error) = done else { panic!("{what}: done") };
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
}
