//! `snapshot`: internal snapshots.

use std::time::{SystemTime, UNIX_EPOCH};

use vdisk_engine::image::Snapshots;

use super::Common;
use crate::app::{Failure, Outcome};
use crate::output::{self, Format};
use crate::spec::{Access, Spec};
use crate::text::table;

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the image
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// FILENAME is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// List the snapshots (the default)
    #[arg(short = 'l', long, action = clap::ArgAction::Count)]
    list: u8,
    /// Take a snapshot
    #[arg(short = 'c', long, value_name = "SNAPSHOT", action = clap::ArgAction::Append)]
    create: Vec<String>,
    /// Go back to a snapshot
    #[arg(short = 'a', long, value_name = "SNAPSHOT", action = clap::ArgAction::Append)]
    apply: Vec<String>,
    /// Forget a snapshot
    #[arg(short = 'd', long, value_name = "SNAPSHOT", action = clap::ArgAction::Append)]
    delete: Vec<String>,
    /// Open the image although others may write to it
    #[arg(short = 'U', long = "force-share")]
    force_share: bool,
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

enum Action<'a> {
    List,
    Create(&'a str),
    Apply(&'a str),
    Delete(&'a str),
}

impl Args {
    fn action(&self) -> Result<Action<'_>, Failure> {
        let mut actions = Vec::new();
        actions.extend((0..self.list).map(|_| Action::List));
        actions.extend(self.create.iter().map(|name| Action::Create(name)));
        actions.extend(self.apply.iter().map(|name| Action::Apply(name)));
        actions.extend(self.delete.iter().map(|name| Action::Delete(name)));
        if actions.len() > 1 {
            return Err(Failure::usage("Cannot mix '-l', '-a', '-c', '-d'"));
        }
        Ok(actions.pop().unwrap_or(Action::List))
    }
}

/// Does one thing with the snapshots of an image.
pub fn run(args: &Args) -> Outcome {
    let action = args.action()?;
    let format = Format::parse(args.output.as_deref())?;
    let text = super::one(&args.files)?;
    let spec = Spec::new(text, args.format.as_deref(), args.image_opts)?;
    let access = Access {
        writable: !matches!(action, Action::List),
        keyless: matches!(action, Action::List),
        ..Access::read(args.force_share)
    };
    let image = args.common.opener()?.open(spec, access)?;
    let top = image.chain.top();
    if let Action::List = action {
        let list = top.snapshots().map_or(Ok(Vec::new()), Snapshots::list)?;
        if format.is_json() {
            let described = vdisk_engine::ops::info::describe(top)?.to_json(None, &[]);
            output::json(described.get("snapshots").unwrap_or(&serde_json::json!([])));
        } else if !list.is_empty() {
            output::print(&table::snapshots(&list, ""));
        }
        return Ok(0);
    }
    let name = change(top.snapshots(), &action)?;
    top.close()?;
    super::report(format, &[("filename", text.into()), ("snapshot", name.into())]);
    Ok(0)
}

fn change<'a>(snapshots: Option<&dyn Snapshots>, action: &Action<'a>) -> Result<&'a str, Failure> {
    let (verb, name) = match action {
        Action::List => return Ok(""),
        Action::Create(name) => ("create", *name),
        Action::Apply(name) => ("apply", *name),
        Action::Delete(name) => ("delete", *name),
    };
    let failed = |why: &str| Failure::new(format!("Could not {verb} snapshot '{name}': {why}"));
    let Some(snapshots) = snapshots else {
        return Err(failed(match action {
            Action::Create(_) => "Operation not supported",
            Action::Apply(_) => "Block driver does not support snapshots",
            _ => "snapshot not found",
        }));
    };
    let list = snapshots.list()?;
    let known = list.iter().any(|s| s.id == name || s.name == name);
    // As with qemu-img an id is no name here: the snapshot that has it may be another one than the one that is meant.
    let named = list.iter().find(|s| s.name == name);
    let done = match action {
        Action::Create(_) => snapshots.create(name, now()).map(|_| ()),
        Action::Apply(_) if !known => return Err(failed("Can't find snapshot")),
        Action::Apply(_) => snapshots.apply(name),
        _ => match named {
            Some(snapshot) => snapshots.delete(&snapshot.id),
            None => return Err(failed("snapshot not found")),
        },
    };
    done.map_err(|e| failed(&crate::app::sentence(&e)))?;
    Ok(name)
}

fn now() -> (u64, u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_secs(), now.subsec_nanos())
}
