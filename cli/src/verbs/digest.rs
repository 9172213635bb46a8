//! `digest`: a digest of what the guest sees, equal for the same content in any format. Not in qemu-img.

use serde_json::json;
use vdisk_engine::{Chain, Control, ops};

use super::Common;
use crate::app::{Failure, Outcome};
use crate::output::{self, Format};
use crate::progress::Meter;
use crate::spec::{Access, Spec};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the image
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// FILENAME is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// Digest every byte, zeroes included: the SHA-256 of the disk as a raw file
    #[arg(long)]
    full: bool,
    /// Open the image although others may write to it
    #[arg(short = 'U', long = "force-share")]
    force_share: bool,
    /// Show progress
    #[arg(short = 'p', long)]
    progress: bool,
    /// Output format: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
    #[command(flatten)]
    common: Common,
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// Digests the image.
///
/// By default the digest is SHA-256 over the offset (8 bytes, little-endian) and the data of every 64 KiB block that is not all zero, so that
/// holes cost nothing; with `--full` it is that of the whole content.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let file = super::one(&args.files)?;
    let spec = Spec::new(file, args.format.as_deref(), args.image_opts)?;
    let opener = args.common.opener()?;
    let image = opener.open(spec, Access::read(args.force_share))?;
    let meter = Meter::new(args.progress, None, &opener.cancel);
    let digest = digest(&image.chain, args.full, &meter.control())
        .map_err(|e| Failure::from(e).context(format!("error while reading {file}")))?;
    meter.finish();
    if format.is_json() {
        let kind = if args.full { "sha256" } else { ops::digest::NONZERO_KIND };
        output::json(
            &json!({"filename": file, "virtual-size": image.chain.virtual_size(), "kind": kind, "digest": digest}),
        );
    } else {
        output::line(&format!("{digest}  {file}"));
    }
    Ok(0)
}

fn digest(chain: &Chain, full: bool, control: &Control) -> vdisk_engine::Result<String> {
    if full {
        ops::digest::full(chain, control)
    } else {
        ops::digest::nonzero(chain, chain.virtual_size(), control)
    }
}
