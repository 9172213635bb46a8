//! `check`: finds and mends contradictions in an image.

use serde_json::{Map, Value};
use vdisk_engine::image::{CheckReport, Repair};
use vdisk_engine::ops::check;

use super::Common;
use crate::app::{self, Failure, Outcome};
use crate::output::{self, Format};
use crate::progress::Meter;
use crate::spec::{Access, Opener, Spec};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the image
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// FILENAME is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// What to repair: leaks or all
    #[arg(short = 'r', long = "repair", value_name = "leaks|all")]
    repair: Option<String>,
    /// Output format: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
    /// Cache mode of the image
    #[arg(short = 'T', long = "cache", value_name = "CACHE")]
    cache: Option<String>,
    /// Open the image although others may write to it
    #[arg(short = 'U', long = "force-share")]
    force_share: bool,
    /// Print nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,
    #[command(flatten)]
    common: Common,
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// The format has nothing to check.
const NOT_SUPPORTED: u8 = 63;

/// Exit codes: 0 clean, 1 the check failed, 2 corruption, 3 leaks, 63 nothing to check.
pub fn run(args: &Args) -> Outcome {
    let repair = match args.repair.as_deref() {
        None => Repair::No,
        Some("leaks") => Repair::Leaks,
        Some("all") => Repair::All,
        Some(other) => {
            return Err(Failure::usage(format!(
                "--repair (-r) expects 'leaks' or 'all' not '{other}'"
            )));
        }
    };
    let format = Format::parse(args.output.as_deref())?;
    let text = super::one(&args.files)?;
    let access = Access {
        writable: repair != Repair::No,
        check: true,
        ..Access::read(args.force_share).keyless()
    }
    .cached(super::source_cache(args.cache.as_deref())?);
    let spec = Spec::new(text, args.format.as_deref(), args.image_opts)?;
    let opener = args.common.opener()?;
    let mut found = check_once(&opener, spec, access, repair)?;
    let Some(report) = &mut found.report else {
        app::error("This image format does not support checks");
        return Ok(NOT_SUPPORTED);
    };
    if report.corruptions_fixed + report.leaks_fixed > 0 {
        if format == Format::Human && !args.quiet {
            output::print(&repaired(report));
        }
        let (leaks_fixed, corruptions_fixed) = (report.leaks_fixed, report.corruptions_fixed);
        found = check_once(&opener, spec, access, Repair::No)?;
        if let Some(again) = &mut found.report {
            (again.leaks_fixed, again.corruptions_fixed) = (leaks_fixed, corruptions_fixed);
        }
    }
    let report = found.report.unwrap_or_default();
    match format {
        _ if args.quiet => {}
        Format::Json => output::json(&Value::Object(to_json(&report, &found.name, found.format))),
        Format::Human => output::print(&to_human(&report)),
    }
    Ok(exit_code(&report))
}

/// What one pass found; no report where the format has nothing to check.
struct Found {
    report: Option<CheckReport>,
    name: String,
    format: &'static str,
}

fn check_once(opener: &Opener, spec: Spec<'_>, access: Access, repair: Repair) -> Result<Found, Failure> {
    let image = opener.open(spec, access)?;
    let top = image.chain.top();
    let name = image.names.first().cloned().unwrap_or_default();
    let can = vdisk_engine::formats::by_name(top.format())?.capabilities();
    let mut found = Found {
        report: None,
        name,
        format: top.format(),
    };
    if can.check {
        let control = Meter::new(false, None, &opener.cancel).control();
        let report = check::check(top, repair, &control).map_err(|e| Failure::from(e).context("Check failed"))?;
        for message in &report.messages {
            output::say(message);
        }
        found.report = Some(report);
    }
    Ok(found)
}

fn exit_code(report: &CheckReport) -> u8 {
    if report.corruptions > 0 {
        2
    } else if report.leaks > 0 {
        3
    } else {
        u8::from(report.check_errors > 0)
    }
}

fn repaired(report: &CheckReport) -> String {
    format!(
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
         Double checking the fixed image now...\n",
        report.leaks_fixed, report.corruptions_fixed
    )
}

fn to_human(report: &CheckReport) -> String {
    let mut out = String::new();
    if report.corruptions + report.leaks + report.check_errors == 0 {
        out.push_str("No errors were found on the image.\n");
    }
    if report.corruptions > 0 {
        out.push_str(&format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n",
            report.corruptions
        ));
    }
    if report.leaks > 0 {
        out.push_str(&format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n",
            report.leaks
        ));
    }
    if report.check_errors > 0 {
        out.push_str(&format!(
            "\n{} internal errors have occurred during the check.\n",
            report.check_errors
        ));
    }
    if let (Some(total), Some(allocated)) = (report.total_clusters, report.allocated_clusters)
        && total > 0
        && allocated > 0
    {
        let percent = |part: Option<u64>, of: u64| part.unwrap_or(0) as f64 * 100.0 / of as f64;
        out.push_str(&format!(
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            percent(Some(allocated), total),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated),
        ));
    }
    if let Some(end) = report.image_end_offset.filter(|e| *e > 0) {
        out.push_str(&format!("Image end offset: {end}\n"));
    }
    out
}

fn to_json(report: &CheckReport, name: &str, format: &str) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("filename".to_owned(), name.into());
    out.insert("format".to_owned(), format.into());
    out.insert("check-errors".to_owned(), report.check_errors.into());
    for (key, number) in [
        ("image-end-offset", report.image_end_offset.unwrap_or(0)),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", report.corruptions_fixed),
        ("leaks-fixed", report.leaks_fixed),
        ("total-clusters", report.total_clusters.unwrap_or(0)),
        ("allocated-clusters", report.allocated_clusters.unwrap_or(0)),
        ("fragmented-clusters", report.fragmented_clusters.unwrap_or(0)),
        ("compressed-clusters", report.compressed_clusters.unwrap_or(0)),
    ] {
        if number > 0 {
            out.insert(key.to_owned(), number.into());
        }
    }
    out
}
