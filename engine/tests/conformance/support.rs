//! Images in memory, and the gate that lets them find their parts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use vdisk_engine::env::{CreateSpec, Secrets};
use vdisk_engine::formats::{self, DRIVERS, FormatDriver};
use vdisk_engine::gate::{BackingChoice, Gate, Node, Reference};
use vdisk_engine::image::BackingReference;
use vdisk_engine::ops::create::create;
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Chain, CreateEnv, Error, Limits, OpenEnv, Result, StorageRef};

/// The same passphrase under every id.
pub struct Passphrase;

impl Secrets for Passphrase {
    fn get(&self, _id: &str) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        Ok(b"open sesame".to_vec().into())
    }
}

/// How to open an image of `format`: with a key where there are keys.
pub fn node(storage: StorageRef, format: &str) -> Node {
    let keyed = formats::by_name(format).is_ok_and(|d| d.open_options().iter().any(|o| o.name == "key-secret"));
    let options = if keyed {
        Options::new().with("key-secret", "key")
    } else {
        Options::new()
    };
    Node::new(storage, format).with_options(options)
}

/// The least that `create` must be told.
fn create_options(format: &str) -> Options {
    let keyed = formats::by_name(format).is_ok_and(|d| d.create_options().iter().any(|o| o.name == "key-secret"));
    if keyed {
        Options::new().with("key-secret", "key").with("iterations", "1000")
    } else {
        Options::new()
    }
}

/// Files of one test, by name, with the format of those that are images.
#[derive(Default)]
pub struct Files(
    Mutex<HashMap<String, Arc<MemoryStorage>>>,
    Mutex<HashMap<String, String>>,
);

impl Files {
    pub fn add(&self, name: &str, bytes: Vec<u8>) -> Arc<MemoryStorage> {
        let file = Arc::new(MemoryStorage::new(name, bytes));
        self.0.lock().unwrap().insert(name.to_owned(), file.clone());
        file
    }
    pub fn get(&self, name: &str) -> Arc<MemoryStorage> {
        self.0.lock().unwrap()[name].clone()
    }
    /// All files with their bytes, by name.
    pub fn contents(&self) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = self
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|(n, f)| (n.clone(), f.contents()))
            .collect();
        all.sort();
        all
    }
    /// Opens `name` with everything below it.
    pub fn open(&self, name: &str, format: &str, writable: bool) -> Result<Chain> {
        let limits = Limits::default();
        let env = OpenEnv::closed(&limits).with_gate(self).with_secrets(&Passphrase);
        let env = if writable { env.writable() } else { env };
        Chain::open(node(self.get(name), format), &env)
    }
    /// Opens `name` over `base`, whatever its header names.
    pub fn open_over(&self, name: &str, format: &str, base: (&str, &str), writable: bool) -> Result<Chain> {
        let limits = Limits::default();
        let env = OpenEnv::closed(&limits).with_gate(self).with_secrets(&Passphrase);
        let env = if writable { env.writable() } else { env };
        let mut top = node(self.get(name), format);
        top.backing = BackingChoice::Explicit(Box::new(node(self.get(base.0), base.1)));
        Chain::open(top, &env)
    }
    /// Creates an image under `name`; `backing` is a name and format.
    pub fn create(&self, name: &str, format: &str, size: u64, backing: Option<(&str, &str)>) -> Result<()> {
        self.create_with(name, format, &Options::new(), size, backing)
    }
    /// The same with create options.
    pub fn create_with(
        &self,
        name: &str,
        format: &str,
        options: &Options,
        size: u64,
        backing: Option<(&str, &str)>,
    ) -> Result<()> {
        let options = options
            .iter()
            .fold(create_options(format), |all, (name, value)| all.with(name, value));
        let random = |buf: &mut [u8]| buf.fill(0x5a);
        let limits = Limits::default();
        let env = CreateEnv {
            gate: self,
            limits: &limits,
            secrets: &Passphrase,
            random: &random,
            now: 1_700_000_000,
        };
        let backing = backing.map(|(name, format)| BackingReference {
            name: name.into(),
            format: Some(format.into()),
        });
        self.1.lock().unwrap().insert(name.to_owned(), format.to_owned());
        let storage: StorageRef = self.add(name, Vec::new());
        create(
            storage,
            format,
            &CreateSpec {
                virtual_size: size,
                options,
                backing,
            },
            &env,
        )
    }
}

impl Gate for Files {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let found = self.0.lock().unwrap().get(reference.name).cloned();
        let storage = found.ok_or_else(|| Error::denied(format!("no file {:?}", reference.name)))?;
        // Some headers name no format: then the one it was created with is what an inventory would say.
        let formats = self.1.lock().unwrap();
        let format = reference
            .format
            .or(formats.get(reference.name).map(String::as_str))
            .unwrap_or("raw");
        Ok(node(storage, format))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Ok(self.add(reference.name, Vec::new()))
    }
}

/// Drivers that can do something, with the options of `create` that make a writable image (read-mostly subformats stay out).
pub fn drivers(can: impl Fn(&dyn FormatDriver) -> bool) -> Vec<&'static dyn FormatDriver> {
    DRIVERS.iter().copied().filter(|d| can(*d)).collect()
}

/// Checks with `check` where the driver has it: nothing may be wrong, and nothing leaked.
pub fn assert_clean(files: &Files, name: &str, driver: &dyn FormatDriver) {
    if !driver.capabilities().check {
        return;
    }
    let chain = files.open(name, driver.name(), false).unwrap();
    let report = chain
        .top()
        .check(vdisk_engine::image::Repair::No, &vdisk_engine::Control::default())
        .unwrap();
    assert_eq!(
        (report.corruptions, report.leaks, report.check_errors),
        (0, 0, 0),
        "{}: {:?}",
        driver.name(),
        report.messages
    );
}

/// All of a chain's guest bytes, read in one go, and again by extents: both must agree.
pub fn contents(chain: &Chain) -> Vec<u8> {
    let size = chain.virtual_size();
    let mut bytes = vec![0xaa; size as usize];
    chain.read(0, &mut bytes).unwrap();
    let mut offset = 0;
    while offset < size {
        let extent = chain.extent(offset, size - offset).unwrap();
        assert!(
            extent.len > 0 && extent.len <= size - offset,
            "{}: extent of {} bytes",
            chain.top().format(),
            extent.len
        );
        let part = &bytes[offset as usize..(offset + extent.len) as usize];
        if extent.is_zero() {
            assert!(
                part.iter().all(|b| *b == 0),
                "{}: data in a zero extent at {offset:#x}",
                chain.top().format()
            );
        }
        check_direct(chain, &extent, part);
        offset += extent.len;
    }
    bytes
}

/// Where an extent says that the bytes lie in a file as they are, they do.
fn check_direct(chain: &Chain, extent: &vdisk_engine::chain::ChainExtent, expected: &[u8]) {
    let vdisk_engine::image::ExtentKind::Data {
        at: Some(at),
        direct: true,
    } = extent.kind
    else {
        return;
    };
    let storage = &chain.layers()[extent.depth].storages()[at.file];
    let mut direct = vec![0; expected.len()];
    vdisk_engine::storage::read_padded(storage.as_ref(), at.offset, &mut direct).unwrap();
    assert!(
        direct == expected,
        "{}: other bytes at host offset {:#x}",
        chain.top().format(),
        at.offset
    );
}
