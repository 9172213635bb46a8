//! The line that says what is made: `Formatting 'FILE', fmt=FORMAT name=value ...`, in qemu-img's order and with the defaults it tells.

use std::fmt::Write as _;

use vdisk_engine::env::BackingReference;
use vdisk_engine::formats::FormatDriver;
use vdisk_engine::options::{OptionKind, OptionSpec, Options};

use crate::options;
use crate::text::size;

/// What qemu-img tells about one format.
struct Told {
    format: &'static str,
    /// The order of the options; those not named follow in the driver's order.
    order: &'static [&'static str],
    /// Options told even when they are not given.
    defaults: &'static [&'static str],
}

const TOLD: &[Told] = &[
    Told {
        format: "qcow2",
        order: &[
            "encryption",
            "encrypt.format",
            "encrypt.key-secret",
            "encrypt.cipher-alg",
            "encrypt.cipher-mode",
            "encrypt.ivgen-alg",
            "encrypt.ivgen-hash-alg",
            "encrypt.hash-alg",
            "encrypt.iter-time",
            "cluster_size",
            "extended_l2",
            "preallocation",
            "compression_type",
            "size",
            "compat",
            "backing_file",
            "backing_fmt",
            "data_file",
            "data_file_raw",
            "lazy_refcounts",
            "refcount_bits",
            "nocow",
            "extent_size_hint",
        ],
        defaults: &[
            "cluster_size",
            "extended_l2",
            "compression_type",
            "lazy_refcounts",
            "refcount_bits",
        ],
    },
    Told {
        format: "qcow",
        order: &[
            "size",
            "backing_file",
            "backing_fmt",
            "encryption",
            "encrypt.format",
            "encrypt.key-secret",
        ],
        defaults: &[],
    },
    Told {
        format: "vmdk",
        order: &[
            "size",
            "adapter_type",
            "backing_file",
            "backing_fmt",
            "compat6",
            "hwversion",
            "subformat",
        ],
        defaults: &["compat6", "hwversion"],
    },
    Told {
        format: "vdi",
        order: &["size"],
        defaults: &["static"],
    },
    Told {
        format: "vhdx",
        order: &["size", "log_size", "block_size", "subformat"],
        defaults: &["log_size", "block_size"],
    },
    Told {
        format: "vpc",
        order: &["size", "subformat"],
        defaults: &[],
    },
    Told {
        format: "qed",
        order: &["size", "backing_file", "backing_fmt"],
        defaults: &["cluster_size"],
    },
    Told {
        format: "parallels",
        order: &["size"],
        defaults: &["cluster_size"],
    },
];

/// For formats that qemu-img does not make, or of which it tells no defaults.
const PLAIN: Told = Told {
    format: "",
    order: &["size"],
    defaults: &[],
};

/// The line.
pub fn summary(
    file: &str,
    driver: &dyn FormatDriver,
    given: &Options,
    size: u64,
    backing: Option<&BackingReference>,
) -> String {
    let told = TOLD.iter().find(|t| t.format == driver.name()).unwrap_or(&PLAIN);
    let place = |name: &str| told.order.iter().position(|o| *o == name).unwrap_or(told.order.len());
    let mut table = options::create_table(driver);
    table.sort_by_key(|s| place(s.name));
    let mut out = format!("Formatting '{file}', fmt={}", driver.name());
    for spec in table {
        let value = match spec.name {
            "size" => Some(size.to_string()),
            "backing_file" => backing.map(|b| b.name.clone()),
            "backing_fmt" => backing.and_then(|b| b.format.clone()),
            name => given.get(name).map(str::to_owned).or_else(|| default(told, &spec)),
        };
        if let Some(value) = value {
            let _ = write!(out, " {}={}", spec.name, value.replace(',', ",,"));
        }
    }
    out
}

fn default(told: &Told, spec: &OptionSpec) -> Option<String> {
    let text = spec.default.filter(|_| told.defaults.contains(&spec.name))?;
    match (spec.kind, size::parse(text)) {
        (OptionKind::Size, Ok(bytes)) => Some(bytes.to_string()),
        _ => Some(text.to_owned()),
    }
}
