//! `commit`: writes what an overlay changed into an image below it.

use std::path::PathBuf;

use vdisk_engine::ops::commit;
use vdisk_engine::ops::convert::CopyOptions;
use vdisk_engine::storage::CacheMode;

use super::Common;
use crate::app::{self, Failure, Outcome};
use crate::output::{self, Format};
use crate::progress::Meter;
use crate::spec::open::place;
use crate::spec::{Access, Opener, Spec, name};
use crate::text::size;

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the image
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// FILENAME is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// Cache mode of the images
    #[arg(short = 't', long = "cache", value_name = "CACHE")]
    cache: Option<String>,
    /// Commit to this image of the backing chain instead of the next one (implies --drop)
    #[arg(short = 'b', long, value_name = "BASE_IMG")]
    base: Option<String>,
    /// Do not empty the image afterwards
    #[arg(short = 'd', long)]
    drop: bool,
    /// Copy at most this many bytes a second
    #[arg(short = 'r', long, value_name = "RATE")]
    rate: Option<String>,
    /// Show progress
    #[arg(short = 'p', long)]
    progress: bool,
    /// Print nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,
    /// Output format: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
    #[command(flatten)]
    common: Common,
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// Commits.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let rate = args.rate.as_deref().map(|t| size::size("rate limit", t)).transpose()?;
    let text = super::one(&args.files)?;
    let cache = super::target_cache(args.cache.as_deref(), CacheMode::Writeback)?;
    let opener = args.common.opener()?;
    let spec = Spec::new(text, args.format.as_deref(), args.image_opts)?;
    let (depth, over_base) = depth_of_base(&opener, spec, args.base.as_deref())?;
    let access = Access {
        base: Some(depth),
        over_base,
        ..Access::write().cached(cache)
    };
    let image = opener.open(spec, access)?;
    if image.chain.layers().len() <= depth {
        return Err(Failure::new("Image does not have a backing file"));
    }
    let meter = Meter::new(args.progress && !args.quiet, rate, &opener.cancel);
    let empty_top = !args.drop && args.base.is_none();
    let copy = CopyOptions {
        workers: super::workers(),
        ..CopyOptions::default()
    };
    commit::commit(&image.chain, depth, empty_top, &copy, &meter.control())
        .map_err(|e| Failure::new(format!("Block job failed: {}", app::reason(&e))))?;
    meter.finish();
    if format.is_json() {
        let base = image.names.get(depth).map_or("", String::as_str);
        super::report(format, &[("filename", text.into()), ("base", base.into())]);
    } else if !args.quiet {
        output::line("Image committed.");
    }
    Ok(0)
}

/// How far down the image is that is committed to, and whether the one over it must be told of its change.
fn depth_of_base(opener: &Opener, spec: Spec<'_>, base: Option<&str>) -> Result<(usize, bool), Failure> {
    let Some(base) = base else { return Ok((1, false)) };
    let image = opener.open(spec, Access::read(true))?;
    let wanted = canonical(&image.place(), base);
    let layers = image.chain.layers();
    let found = layers.iter().position(|layer| {
        let Some(backing) = layer.backing() else { return false };
        backing.name == base || wanted.is_some() && canonical(&place(layer.as_ref()), &backing.name) == wanted
    });
    found
        .map(|over| (over + 1, layers[over].follows_below()))
        .ok_or_else(|| Failure::new(format!("Did not find '{base}' in the backing chain of '{}'", spec.text)))
}

/// One name for each file that is named from the folder of another; none where that has no folder.
fn canonical(from: &str, name: &str) -> Option<PathBuf> {
    let path = name::relative_to(from, name).ok()?;
    Some(std::fs::canonicalize(&path).unwrap_or_else(|_| PathBuf::from(path)))
}
