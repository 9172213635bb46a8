//! Every create option of every driver with its values, one at a time, and combinations worth their time.

use std::path::Path;

use vdisk_engine::formats::FormatDriver;
use vdisk_engine::options::{OptionKind, Options};

/// A way to make an image.
#[derive(Clone)]
pub struct Variant {
    pub driver: &'static dyn FormatDriver,
    pub options: Vec<(&'static str, &'static str)>,
    pub compress: bool,
}

impl Variant {
    /// The options for an image in `folder`.
    pub fn options(&self, folder: &Path) -> Options {
        let all = self
            .options
            .iter()
            .fold(Options::new(), |all, (n, v)| all.with(*n, placed(folder, n, v)));
        if self.driver.name() == "luks" {
            all.with("key-secret", "key").with("iterations", "1000")
        } else {
            all
        }
    }
    pub fn name(&self) -> String {
        let mut parts = vec![self.driver.name().to_owned()];
        parts.extend(self.options.iter().map(|(n, v)| format!("{n}={v}")));
        parts.extend(self.compress.then(|| "compressed".to_owned()));
        parts.join(" ")
    }
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.options.contains(&(name, value))
    }
    /// Whether space is taken for the whole disk, however little data there is.
    pub fn is_full(&self) -> bool {
        let full = [
            ("preallocation", "falloc"),
            ("preallocation", "full"),
            ("preallocation", "metadata"),
            ("static", "on"),
        ];
        full.iter().any(|(n, v)| self.has(n, v))
            || !self.driver.capabilities().zero && !self.driver.capabilities().write
    }
}

/// The data file lies beside the image; QEMU takes its name as seen from the working folder.
pub fn placed(folder: &Path, option: &str, value: &str) -> String {
    match option {
        "data_file" => folder.join(value).display().to_string(),
        _ => value.to_owned(),
    }
}

/// What values the options have whose kind does not say them all.
fn values(format: &str, name: &str) -> &'static [&'static str] {
    match (format, name) {
        ("cloop", "block_size") => &["512", "1M"],
        ("luks", "version") => &["1"],
        ("parallels", "cluster_size") => &["64k", "2M"],
        ("qcow2", "cluster_size") => &["512", "4k", "2M"],
        ("qcow2", "refcount_bits") => &["1", "2", "4", "8", "32", "64"],
        ("qcow2", "data_file") => &["data"],
        ("qed", "cluster_size") => &["4k", "64M"],
        ("qed", "table_size") => &["1", "16"],
        ("vdi", "block_size") => &["4k", "2M"],
        ("vhdx", "block_size") => &["1M", "256M"],
        ("vhdx", "log_size") => &["4M"],
        ("vmdk", "hwversion") => &["14"],
        ("vmdk", "toolsversion") => &["10309"],
        _ => &[],
    }
}

/// Combinations.
const TOGETHER: &[(&str, &[(&str, &str)])] = &[
    ("qcow2", &[("extended_l2", "on"), ("cluster_size", "128k")]),
    ("qcow2", &[("compat", "0.10"), ("cluster_size", "1M")]),
    ("qcow2", &[("data_file", "data"), ("data_file_raw", "on")]),
    ("qcow2", &[("lazy_refcounts", "on"), ("preallocation", "metadata")]),
    ("luks", &[("version", "2"), ("pbkdf", "pbkdf2")]),
    (
        "luks",
        &[("version", "2"), ("pbkdf", "pbkdf2"), ("sector-size", "4096")],
    ),
    ("vdi", &[("static", "on"), ("block_size", "64k")]),
    ("vhdx", &[("subformat", "fixed"), ("block_size", "8M")]),
    (
        "vmdk",
        &[("subformat", "streamOptimized"), ("adapter_type", "lsilogic")],
    ),
    ("vmdk", &[("subformat", "twoGbMaxExtentSparse"), ("zeroed_grain", "on")]),
    ("vmdk", &[("compat6", "on"), ("adapter_type", "buslogic")]),
    ("vpc", &[("subformat", "fixed"), ("force_size", "on")]),
];

/// All variants of a driver, the one without options first.
pub fn of(driver: &'static dyn FormatDriver) -> Vec<Variant> {
    let variant = |options: Vec<(&'static str, &'static str)>| Variant {
        driver,
        options,
        compress: false,
    };
    let mut all = vec![variant(Vec::new())];
    for option in driver.create_options() {
        let values = match option.kind {
            OptionKind::Choice(values) => values,
            // Means something beside `data_file` alone.
            OptionKind::Bool if !["encryption", "data_file_raw"].contains(&option.name) => &["on", "off"],
            _ => values(driver.name(), option.name),
        };
        // These want other options beside them: see `TOGETHER`, and the tests of overlays and of encryption. A detached header is an image
        // without data; Argon2 is for LUKS2, and slow on purpose.
        let left_out = ["backing_file", "backing_fmt", "detached-header", "pbkdf"].contains(&option.name)
            || option.name.starts_with("encrypt");
        let not_alone = |v: &str| v == "differencing" || (option.name, v) == ("version", "2");
        for value in values.iter().filter(|v| !left_out && !not_alone(v)) {
            all.push(variant(vec![(option.name, value)]));
        }
    }
    let together = TOGETHER.iter().filter(|(format, _)| *format == driver.name());
    all.extend(together.map(|(_, options)| variant(options.to_vec())));
    if driver.capabilities().compress && driver.capabilities().write {
        let streams = driver.name() != "vmdk";
        let plain = |v: &&Variant| {
            let can = streams || v.has("subformat", "streamOptimized");
            can && !v.is_full() && v.options.iter().all(|(n, _)| !n.starts_with("data_file"))
        };
        let compressed: Vec<_> = all
            .iter()
            .filter(plain)
            .map(|v| Variant {
                compress: true,
                ..v.clone()
            })
            .collect();
        all.extend(compressed);
    }
    all
}
