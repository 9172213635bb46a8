//! `map`: where the data of an image lies.

use std::fmt::Write as _;

use vdisk_engine::ops::map::{self, MapEntry};

use super::Common;
use crate::app::{Failure, Outcome};
use crate::output::{self, Format};
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
    /// Start at this offset
    #[arg(short = 's', long = "start-offset", value_name = "OFFSET")]
    start_offset: Option<String>,
    /// Map at most this many bytes
    #[arg(short = 'l', long = "max-length", value_name = "LENGTH")]
    max_length: Option<String>,
    /// Output format: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
    /// Open the image although others may write to it
    #[arg(short = 'U', long = "force-share")]
    force_share: bool,
    #[command(flatten)]
    common: Common,
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// Prints the map.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let start = args
        .start_offset
        .as_deref()
        .map_or(Ok(0), |t| size::size("start offset", t))?;
    let length = args
        .max_length
        .as_deref()
        .map(|t| size::size("max length", t))
        .transpose()?;
    let spec = Spec::new(super::one(&args.files)?, args.format.as_deref(), args.image_opts)?;
    let image = args
        .common
        .opener()?
        .open(spec, Access::read(args.force_share).keyless())?;
    let mut printer = Printer::new(format);
    for entry in map::map(&image.chain, start, length.unwrap_or(u64::MAX)) {
        let entry = entry.map_err(|e| Failure::from(e).context("Failed to read the map"))?;
        printer.add(&entry, &image)?;
    }
    printer.end(start);
    Ok(0)
}

/// Prints entries as they come, in large pieces.
struct Printer {
    format: Format,
    text: String,
    first: bool,
}

impl Printer {
    fn new(format: Format) -> Self {
        let mut text = String::new();
        if format == Format::Human {
            let _ = writeln!(text, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to");
        } else {
            text.push('[');
        }
        Self {
            format,
            text,
            first: true,
        }
    }

    fn add(&mut self, entry: &MapEntry, image: &OpenImage) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.add_json(entry),
            Format::Human => self.add_human(entry, image)?,
        }
        if self.text.len() > 1 << 16 {
            output::print(&std::mem::take(&mut self.text));
        }
        Ok(())
    }

    fn add_json(&mut self, e: &MapEntry) {
        if !std::mem::take(&mut self.first) {
            self.text.push_str(",\n");
        }
        let _ = write!(
            self.text,
            "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \"compressed\": {}",
            e.start, e.length, e.depth, e.present, e.zero, e.data, e.compressed
        );
        if let Some(place) = e.place {
            let _ = write!(self.text, ", \"offset\": {}", place.offset);
        }
        self.text.push('}');
    }

    fn add_human(&mut self, e: &MapEntry, image: &OpenImage) -> Result<(), Failure> {
        if !e.data || e.zero {
            return Ok(());
        }
        let Some(place) = e.place else {
            output::print(&std::mem::take(&mut self.text));
            return Err(Failure::new(
                "File contains external, encrypted or compressed clusters.",
            ));
        };
        let layer = image.chain.layers().get(e.depth);
        let storage = layer.and_then(|l| l.storages().get(place.file).cloned());
        let name = storage.map_or(String::new(), |s| s.name().to_owned());
        let _ = writeln!(
            self.text,
            "{:<16}{:<16}{:<16}{name}",
            hex(e.start),
            hex(e.length),
            hex(place.offset)
        );
        Ok(())
    }

    /// A program is told of a range without bytes too.
    fn end(mut self, start: u64) {
        if self.format.is_json() {
            if self.first {
                self.add_json(&MapEntry {
                    start,
                    length: 0,
                    depth: 0,
                    present: false,
                    zero: false,
                    data: false,
                    compressed: false,
                    place: None,
                });
            }
            self.text.push_str("]\n");
        }
        output::print(&self.text);
    }
}

/// As C's `%#x`: no prefix for zero.
fn hex(number: u64) -> String {
    if number == 0 {
        "0".to_owned()
    } else {
        format!("{number:#x}")
    }
}
