//! `bitmap`: changes persistent dirty bitmaps.

use clap::ArgMatches;
use vdisk_engine::image::Bitmaps;

use super::{Common, target};
use crate::app::{Failure, Outcome};
use crate::output::Format;
use crate::spec::{Access, OpenImage, Spec};
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
    /// Add BITMAP
    #[arg(long, action = clap::ArgAction::Append, num_args = 0, default_missing_value = "true")]
    add: Vec<bool>,
    /// Remove BITMAP
    #[arg(long, action = clap::ArgAction::Append, num_args = 0, default_missing_value = "true")]
    remove: Vec<bool>,
    /// Clear BITMAP
    #[arg(long, action = clap::ArgAction::Append, num_args = 0, default_missing_value = "true")]
    clear: Vec<bool>,
    /// Let BITMAP record changes
    #[arg(long, action = clap::ArgAction::Append, num_args = 0, default_missing_value = "true")]
    enable: Vec<bool>,
    /// Stop BITMAP from recording changes
    #[arg(long, action = clap::ArgAction::Append, num_args = 0, default_missing_value = "true")]
    disable: Vec<bool>,
    /// Add what this bitmap has to BITMAP
    #[arg(long, value_name = "SOURCE", action = clap::ArgAction::Append)]
    merge: Vec<String>,
    /// Bytes that a bit of a new bitmap stands for
    #[arg(short = 'g', long, value_name = "SIZE")]
    granularity: Option<String>,
    /// The image that the bitmap to merge is taken from
    #[arg(short = 'b', long = "source-file", value_name = "SRC_FILENAME")]
    source_file: Option<String>,
    /// Format of that image
    #[arg(short = 'F', long = "source-format", value_name = "FMT")]
    source_format: Option<String>,
    /// Output format: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
    #[command(flatten)]
    common: Common,
    #[arg(value_name = "FILENAME BITMAP")]
    words: Vec<String>,
    /// What to do, in the order of the command line
    #[arg(skip)]
    actions: Vec<Action>,
}

#[derive(Debug, Clone)]
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => "merge",
        }
    }
}

impl Args {
    /// Puts the actions in the order of the command line.
    pub fn remember(&mut self, matches: &ArgMatches) {
        let given = [
            ("add", Action::Add),
            ("remove", Action::Remove),
            ("clear", Action::Clear),
            ("enable", Action::Enable),
            ("disable", Action::Disable),
        ];
        let mut found = Vec::new();
        for (id, action) in given {
            let places = matches.indices_of(id).into_iter().flatten();
            found.extend(places.map(|at| (at, action.clone())));
        }
        let places = matches.indices_of("merge").into_iter().flatten();
        found.extend(places.zip(self.merge.iter().cloned().map(Action::Merge)));
        found.sort_by_key(|(at, _)| *at);
        self.actions = found.into_iter().map(|(_, action)| action).collect();
    }

    fn has(&self, wanted: &str) -> bool {
        self.actions.iter().any(|a| a.name() == wanted)
    }
}

/// Does the actions one after the other.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let granularity = match args.granularity.as_deref() {
        None => 0,
        Some(text) => size::size_between("granularity", text, 0, i64::MAX as u64)?,
    };
    let [file, name] = args.words.as_slice() else {
        return Err(Failure::new("Expecting filename and bitmap name"));
    };
    check_usage(args)?;
    let opener = args.common.opener()?;
    let spec = Spec::new(file, args.format.as_deref(), args.image_opts)?;
    // Bitmaps say nothing about what is below, and the source may be built on the target.
    let image = opener.open(spec, Access::write().alone())?;
    let source = args.source_file.as_deref().map(|file| {
        let spec = Spec::name(file, args.source_format.as_deref());
        opener.open(spec, Access::read(false).alone())
    });
    let source = source.transpose()?;
    let top = image.chain.top();
    let job = Job {
        bitmaps: top.bitmaps(),
        size: image.chain.virtual_size(),
        source: source.as_ref(),
        name,
        granularity,
    };
    for action in &args.actions {
        let verb = action.name();
        job.apply(action)
            .map_err(|f| f.context(format!("Operation {verb} on bitmap {name} failed")))?;
    }
    top.close()?;
    super::report(
        format,
        &[("filename", file.as_str().into()), ("bitmap", name.as_str().into())],
    );
    Ok(0)
}

