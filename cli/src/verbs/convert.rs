//! `convert`: copies images to a new one, whatever the formats.

mod checks;
mod job;
mod opened;
mod run;
mod sources;
mod streams;

pub use run::run;
pub use sources::Located;

use super::Common;

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the source images
    #[arg(short = 'f', long = "source-format", value_name = "FMT")]
    source_format: Option<String>,
    /// The source names are complete image specifications
    #[arg(long = "source-image-opts", alias = "image-opts")]
    image_opts: bool,
    /// Copy this snapshot of the source
    #[arg(short = 'l', long = "source-snapshot", alias = "snapshot", value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Cache mode of the source images
    #[arg(short = 'T', long = "source-cache", value_name = "CACHE")]
    source_cache: Option<String>,
    /// Format of the target
    #[arg(short = 'O', long = "target-format", alias = "output-format", value_name = "FMT")]
    target_format: Option<String>,
    /// The target name is a complete image specification
    #[arg(long = "target-image-opts")]
    target_image_opts: bool,
    /// Options of the target ('-o help' lists them)
    #[arg(short = 'o', long = "target-options", alias = "options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// Compress the data
    #[arg(short = 'c', long)]
    compress: bool,
    /// Cache mode of the target (default: unsafe)
    #[arg(short = 't', long = "target-cache", alias = "output-cache", value_name = "CACHE")]
    target_cache: Option<String>,
    /// Stack the target on this image and copy what differs from it
    #[arg(short = 'B', long = "backing", value_name = "BACKING_FILENAME")]
    backing: Option<String>,
    /// Format of the backing image
    #[arg(short = 'F', long = "backing-format", value_name = "FMT")]
    backing_format: Option<String>,
    /// Write into an image that exists
    #[arg(short = 'n', long = "no-create")]
    no_create: bool,
    /// The existing target reads as zeroes
    #[arg(long = "target-is-zero")]
    target_is_zero: bool,
    /// Leave out runs of zeroes of this many bytes; 0 stores every byte
    #[arg(short = 'S', long = "sparse-size", value_name = "SPARSE_SIZE")]
    sparse_size: Option<String>,
    /// Copy the dirty bitmaps too
    #[arg(long)]
    bitmaps: bool,
    /// Leave out inconsistent bitmaps
    #[arg(long = "skip-broken-bitmaps")]
    skip_broken_bitmaps: bool,
    /// Open the sources although others may write to them
    #[arg(short = 'U', long = "force-share")]
    force_share: bool,
    /// Copy at most this many bytes a second
    #[arg(short = 'r', long = "rate", value_name = "RATE")]
    rate: Option<String>,
    /// Threads that copy
    #[arg(short = 'm', long = "parallel", value_name = "NUMBER")]
    parallel: Option<String>,
    /// Let the system copy where it can
    #[arg(short = 'C', long = "copy-range-offloading")]
    copy_range: bool,
    /// Go on after read errors; what cannot be read becomes zeroes
    #[arg(long)]
    salvage: bool,
    /// Allow the data to be stored out of order
    #[arg(short = 'W', long = "oob-writes")]
    out_of_order: bool,
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
    #[arg(value_name = "SRC_FILENAME... TGT_FILENAME")]
    files: Vec<String>,
}
