//! `amend`: changes create options of an image that exists.

use std::sync::Arc;

use vdisk_engine::Error;
use vdisk_engine::crypto::luks::{KeyEnv, KeyWork};
use vdisk_engine::env::BackingReference;
use vdisk_engine::env::Secrets as _;
use vdisk_engine::formats::{self, FormatDriver};
use vdisk_engine::ops::{amend, keys};
use vdisk_engine::options::Options;
use vdisk_engine::storage::CacheMode;

use super::{Common, target};
use crate::app::{Failure, Outcome};
use crate::options;
use crate::output::{self, Format};
use crate::progress::Meter;
use crate::spec::{Access, OpenImage, Opener, Spec, keyval};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the image
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// FILENAME is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// The options to change ('-o help' lists them)
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// Cache mode of the image
    #[arg(short = 't', long = "cache", value_name = "CACHE")]
    cache: Option<String>,
    /// Allow what can make the image unreadable
    #[arg(long)]
    force: bool,
    /// Show progress
    #[arg(short = 'p', long = "progress")]
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

/// Amends.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let Some(list) = keyval::join(&args.options)? else {
        return Err(Failure::usage("Must specify options (-o)"));
    };
    let asked = keyval::asks_for_help(&list);
    if let (true, Some(format)) = (asked, args.format.as_deref()) {
        return help(super::driver(format)?);
    }
    let text = match (asked, super::one(&args.files)) {
        // Help is told without a pointer to it.
        (true, Err(failure)) => return Err(Failure::new(failure.message())),
        (_, text) => text?,
    };
    let cache = super::target_cache(args.cache.as_deref(), CacheMode::Writeback)?;
    let spec = Spec::new(text, args.format.as_deref(), args.image_opts)?;
    let opener = args.common.opener()?;
    let image = opener.open(spec, Access::write().cached(cache))?;
    let top = image.chain.top();
    let driver = formats::by_name(top.format())?;
    if asked {
        return help(driver);
    }
    let given = read(driver, &list)?;
    refuse_other_backing(&given, top.backing())?;
    let meter = Meter::new(args.progress && !args.quiet, None, &opener.cancel);
    let (keys, rest) = split_keys(driver, given);
    if !keys.is_empty() {
        change_keys(&opener, &image, &keys, args.force, &meter)?;
    }
    if keys.is_empty() || !rest.is_empty() {
        amend::amend(&image.chain, &rest, args.force, &meter.control())?;
    }
    top.close()?;
    meter.finish();
    super::report(format, &[("filename", text.into())]);
    Ok(0)
}

/// The options of key slots, without the prefix that qcow2 gives them, and all others.
fn split_keys(driver: &dyn FormatDriver, given: Options) -> (Options, Options) {
    if driver.name() == "luks" {
        return (given, Options::new());
    }
    let keys = given.below("encrypt");
    let mut rest = given;
    for (name, _) in keys.iter() {
        rest.take(&format!("encrypt.{name}"));
    }
    (keys, rest)
}

fn change_keys(
    opener: &Opener,
    image: &OpenImage,
    options: &Options,
    force: bool,
    meter: &Arc<Meter>,
) -> Result<(), Failure> {
    let top = image.chain.top();
    if top.key_slots().is_none() {
        return Err(Failure::new(if top.info()?.encrypted {
            "Only LUKS encryption options can be amended"
        } else {
            "Can't amend encryption options - encryption not present"
        }));
    }
    let control = meter.control();
    let (cancelled, elapsed) = (|| control.cancel_token().is_cancelled(), || opener.secrets.elapsed());
    let work = KeyWork {
        limits: &opener.limits,
        cancelled: &cancelled,
        elapsed: &elapsed,
    };
    let env = KeyEnv {
        work,
        random: &target::random,
    };
    keys::change_keys(top, options, image.key_secret.as_deref(), force, &opener.secrets, &env)
        .map_err(|error| Failure::new(said(&error, options)))?;
    Ok(())
}

/// What is wrong with a change of keys, in the words that scripts around qemu-img look for.
fn said(error: &Error, options: &Options) -> String {
    let what = error.what();
    let slot = what.strip_prefix("key slot ").and_then(|rest| rest.split(' ').next());
    let last = what.starts_with("this would erase the last key");
    match (slot, options.get("keyslot")) {
        (Some(slot), _) if what.ends_with("holds no key") => {
            format!("Given keyslot {slot} is already erased (inactive) ")
        }
        (Some(slot), _) if what.contains("holds a key") => {
            format!("Refusing to overwrite active keyslot {slot} - please erase it first")
        }
        (_, Some(slot)) if last => format!(
            "Attempt to erase the only active keyslot {slot} which will erase all the data in the image irreversibly - refusing operation"
        ),
        (_, None) if last => {
            "All the active keyslots match the (old) password that was given and erasing them will erase all the \
                              data in the image irreversibly - refusing operation"
                .to_owned()
        }
        _ if what.starts_with("no key slot is empty") => "Can't add a keyslot - all keyslots are in use".to_owned(),
        _ if what.starts_with("no key slot opens") && options.get("state") == Some("inactive") => {
            "No keyslots match given (old) password for erase operation".to_owned()
        }
        _ if what.starts_with("option 'state' is needed") => "Parameter 'state' is missing".to_owned(),
        _ => crate::app::sentence(error),
    }
}

/// A layer below is changed by `rebase`, which sees to it that the content stays.
fn refuse_other_backing(given: &Options, now: Option<BackingReference>) -> Result<(), Failure> {
    let (name, format) = (given.get("backing_file"), given.get("backing_fmt"));
    let same = |given: Option<&str>, now: Option<&String>| given.is_none() || given == now.map(String::as_str);
    let (now_name, now_format) = now.map_or((None, None), |b| (Some(b.name), b.format));
    if same(name, now_name.as_ref()) && same(format, now_format.as_ref()) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "Cannot amend the backing file\nYou can use '{} rebase' instead.",
        crate::app::name()
    )))
}

fn refuse_fixed(driver: &dyn FormatDriver) -> Result<(), Failure> {
    if driver.capabilities().amend {
        return Ok(());
    }
    Err(Failure::new(format!(
        "Format driver '{}' does not support option amendment",
        driver.name()
    )))
}

/// Reads the list; options that a new image could have are told from others.
fn read(driver: &dyn FormatDriver, list: &str) -> Result<Options, Failure> {
    refuse_fixed(driver)?;
    let table = options::amend_table(driver);
    let created = options::create_table(driver);
    for (name, _) in keyval::parse(list, None) {
        if !table.iter().any(|s| s.name == name) && created.iter().any(|s| s.name == name) {
            return Err(Failure::new(format!(
                "Invalid parameter '{name}'\nThis option is only supported for image creation"
            )));
        }
    }
    let given = options::read(Some(list), &table)?;
    options::check_keys(&given)?;
    if let Some(level) = given.get("compat").filter(|c| !["0.10", "1.1", "v2", "v3"].contains(c)) {
        return Err(Failure::new(format!("Unknown compatibility level {level}")));
    }
    Ok(given)
}

fn help(driver: &dyn FormatDriver) -> Outcome {
    refuse_fixed(driver)?;
    output::line(&format!("Amend options for '{}':", driver.name()));
    output::print(&options::help(&options::amend_table(driver)));
    Ok(0)
}