fn check_usage(args: &Args) -> Result<(), Failure> {
    if args.actions.is_empty() {
        return Err(Failure::new(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        ));
    }
    if args.granularity.is_some() && !args.has("add") {
        return Err(Failure::new("granularity only supported with --add"));
    }
    if args.source_format.is_some() && args.source_file.is_none() {
        return Err(Failure::new("-F only supported with -b"));
    }
    if args.source_file.is_some() && !args.has("merge") {
        return Err(Failure::new("Merge bitmap source file only supported with --merge"));
    }
    Ok(())
}

struct Job<'a> {
    bitmaps: Option<&'a dyn Bitmaps>,
    /// Of the disk.
    size: u64,
    /// The image that bitmaps to merge are taken from, where it is another one.
    source: Option<&'a OpenImage>,
    name: &'a str,
    granularity: u64,
}

fn not_found(name: &str) -> Failure {
    Failure::new(format!("Dirty bitmap '{name}' not found"))
}

impl Job<'_> {
    fn apply(&self, action: &Action) -> Result<(), Failure> {
        let name = self.name;
        let Some(bitmaps) = self.bitmaps else {
            return Err(match action {
                Action::Add => Failure::new(format!(
                    "Can't store persistent bitmaps to {name}: Operation not supported"
                )),
                _ => not_found(name),
            });
        };
        let known = bitmaps.list()?.into_iter().find(|b| b.name == name);
        if !matches!(action, Action::Add) {
            let broken = known.as_ref().ok_or_else(|| not_found(name))?.in_use;
            if broken && !matches!(action, Action::Remove) {
                return Err(Failure::new(format!(
                    "Bitmap '{name}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap from disk"
                )));
            }
        }
        match action {
            Action::Add if known.is_some() => Err(Failure::new(format!("Bitmap already exists: {name}"))),
            Action::Add if self.granularity > 0 && !(self.granularity.is_power_of_two() && self.granularity >= 512) => {
                Err(Failure::new("Granularity must be power of 2 and at least 512"))
            }
            Action::Add => Ok(bitmaps.add(name, self.granularity, true)?),
            Action::Remove => Ok(bitmaps.remove(name)?),
            Action::Clear => Ok(bitmaps.clear(name)?),
            Action::Enable => Ok(bitmaps.set_enabled(name, true)?),
            Action::Disable => Ok(bitmaps.set_enabled(name, false)?),
            Action::Merge(source) => self.merge(bitmaps, source),
        }
    }

    fn merge(&self, into: &dyn Bitmaps, source: &str) -> Result<(), Failure> {
        let Some(chain) = self.source.map(|image| &image.chain) else {
            return Ok(into.merge(self.name, with_bitmap(Some(into), source)?, source)?);
        };
        let from = with_bitmap(chain.top().bitmaps(), source)?;
        target::refuse_other_size(self.size, chain.virtual_size())?;
        Ok(into.merge(self.name, from, source)?)
    }
}

/// The bitmaps of an image that has a usable one of this name.
fn with_bitmap<'a>(bitmaps: Option<&'a dyn Bitmaps>, name: &str) -> Result<&'a dyn Bitmaps, Failure> {
    let bitmaps = bitmaps.ok_or_else(|| not_found(name))?;
    let found = bitmaps.list()?.into_iter().find(|b| b.name == name);
    if found.ok_or_else(|| not_found(name))?.in_use {
        return Err(Failure::new(format!(
            "Bitmap '{name}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap from disk"
        )));
    }
    Ok(bitmaps)
}
