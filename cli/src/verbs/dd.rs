//! `dd`: copies blocks of an image to a new one.

use vdisk_engine::ops::convert::{CopyOptions, CopyTarget, convert_into};
use vdisk_engine::ops::{GuestSource, Walk};
use vdisk_engine::{Chain, Result as EngineResult};

use super::convert::Located;
use super::{Common, create};
use crate::app::{self, Failure, Outcome};
use crate::output::Format;
use crate::progress::Meter;
use crate::spec::{Access, Spec};
use crate::text::size;

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the input
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,
    /// INPUT is a complete image specification
    #[arg(long = "image-opts")]
    image_opts: bool,
    /// Format of the output
    #[arg(short = 'O', long = "output-format", value_name = "FMT", default_value = "raw")]
    output_format: String,
    /// Open the input although others may write to it
    #[arg(short = 'U', long = "force-share")]
    force_share: bool,
    /// Output format of the report: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
    #[command(flatten)]
    common: Common,
    /// if=INPUT of=OUTPUT [bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS]
    #[arg(value_name = "OPERANDS")]
    operands: Vec<String>,
}

#[derive(Default)]
struct Operands {
    input: Option<String>,
    output: Option<String>,
    block: u64,
    count: Option<u64>,
    skip: u64,
}

impl Operands {
    fn parse(words: &[String]) -> Result<Self, Failure> {
        let mut found = Self {
            block: 512,
            ..Self::default()
        };
        for word in words {
            let Some((name, value)) = word.split_once('=') else {
                return Err(Failure::new(format!("unrecognized operand {word}")));
            };
            match name {
                "if" => found.input = Some(value.to_owned()),
                "of" => found.output = Some(value.to_owned()),
                "bs" => found.block = size::size_between("bs", value, 1, i32::MAX as u64)?,
                "count" => found.count = Some(number("count", value)?),
                "skip" => found.skip = number("skip", value)?,
                _ => return Err(Failure::new(format!("unrecognized operand {name}"))),
            }
        }
        Ok(found)
    }
}

/// A number of blocks, which takes no suffix.
fn number(what: &str, text: &str) -> Result<u64, Failure> {
    size::number_between(what, text, 0, i64::MAX as u64)
}

/// Copies.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let operands = Operands::parse(&args.operands)?;
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    let opener = args.common.opener()?;
    let spec = Spec::new(input, args.format.as_deref(), args.image_opts)?;
    let source = opener.open(spec, Access::read(args.force_share))?;
    let driver = super::driver(&args.output_format).map_err(|_| Failure::new("Unknown file format"))?;
    create::refuse_read_only(driver)?;
    let window = window(&operands, source.chain.virtual_size());
    if operands.skip > 0 && operands.skip.saturating_mul(operands.block) > source.chain.virtual_size() {
        app::error(&format!("{input}: cannot skip to specified offset"));
    }
    let request = create::Request {
        file: output,
        format: driver.name(),
        list: None,
        size: Some(window.1),
        backing: None,
        backing_format: None,
        open_backing: false,
        show: false,
        inputs: super::target::files_of(&source.chain),
    };
    let (_, made) = create::create(&opener, &request).map_err(|f| {
        f.context(format!(
            "{output}: error while creating output image of type {}",
            driver.name()
        ))
    })?;
    made.keep();
    let target = opener.open(Spec::name(output, Some(driver.name())), Access::write())?;
    let into = CopyTarget::fresh(target.chain.top(), None)?;
    let part = Window {
        chain: &source.chain,
        start: window.0,
        len: window.1,
    };
    let control = Meter::new(false, None, &opener.cancel).control();
    let located = Located::new(&part);
    convert_into(&located, &into, &CopyOptions::default(), &control).map_err(|e| match located.failed() {
        Some(_) => Failure::new(format!(
            "error while reading from input image file: {}",
            app::reason(&e)
        )),
        None => Failure::from(e).context("error while copying"),
    })?;
    super::report(
        format,
        &[("filename", output.as_str().into()), ("virtual-size", window.1.into())],
    );
    Ok(0)
}

/// The first byte that is copied, and how many are.
fn window(operands: &Operands, size: u64) -> (u64, u64) {
    let end = match operands.count {
        Some(count) => size.min(operands.skip.saturating_add(count).saturating_mul(operands.block)),
        None => size,
    };
    let start = operands.skip.saturating_mul(operands.block).min(end);
    (start, end - start)
}

/// A part of a chain.
struct Window<'a> {
    chain: &'a Chain,
    start: u64,
    len: u64,
}

impl GuestSource for Window<'_> {
    fn len(&self) -> u64 {
        self.len
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        let mut walk = self.chain.walk();
        Box::new(move |offset: u64, len| walk.extent(self.start + offset, len))
    }
    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> EngineResult<()> {
        GuestSource::read_data(self.chain, layer, self.start + offset, buf)
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> EngineResult<()> {
        self.chain.read(self.start + offset, buf)
    }
}
