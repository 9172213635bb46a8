//! `measure`: the space that a new image would need.

use serde_json::{Map, Value};
use vdisk_engine::formats::{FormatDriver, Measurement};
use vdisk_engine::ops::{GuestSource, measure};
use vdisk_engine::options::Options;

use super::{Common, target};
use crate::app::{Failure, Outcome};
use crate::output::{self, Format};
use crate::progress::Meter;
use crate::spec::{Access, Spec, keyval};
use crate::{options, text};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the new image
    #[arg(short = 'O', long = "target-format", value_name = "FMT", default_value = "raw")]
    target_format: String,
    /// Options of the new image
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// Virtual size, when there is no image to measure
    #[arg(short = 's', long, value_name = "SIZE")]
    size: Option<String>,
    /// Format of the image
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// FILENAME is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// Measure this snapshot of the image
    #[arg(short = 'l', long = "snapshot", value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Open the image although others may write to it
    #[arg(short = 'U', long = "force-share")]
    force_share: bool,
    /// Output format: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
    #[command(flatten)]
    common: Common,
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// Prints the space.
pub fn run(args: &Args) -> Outcome {
    let list = keyval::join(&args.options)?;
    let format = Format::parse(args.output.as_deref())?;
    let size = args
        .size
        .as_deref()
        .map(|t| text::size::size("image size", t))
        .transpose()?;
    let file = match args.files.as_slice() {
        [] => None,
        [file] => Some(file.as_str()),
        _ => return Err(Failure::new("At most one filename argument is allowed.")),
    };
    let misplaced = if args.image_opts {
        Some("--image-opts")
    } else if args.format.is_some() {
        Some("-f")
    } else {
        args.snapshot.is_some().then_some("-l")
    };
    if let (None, Some(_)) = (file, misplaced) {
        return Err(Failure::new("--image-opts, -f, and -l require a filename argument."));
    }
    let driver = match (file, size) {
        (Some(_), Some(_)) => return Err(Failure::new("--size N cannot be used together with a filename.")),
        (None, None) => return Err(Failure::new("Either --size N or one filename must be specified.")),
        _ => super::driver(&args.target_format)?,
    };
    if let Some(list) = list.as_deref().filter(|l| keyval::asks_for_help(l)) {
        let _ = list;
        output::print(&options::help(&options::create_table(driver)));
        return Ok(0);
    }
    let found = measured(args, driver, list.as_deref(), file, size)?;
    print(&found, format);
    Ok(0)
}

fn measured(
    args: &Args,
    driver: &dyn FormatDriver,
    list: Option<&str>,
    file: Option<&str>,
    size: Option<u64>,
) -> Result<Measurement, Failure> {
    let table = options::create_table(driver);
    let mut given = options::read(list, &table)?;
    options::check_choices(&given, &table)?;
    options::take_file(driver, &mut given);
    let backing = given.take("backing_file").is_some();
    given.take("backing_fmt");
    let given_size = given.take("size").and_then(|s| s.parse().ok());
    let (data, source_size, bitmaps) = match file {
        None => (Vec::new(), given_size.or(size).unwrap_or(0), None),
        Some(text) => data_of(args, text, given.size("cluster_size")?.unwrap_or(65536))?,
    };
    let mut found = measure::measure(driver.name(), source_size, &data, &given, backing)?;
    if driver.capabilities().bitmaps && !is_v2(&given) {
        found.bitmaps = bitmaps.or(found.bitmaps);
    }
    Ok(found)
}

/// Images of the old version have no bitmaps.
fn is_v2(options: &Options) -> bool {
    options.get("compat").is_some_and(|c| c == "0.10" || c == "v2")
}

type Data = (Vec<(u64, u64)>, u64, Option<u64>);

/// The data of an image, its size, and the space of its bitmaps in clusters of the new image.
fn data_of(args: &Args, text: &str, cluster: u64) -> Result<Data, Failure> {
    let spec = Spec::new(text, args.format.as_deref(), args.image_opts)?;
    let opener = args.common.opener()?;
    let image = opener.open(spec, Access::read(args.force_share).keyless())?;
    let control = Meter::new(false, None, &opener.cancel).control();
    let (chain, active) = match args.snapshot.as_deref() {
        None => (image.chain, None),
        Some(selector) => {
            let (chain, active) = target::snapshot(image.chain, selector)?;
            (chain, Some(active))
        }
    };
    let source: &dyn GuestSource = &chain;
    let data = measure::data_ranges(source, &control)?;
    // A snapshot has no bitmaps of its own: they are those of the image now.
    let owner = active.as_deref().unwrap_or(chain.top());
    let bitmaps = match owner.bitmaps().filter(|b| b.possible()) {
        None => None,
        Some(bitmaps) => {
            let list = bitmaps.list()?;
            Some(target::bitmap_space(&list, owner.virtual_size(), cluster))
        }
    };
    Ok((data, source.len(), bitmaps))
}

fn print(found: &Measurement, format: Format) {
    if format.is_json() {
        let mut out = Map::new();
        out.insert("required".to_owned(), found.required.into());
        out.insert("fully-allocated".to_owned(), found.fully_allocated.into());
        if let Some(bitmaps) = found.bitmaps {
            out.insert("bitmaps".to_owned(), bitmaps.into());
        }
        output::json(&Value::Object(out));
        return;
    }
    output::line(&format!("required size: {}", found.required));
    output::line(&format!("fully allocated size: {}", found.fully_allocated));
    if let Some(bitmaps) = found.bitmaps {
        output::line(&format!("bitmaps size: {bitmaps}"));
    }
}
