//! `info`: the facts about an image, and about those below it.

mod human;

use serde_json::{Value, json};
use vdisk_engine::ops::info::{self, Child, Description};

use super::Common;
use crate::app::{Failure, Outcome};
use crate::output::{self, Format};
use crate::spec::{Access, OpenImage, Spec, name};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the image
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// FILENAME is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// Also show the images below
    #[arg(short = 'b', long = "backing-chain")]
    backing_chain: bool,
    /// Open the image although others may write to it
    #[arg(short = 'U', long = "force-share")]
    force_share: bool,
    /// Output format: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
    #[command(flatten)]
    common: Common,
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// One image with the files it is made of.
struct Facts {
    image: Description,
    filename: String,
    /// The protocol's name where a protocol node is used as an image.
    bare: Option<String>,
    /// `None` as well where the name starts from no folder.
    full_backing: Option<String>,
    children: Vec<Child>,
}

/// Prints the facts.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let spec = Spec::new(super::one(&args.files)?, args.format.as_deref(), args.image_opts)?;
    let all = collect(args, spec)?;
    match format {
        Format::Human => {
            let texts: Vec<_> = all.iter().map(human::print).collect();
            output::print(&texts.join("\n"));
        }
        Format::Json if args.backing_chain => output::json(&all.iter().map(to_json).collect()),
        Format::Json => all.first().map(to_json).iter().for_each(output::json),
    }
    Ok(0)
}

fn collect(args: &Args, spec: Spec<'_>) -> Result<Vec<Facts>, Failure> {
    let opener = args.common.opener()?;
    let access = Access {
        inspect: true,
        ..Access::read(args.force_share).alone().keyless()
    };
    let mut seen = vec![spec.text.to_owned()];
    let mut all = vec![facts(&opener.open(spec, access)?)?];
    while args.backing_chain
        && let Some(last) = all.last()
        && let Some(reference) = last.image.backing.clone()
    {
        let below = last.full_backing.clone().ok_or_else(|| {
            let name = &reference.name;
            Failure::new(format!(
                "Could not determine absolute backing filename, but backing filename '{name}' present"
            ))
        })?;
        if seen.contains(&below) {
            return Err(Failure::new(format!(
                "Backing file '{below}' creates an infinite loop."
            )));
        }
        if all.len() >= opener.limits.chain_depth {
            return Err(Failure::new(format!(
                "the backing chain is deeper than {} layers",
                all.len()
            )));
        }
        let image = opener.open(Spec::name(&below, reference.format.as_deref()), access)?;
        all.push(facts(&image)?);
        seen.push(below);
    }
    Ok(all)
}

fn facts(image: &OpenImage) -> Result<Facts, Failure> {
    let top = image.chain.top();
    let description = info::describe(top)?;
    let children = match image.bare {
        Some(_) => Vec::new(),
        None => info::children(top, &image.protocol)?,
    };
    let filename = image.names.first().cloned().unwrap_or_default();
    let full_backing = description
        .backing
        .as_ref()
        .and_then(|b| name::of_backing(top.format(), &image.place(), &b.name).ok());
    Ok(Facts {
        image: description,
        filename,
        bare: image.bare.clone(),
        full_backing,
        children,
    })
}

fn to_json(facts: &Facts) -> Value {
    let mut out = facts.image.to_json(facts.full_backing.as_deref(), &facts.children);
    out.insert("filename".to_owned(), facts.filename.as_str().into());
    if facts.full_backing.is_none() {
        out.remove("full-backing-filename");
    }
    // QEMU asks the server behind a raw image, which cannot say.
    if facts.image.format == "raw" && facts.children.iter().any(Child::is_remote) {
        out.remove("dirty-flag");
    }
    if let Some(protocol) = &facts.bare {
        out.insert("format".to_owned(), protocol.as_str().into());
        out.insert("format-specific".to_owned(), json!({"type": protocol, "data": {}}));
    }
    Value::Object(out)
}
