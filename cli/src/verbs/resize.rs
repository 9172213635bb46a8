//! `resize`: changes the virtual size of an image.

use vdisk_engine::formats;
use vdisk_engine::image::{Preallocation, Resize};

use super::Common;
use crate::app::{self, Failure, Outcome};
use crate::options;
use crate::output::{self, Format};
use crate::spec::{Access, Spec};
use crate::text;

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the image
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// FILENAME is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// Allow a smaller size: the data past it is lost
    #[arg(long)]
    shrink: bool,
    /// How to reserve space for the new part: off, metadata, falloc or full
    #[arg(long, value_name = "PREALLOC")]
    preallocation: Option<String>,
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
    /// A size to shrink by, which was taken out of the command line because it looks like options
    #[arg(skip)]
    pub size: Option<String>,
}

/// A new size, or a change.
enum To {
    Exactly(u64),
    Grow(u64),
    Shrink(u64),
}

impl To {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (make, number): (fn(u64) -> Self, _) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(rest), _) => (Self::Grow, rest),
            (_, Some(rest)) => (Self::Shrink, rest),
            _ => (Self::Exactly, text),
        };
        text::size::parse(number)
            .map(make)
            .map_err(|_| options::not_a_size("size"))
    }
    fn from(&self, now: u64) -> Result<u64, Failure> {
        let size = match self {
            Self::Exactly(size) => Some(*size),
            Self::Grow(by) => now.checked_add(*by),
            Self::Shrink(by) => now.checked_sub(*by),
        };
        match size {
            Some(size) if size > 0 => Ok(size),
            _ => Err(Failure::new("New image size must be positive")),
        }
    }
}

/// Resizes the image.
pub fn run(args: &Args) -> Outcome {
    let preallocation = preallocation(args.preallocation.as_deref())?;
    let format = Format::parse(args.output.as_deref())?;
    let (file, size) = match (args.files.as_slice(), &args.size) {
        ([file], Some(size)) | ([file, size], None) => (file, size),
        ([] | [_], _) => return Err(Failure::usage("Expecting image file name and size")),
        _ => return Err(Failure::usage("Extra argument(s) in command line")),
    };
    let to = To::parse(size)?;
    let spec = Spec::new(file, args.format.as_deref(), args.image_opts)?;
    let image = args.common.opener()?.open(spec, Access::write())?;
    let now = image.chain.virtual_size();
    let virtual_size = to.from(now)?;
    if virtual_size <= now && preallocation != Preallocation::Off {
        return Err(Failure::new("Preallocation can only be used for growing images"));
    }
    if virtual_size < now && !args.shrink {
        app::error("Use the --shrink option to perform a shrink operation.");
        app::warning(
            "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, make \
             sure there is no important data there.",
        );
        return Ok(1);
    }
    refuse_part_of_sector(image.chain.top().format(), virtual_size)?;
    let resize = Resize {
        virtual_size,
        shrink: args.shrink,
        preallocation,
    };
    vdisk_engine::ops::resize::resize(&image.chain, &resize)?;
    if format.is_json() {
        let size = image.chain.virtual_size();
        super::report(
            format,
            &[("filename", file.as_str().into()), ("virtual-size", size.into())],
        );
    } else if !args.quiet {
        output::line("Image resized.");
    }
    Ok(0)
}

/// A size that the format cannot have is refused, as it is by qemu-img; of a LUKS container it is the file that is resized, which can have any.
fn refuse_part_of_sector(format: &str, size: u64) -> Result<(), Failure> {
    let multiple = formats::by_name(format)?.capabilities().size_multiple.max(1);
    match format == "luks" || size.is_multiple_of(multiple) {
        true => Ok(()),
        false => Err(Failure::new(format!("The new size must be a multiple of {multiple}"))),
    }
}

fn preallocation(given: Option<&str>) -> Result<Preallocation, Failure> {
    Ok(match given {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => return Err(Failure::new(format!("Invalid preallocation mode '{other}'"))),
    })
}
