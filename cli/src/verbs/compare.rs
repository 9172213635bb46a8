//! `compare`: whether two images show the guest the same.

use serde_json::{Value, json};
use vdisk_engine::ops::compare::{self, Comparison, Difference};

use super::Common;
use crate::app::{self, Failure, Outcome};
use crate::output::{self, Format};
use crate::progress::Meter;
use crate::spec::{Access, Spec};

/// Told when the comparison comes to the end of the shorter image.
const SIZES_DIFFER: &str = "Warning: Image size mismatch!";

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the first image
    #[arg(short = 'f', long = "a-format", alias = "left-format", value_name = "FMT")]
    a_format: Option<String>,
    /// Format of the second image
    #[arg(short = 'F', long = "b-format", alias = "right-format", value_name = "FMT")]
    b_format: Option<String>,
    /// The names are complete image specifications
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// Sizes and allocation must be equal too
    #[arg(short = 's', long)]
    strict: bool,
    /// Cache mode of both images
    #[arg(short = 'T', long = "cache", value_name = "CACHE")]
    cache: Option<String>,
    /// Open the images although others may write to them
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

/// Exit codes: 0 identical, 1 different (or a wrong command line, as qemu-img has it), 2 one cannot be opened, 4 one cannot be read.
pub fn run(args: &Args) -> Outcome {
    compare_files(args).or_else(|stop| match stop {
        Stop::Usage(failure) => Err(failure),
        Stop::Early(failure) => Err(failure.code(2)),
        Stop::Read { why, sizes_differ } => {
            let code = why.code(4).report("compare");
            if sizes_differ {
                output::line(SIZES_DIFFER);
            }
            Ok(code)
        }
    })
}

enum Stop {
    Usage(Failure),
    Early(Failure),
    /// A range cannot be read.
    Read {
        why: Failure,
        /// It is told that the sizes differ: the shorter image was compared to its end.
        sizes_differ: bool,
    },
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Early(failure)
    }
}

fn compare_files(args: &Args) -> Result<u8, Stop> {
    let format = Format::parse(args.output.as_deref()).map_err(Stop::Usage)?;
    let [a, b] = args.files.as_slice() else {
        return Err(Stop::Usage(Failure::usage("Expecting two image file names")));
    };
    let opener = args.common.opener()?;
    let access = Access::read(args.force_share).cached(super::source_cache(args.cache.as_deref())?);
    let open = |text: &str, format: Option<&str>| {
        let spec = Spec::new(text, format, args.image_opts)?;
        opener.open(spec, access)
    };
    let (first, second) = (open(a, args.a_format.as_deref())?, open(b, args.b_format.as_deref())?);
    let meter = Meter::new(args.progress && !args.quiet, None, &opener.cancel);
    let sizes = [first.chain.virtual_size(), second.chain.virtual_size()];
    let common = sizes[0].min(sizes[1]);
    let found = compare::compare(
        &first.chain,
        &second.chain,
        args.strict,
        super::workers(),
        &meter.control(),
    )
    .map_err(|failed| {
        let behind = failed.reading.is_some_and(|(_, offset)| offset >= common);
        Stop::Read {
            why: unreadable(&failed, [a, b]),
            sizes_differ: behind && sizes[0] != sizes[1] && !args.quiet && !format.is_json(),
        }
    })?;
    if found.difference.is_none() {
        meter.complete();
    }
    tell(&found, common, format, args.quiet);
    meter.end();
    Ok(u8::from(found.difference.is_some()))
}

/// Why the comparison stopped, with the place and the image.
fn unreadable(failed: &compare::Failed, names: [&String; 2]) -> Failure {
    let why = app::reason(&failed.error);
    match failed.reading {
        Some((side, offset)) => Failure::new(format!("Error while reading offset {offset} of {}: {why}", names[side])),
        None => Failure::new(why),
    }
}

fn tell(found: &Comparison, common: u64, format: Format, quiet: bool) {
    if format.is_json() {
        let (kind, offset) = match found.difference {
            None => (Value::Null, Value::Null),
            Some(Difference::Content(at)) => ("content".into(), at.into()),
            Some(Difference::Allocation(at)) => ("allocation".into(), at.into()),
            Some(Difference::Size(..)) => ("size".into(), Value::Null),
        };
        let same = found.difference.is_none();
        output::json(
            &json!({"identical": same, "difference": kind, "offset": offset, "sizes-differ": found.sizes_differ}),
        );
        return;
    }
    if quiet {
        return;
    }
    let came_to_the_end = match found.difference {
        None => true,
        Some(Difference::Content(at)) => at >= common,
        Some(Difference::Allocation(_) | Difference::Size(..)) => false,
    };
    if found.sizes_differ && came_to_the_end {
        output::line(SIZES_DIFFER);
    }
    output::line(&match found.difference {
        None => "Images are identical.".to_owned(),
        // qemu-img looks at sectors.
        Some(Difference::Content(at)) => format!("Content mismatch at offset {}!", at & !511),
        Some(Difference::Allocation(at)) => format!("Strict mode: Offset {at} block status mismatch!"),
        Some(Difference::Size(..)) => "Strict mode: Image size mismatch!".to_owned(),
    });
}
