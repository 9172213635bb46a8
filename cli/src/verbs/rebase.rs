//! `rebase`: puts an image on another backing image, or on none.

use vdisk_engine::env::BackingReference;
use vdisk_engine::formats;
use vdisk_engine::ops::convert::CopyOptions;
use vdisk_engine::ops::rebase;
use vdisk_engine::storage::CacheMode;

use super::Common;
use crate::app::{Failure, Outcome};
use crate::output::Format;
use crate::progress::Meter;
use crate::spec::{Access, OpenImage, Opener, Spec, name, protocol};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the image
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// FILENAME is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// Cache mode of the image
    #[arg(short = 't', long = "cache", value_name = "CACHE")]
    cache: Option<String>,
    /// Cache mode of the backing images
    #[arg(short = 'T', long = "backing-cache", value_name = "CACHE")]
    backing_cache: Option<String>,
    /// The new backing image; an empty name for none
    #[arg(short = 'b', long = "backing", value_name = "BACKING_FILENAME")]
    backing: Option<String>,
    /// Format of the new backing image
    #[arg(short = 'F', long = "backing-format", value_name = "FMT")]
    backing_format: Option<String>,
    /// Change the name only: right when the new backing image has the same content
    #[arg(short = 'u', long = "backing-unsafe")]
    backing_unsafe: bool,
    /// Compress the data that is copied
    #[arg(short = 'c', long)]
    compress: bool,
    /// Open the backing images although others may write to them
    #[arg(short = 'U', long = "force-share")]
    force_share: bool,
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

/// Rebases.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let text = super::one(&args.files)?;
    if !args.backing_unsafe && args.backing.is_none() {
        return Err(Failure::usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    let cache = super::target_cache(args.cache.as_deref(), CacheMode::Writeback)?;
    super::source_cache(args.backing_cache.as_deref())?;
    let opener = args.common.opener()?;
    let spec = Spec::new(text, args.format.as_deref(), args.image_opts)?;
    let mut access = Access::write().cached(cache);
    access.no_backing = args.backing_unsafe;
    let image = opener.open(spec, access)?;
    check(args, &image)?;
    let backing = args
        .backing
        .clone()
        .filter(|b| !b.is_empty())
        .map(|name| BackingReference {
            name,
            format: args.backing_format.clone(),
        });
    let base = match (&backing, args.backing_unsafe) {
        (Some(backing), false) => Some(open_base(args, &opener, &image, backing)?),
        _ => None,
    };
    if backing.as_ref().is_some_and(|b| b.format.is_none()) {
        return Err(change_failed(backing.as_ref(), "backing format must be specified"));
    }
    // Some formats record which content is below. Others take a name of what is not there yet.
    let identified = match &backing {
        Some(backing) if args.backing_unsafe && image.chain.top().layer_id().is_some() => {
            Some(open_base(args, &opener, &image, backing))
        }
        _ => None,
    };
    let meter = Meter::new(args.progress && !args.quiet, None, &opener.cancel);
    let copy = CopyOptions {
        compress: args.compress,
        workers: super::workers(),
        ..CopyOptions::default()
    };
    let done = if args.backing_unsafe {
        let new = identified
            .as_ref()
            .and_then(|base| Some(base.as_ref().ok()?.chain.top()));
        rebase::rebase_unsafe_over(image.chain.top(), backing.as_ref(), new)
    } else {
        let new = base.as_ref().map(|b| &b.chain);
        rebase::rebase(&image.chain, new, backing.as_ref(), &copy, &meter.control())
    };
    if let (Err(_), Some(Err(failure))) = (&done, identified) {
        return Err(failure);
    }
    done.map_err(|e| change_failed(backing.as_ref(), &crate::app::sentence(&e)))?;
    meter.finish();
    let name = backing.map_or(serde_json::Value::Null, |b| b.name.into());
    super::report(format, &[("filename", text.into()), ("backing-filename", name)]);
    Ok(0)
}

fn check(args: &Args, image: &OpenImage) -> Result<(), Failure> {
    let driver = formats::by_name(image.chain.top().format())?;
    if let Some(format) = args.backing_format.as_deref().filter(|f| !is_format(f)) {
        return Err(Failure::new(format!("Invalid format name: '{format}'")));
    }
    if args.compress && !driver.capabilities().compress {
        return Err(Failure::new("Compression not supported for this file format"));
    }
    Ok(())
}

/// Headers may name a protocol in place of a format.
fn is_format(name: &str) -> bool {
    formats::by_name(name).is_ok() || protocol::is_protocol(name)
}

/// Opens the new backing image, whose name starts from the folder of the overlay.
fn open_base(
    args: &Args,
    opener: &Opener,
    image: &OpenImage,
    backing: &BackingReference,
) -> Result<OpenImage, Failure> {
    let full = name::of_backing(image.chain.top().format(), &image.place(), &backing.name)?;
    let mut access = Access::read(args.force_share).cached(super::source_cache(args.backing_cache.as_deref())?);
    // What is below the new base may be out of order as well.
    (access.no_backing, access.inspect) = (args.backing_unsafe, args.backing_unsafe);
    opener
        .try_open(Spec::name(&full, backing.format.as_deref()), access)
        .map_err(|f| f.context(format!("Could not open new backing file '{full}'")))
}

fn change_failed(backing: Option<&BackingReference>, why: &str) -> Failure {
    match backing {
        Some(backing) => Failure::new(format!(
            "Could not change the backing file to '{}': {why}",
            backing.name
        )),
        None => Failure::new(format!("Could not change the backing file: {why}")),
    }
}
