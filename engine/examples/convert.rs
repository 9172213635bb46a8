//! Converts one image file into another: `convert IN INFMT OUT OUTFMT [WORKERS] [compress]`. For profiling the engine alone.

use std::path::Path;
use std::sync::Arc;

use vdisk_engine::env::{CreateSpec, NoSecrets};
use vdisk_engine::gate::{DenyAll, Node};
use vdisk_engine::ops::convert::{CopyOptions, convert};
use vdisk_engine::ops::create::create;
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Chain, Control, CreateEnv, Error, Limits, OpenEnv, Result};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, input_format, output, output_format, rest @ ..] = args.as_slice() else {
        return Err(Error::invalid(
            "usage: convert IN INFMT OUT OUTFMT [WORKERS] [compress]",
        ));
    };
    let limits = Limits::default();
    let storage = Arc::new(FileStorage::open(Path::new(input), FileOptions::read())?);
    let source = Chain::open(Node::new(storage, input_format.as_str()), &OpenEnv::closed(&limits))?;
    let target = Arc::new(FileStorage::create_new(Path::new(output), FileOptions::write())?);
    let random = |buf: &mut [u8]| buf.fill(1);
    let env = CreateEnv {
        gate: &DenyAll,
        limits: &limits,
        secrets: &NoSecrets,
        random: &random,
        now: 0,
    };
    let spec = CreateSpec {
        virtual_size: source.virtual_size(),
        ..CreateSpec::default()
    };
    create(target.clone(), output_format, &spec, &env)?;
    let open = OpenEnv::closed(&limits).writable();
    let target = Chain::open(Node::new(target, output_format.as_str()), &open)?;
    let options = CopyOptions {
        workers: rest.first().and_then(|w| w.parse().ok()).unwrap_or(2),
        compress: rest.get(1).is_some_and(|c| c == "compress"),
        ..CopyOptions::default()
    };
    convert(&source, target.top(), &options, &Control::default())
}
