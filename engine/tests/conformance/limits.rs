//! Tables stay within the limits that the image is opened with: nothing is made, by creating or by growing, that could not be opened again.

use std::sync::Arc;

use vdisk_engine::env::{CreateSpec, NoSecrets};
use vdisk_engine::formats::DRIVERS;
use vdisk_engine::gate::{DenyAll, Node};
use vdisk_engine::image::Resize;
use vdisk_engine::ops::create::create;
use vdisk_engine::ops::resize::resize;
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Chain, CreateEnv, ErrorKind, Limits, OpenEnv, Result};

const TABLE: u64 = 4096;

/// Formats with a table that grows with the disk: options, and the largest disk with a table of [`TABLE`] bytes.
const CASES: [(&str, &str, &str, u64); 6] = [
    ("parallels", "cluster_size", "512", TABLE / 4 * 512),
    ("vdi", "block_size", "4096", TABLE / 4 * 4096),
    ("vhdx", "block_size", "1M", (TABLE / 8) << 20),
    ("qcow2", "cluster_size", "512", TABLE / 8 * (512 / 8) * 512),
    ("vmdk", "subformat", "monolithicSparse", (TABLE / 4) << 25),
    ("vpc", "force_size", "on", (TABLE / 4) << 21),
];

/// No table, or one whose length is fixed when the image is made.
const WITHOUT: [&str; 3] = ["luks", "qed", "raw"];

fn limits() -> Limits {
    Limits {
        table_bytes: TABLE,
        ..Limits::default()
    }
}

fn made(format: &str, options: Options, size: u64) -> Result<Arc<MemoryStorage>> {
    let file = Arc::new(MemoryStorage::new("disk.img", Vec::new()));
    let spec = CreateSpec {
        virtual_size: size,
        options,
        backing: None,
    };
    let limits = limits();
    let env = CreateEnv {
        gate: &DenyAll,
        limits: &limits,
        secrets: &NoSecrets,
        random: &|bytes| bytes.fill(7),
        now: 1_700_000_000,
    };
    create(file.clone(), format, &spec, &env).map(|()| file)
}

fn opened(file: &Arc<MemoryStorage>, format: &str) -> Chain {
    let limits = limits();
    let node = Node::new(file.clone(), format);
    Chain::open(node, &OpenEnv::closed(&limits).writable()).unwrap_or_else(|e| panic!("{format}: {e}"))
}

#[test]
fn an_image_whose_table_is_at_the_limit_opens_and_one_past_it_is_not_made() {
    for (format, name, value, most) in CASES {
        let options = || Options::new().with(name, value);
        let file = made(format, options(), most).unwrap_or_else(|e| panic!("{format}: {e}"));
        assert_eq!(opened(&file, format).virtual_size(), most, "{format}");
        let error = made(format, options(), most + 512).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{format}: {error}");
    }
    let qed = |tables: &str| {
        let options = Options::new().with("cluster_size", "4096").with("table_size", tables);
        made("qed", options, 1 << 20)
    };
    opened(&qed("1").unwrap(), "qed");
    assert_eq!(qed("2").unwrap_err().kind(), ErrorKind::LimitExceeded);
}

#[test]
fn growing_past_the_limit_is_refused_before_anything_is_written() {
    let to = |virtual_size| Resize {
        virtual_size,
        ..Resize::default()
    };
    for (format, name, value, most) in CASES {
        let file = made(format, Options::new().with(name, value), most / 2).unwrap();
        let before = file.contents();
        let chain = opened(&file, format);
        let error = resize(&chain, &to(most + (1 << 20))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{format}: {error}");
        drop(chain);
        assert!(file.contents() == before, "{format}: the file was changed");
        assert_eq!(opened(&file, format).virtual_size(), most / 2, "{format}");
        resize(&opened(&file, format), &to(most)).unwrap_or_else(|e| panic!("{format}: {e}"));
        assert_eq!(opened(&file, format).virtual_size(), most, "{format}");
    }
    let tested = |name| CASES.iter().any(|case| case.0 == name) || WITHOUT.contains(&name);
    let missing = DRIVERS.iter().filter(|d| d.capabilities().grow && !tested(d.name()));
    assert_eq!(missing.map(|d| d.name()).collect::<Vec<_>>(), [""; 0]);
}
