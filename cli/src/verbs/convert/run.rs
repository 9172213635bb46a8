//! The steps of a conversion: check the command line, open the sources, do the work.

use vdisk_engine::formats::FormatDriver;

use super::Args;
use super::job::{Job, Numbers};
use super::opened::Sources;
use super::streams::Spool;
use crate::app::{Failure, Outcome};
use crate::output::Format;
use crate::spec::keyval;
use crate::text::size;
use crate::verbs::create;

/// Copies.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let list = keyval::join(&args.options)?;
    let numbers = numbers(args)?;
    let target_format = target_format(args)?;
    if list.as_deref().is_some_and(keyval::asks_for_help) {
        return create::help(target_format, !args.files.is_empty());
    }
    check_usage(args, list.as_deref())?;
    let Some((target, sources)) = args.files.split_last().filter(|(_, s)| !s.is_empty()) else {
        return Err(Failure::new("Must specify image file name"));
    };
    let opener = args.common.opener()?;
    if !args.no_create {
        check_backing_support(args, crate::verbs::driver(target_format)?)?;
    }
    let stdout = (target == "-").then(Spool::new).transpose()?;
    let opened = Sources::open(args, &opener, sources)?;
    let job = Job {
        args,
        opener: &opener,
        list,
        numbers,
        target_format,
        target: stdout
            .as_ref()
            .map_or(target.clone(), |s| s.path().display().to_string()),
        to_stdout: stdout.is_some(),
    };
    let size = job.run(&opened)?;
    if let Some(spool) = stdout {
        spool.send_to_stdout()?;
    } else {
        let pairs = [("filename", target.as_str().into()), ("virtual-size", size.into())];
        crate::verbs::report(format, &pairs);
    }
    Ok(0)
}

fn target_format(args: &Args) -> Result<&str, Failure> {
    match (&args.target_format, args.target_image_opts) {
        // Without -n it is asked for that first.
        (Some(_), true) if args.no_create => Err(Failure::new("--image-opts and --format are mutually exclusive")),
        (format, _) => Ok(format.as_deref().unwrap_or("raw")),
    }
}

fn numbers(args: &Args) -> Result<Numbers, Failure> {
    let sparse = match args.sparse_size.as_deref() {
        None => 4096,
        Some(text) => {
            let bytes = size::size("buffer size for sparse output", text)?;
            if bytes % 512 != 0 || bytes > 16 << 20 {
                return Err(Failure::new(
                    "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to 16777216. Select 0 \
                     to disable sparse detection (fully allocates output).",
                ));
            }
            bytes
        }
    };
    let cores = crate::verbs::workers();
    let workers = match args.parallel.as_deref() {
        // One reads while another writes; more of them than processors wait for each other.
        None => cores.clamp(2, 8),
        // Who asks for more may have to wait long for each read. Still more threads only cost memory.
        Some(text) => (size::number_between("number of coroutines", text, 1, 16)? as usize).min(cores * 2),
    };
    let rate = args.rate.as_deref().map(|t| size::size("rate limit", t)).transpose()?;
    Ok(Numbers { sparse, workers, rate })
}

fn check_usage(args: &Args, list: Option<&str>) -> Result<(), Failure> {
    let wrong = |when: bool, what: &str| if when { Err(Failure::new(what)) } else { Ok(()) };
    wrong(
        args.copy_range && args.compress,
        "Cannot enable copy offloading when -c is used",
    )?;
    wrong(
        args.copy_range && args.sparse_size.is_some(),
        "Cannot enable copy offloading when -S is used",
    )?;
    wrong(
        args.copy_range && args.salvage,
        "Cannot use copy offloading in salvaging mode",
    )?;
    wrong(
        args.skip_broken_bitmaps && !args.bitmaps,
        "Use of --skip-broken-bitmaps requires --bitmaps",
    )?;
    wrong(
        args.target_image_opts && !args.no_create,
        "--target-image-opts requires use of -n flag",
    )?;
    wrong(
        args.no_create && list.is_some(),
        "-o has no effect when skipping image creation",
    )?;
    wrong(
        args.target_is_zero && !args.no_create,
        "--target-is-zero requires use of -n flag",
    )?;
    wrong(
        args.target_is_zero && args.backing.is_some(),
        "Cannot use --target-is-zero when the destination image has a backing file",
    )
}

fn check_backing_support(args: &Args, driver: &dyn FormatDriver) -> Result<(), Failure> {
    let given = [
        (args.backing.is_some(), "file"),
        (args.backing_format.is_some(), "file format"),
    ];
    match given.iter().find(|(given, _)| *given && !driver.capabilities().backing) {
        None => Ok(()),
        Some((_, what)) => Err(Failure::new(format!(
            "Backing {what} not supported for file format '{}'",
            driver.name()
        ))),
    }
}
