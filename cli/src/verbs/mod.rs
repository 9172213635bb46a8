//! The verbs: one file each.

mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod completions;
mod convert;
mod create;
mod dd;
mod digest;
mod formats;
mod info;
mod map;
mod measure;
mod rebase;
mod resize;
mod snapshot;
mod target;

use clap::{ArgMatches, Subcommand};
use serde_json::{Map, Value};
use vdisk_engine::formats::FormatDriver;
use vdisk_engine::storage::CacheMode;

use crate::app::{Failure, Outcome};
use crate::output;
use crate::secrets::SecretStore;
use crate::spec::Opener;

/// The verbs with their options.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Update format-specific options of the image
    Amend(amend::Args),
    /// Run a simple image benchmark
    Bench(bench::Args),
    /// Modify the persistent dirty bitmaps of the image
    Bitmap(bitmap::Args),
    /// Check the integrity of the image
    Check(check::Args),
    /// Commit the image to its backing file
    Commit(commit::Args),
    /// Check whether two images have the same content
    Compare(compare::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Copy images to another one, with format conversion
    Convert(convert::Args),
    /// Create a new image file
    Create(create::Args),
    /// Copy blocks of one image to another
    Dd(dd::Args),
    /// Print a digest of the content that is equal for the same content in any format
    Digest(digest::Args),
    /// List the formats and what they can do
    Formats(formats::Args),
    /// Display information about the image
    Info(info::Args),
    /// Show where the data of the image lies
    Map(map::Args),
    /// Calculate the file size that a new image needs
    Measure(measure::Args),
    /// Change the backing file of the image
    Rebase(rebase::Args),
    /// Change the size of the image
    Resize(resize::Args),
    /// List or change the snapshots in the image
    Snapshot(snapshot::Args),
}

/// How many threads copy and compare where the command line has no option for it: one a processor.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Verb {
    /// Takes what the derived structures lose: the order of options of different names.
    pub fn remember(&mut self, matches: &ArgMatches) {
        if let (Self::Bitmap(args), Some((_, matches))) = (self, matches.subcommand()) {
            args.remember(matches);
        }
    }
}

/// Runs a verb, reports its failure, and gives the exit code.
pub fn run(verb: &Verb) -> u8 {
    let (name, outcome): (&str, Outcome) = match verb {
        Verb::Amend(args) => ("amend", amend::run(args)),
        Verb::Bench(args) => ("bench", bench::run(args)),
        Verb::Bitmap(args) => ("bitmap", bitmap::run(args)),
        Verb::Check(args) => ("check", check::run(args)),
        Verb::Commit(args) => ("commit", commit::run(args)),
        Verb::Compare(args) => ("compare", compare::run(args)),
        Verb::Completions(args) => ("completions", completions::run(args)),
        Verb::Convert(args) => ("convert", convert::run(args)),
        Verb::Create(args) => ("create", create::run(args)),
        Verb::Dd(args) => ("dd", dd::run(args)),
        Verb::Digest(args) => ("digest", digest::run(args)),
        Verb::Formats(args) => ("formats", formats::run(args)),
        Verb::Info(args) => ("info", info::run(args)),
        Verb::Map(args) => ("map", map::run(args)),
        Verb::Measure(args) => ("measure", measure::run(args)),
        Verb::Rebase(args) => ("rebase", rebase::run(args)),
        Verb::Resize(args) => ("resize", resize::run(args)),
        Verb::Snapshot(args) => ("snapshot", snapshot::run(args)),
    };
    outcome.unwrap_or_else(|failure| failure.report(name))
}

/// Options of every verb that opens images.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// A secret (passphrase or key): secret,id=ID,data=TEXT or file=PATH[,format=base64][,keyid=ID,iv=BASE64]; certificates for NBD:
    /// tls-creds-x509,id=ID,dir=FOLDER[,verify-peer=off]
    #[arg(long = "object", value_name = "OBJDEF")]
    objects: Vec<String>,
}

impl Common {
    fn opener(&self) -> Result<Opener, Failure> {
        Ok(Opener::new(SecretStore::read(&self.objects)?))
    }
}

/// The one file name of verbs that take one.
fn one(files: &[String]) -> Result<&str, Failure> {
    match files {
        [file] => Ok(file),
        _ => Err(Failure::usage("Expecting one image file name")),
    }
}

/// A cache mode of the image that is read.
fn source_cache(given: Option<&str>) -> Result<CacheMode, Failure> {
    cache(given, CacheMode::Writeback, "source cache")
}

/// A cache mode of the image that is written.
fn target_cache(given: Option<&str>, default: CacheMode) -> Result<CacheMode, Failure> {
    cache(given, default, "cache")
}

fn cache(given: Option<&str>, default: CacheMode, what: &str) -> Result<CacheMode, Failure> {
    match given {
        None => Ok(default),
        Some(name) => CacheMode::from_name(name).ok_or_else(|| Failure::new(format!("Invalid {what} option: {name}"))),
    }
}

/// The driver of a format that an image is to be made of.
fn driver(format: &str) -> Result<&'static dyn FormatDriver, Failure> {
    vdisk_engine::formats::by_name(format).map_err(|_| Failure::new(format!("Unknown file format '{format}'")))
}

/// Tells programs what was done.
fn report(format: output::Format, pairs: &[(&str, Value)]) {
    if format.is_json() {
        let object: Map<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        output::json(&Value::Object(object));
    }
}
