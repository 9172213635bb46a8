//! `create`: a new, empty image.

mod summary;

use vdisk_engine::env::{BackingReference, CreateSpec};
use vdisk_engine::formats::{self, FormatDriver};
use vdisk_engine::options::Options;
use vdisk_engine::storage::FileId;

use super::{Common, target};
use crate::app::{Failure, Outcome};
use crate::options;
use crate::output::{self, Format};
use crate::spec::new_file::Hints;
use crate::spec::{Access, Made, Opener, Spec, keyval, name, protocol};
use crate::text::size;

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Format of the new image
    #[arg(short = 'f', long = "format", value_name = "FMT", default_value = "raw")]
    format: String,
    /// Options of the new image ('-o help' lists them)
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stack the new image on top of this one
    #[arg(short = 'b', long = "backing", value_name = "BACKING_FILENAME")]
    backing: Option<String>,
    /// Format of the backing image
    #[arg(short = 'F', long = "backing-format", value_name = "FMT")]
    backing_format: Option<String>,
    /// Do not open the backing image
    #[arg(short = 'u', long = "backing-unsafe")]
    backing_unsafe: bool,
    /// Print nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,
    /// Output format: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
    #[command(flatten)]
    common: Common,
    /// FILENAME and, unless there is a backing image, SIZE with an optional suffix (k, M, G, T, P, E)
    #[arg(value_name = "FILENAME [SIZE]")]
    words: Vec<String>,
}

/// Creates the image.
pub fn run(args: &Args) -> Outcome {
    let list = keyval::join(&args.options)?;
    let format = Format::parse(args.output.as_deref())?;
    if list.as_deref().is_some_and(keyval::asks_for_help) {
        return help(&args.format, !args.words.is_empty());
    }
    let (file, given_size) = match args.words.as_slice() {
        [] => return Err(Failure::usage("Expecting image file name")),
        [file] => (file, None),
        [file, text] => (file, Some(size::size("image size", text)?)),
        [_, _, extra, ..] => return Err(Failure::usage(format!("Unexpected argument: {extra}"))),
    };
    let opener = args.common.opener()?;
    let request = Request {
        file,
        format: &args.format,
        list: list.as_deref(),
        size: given_size,
        backing: args.backing.as_deref(),
        backing_format: args.backing_format.as_deref(),
        open_backing: !args.backing_unsafe,
        show: !args.quiet && format == Format::Human,
        inputs: Vec::new(),
    };
    let (size, made) = create(&opener, &request).map_err(|f| f.context(file))?;
    made.keep();
    let pairs = [
        ("filename", file.as_str().into()),
        ("format", args.format.as_str().into()),
        ("virtual-size", size.into()),
    ];
    super::report(format, &pairs);
    Ok(0)
}

/// The options of a format for people; those of the file below are added when a file is named.
pub fn help(format: &str, with_file: bool) -> Outcome {
    let driver = super::driver(format)?;
    refuse_read_only(driver)?;
    let table = options::create_table(driver);
    if with_file {
        output::line("Supported options:");
        output::print(&options::help(&table));
        return Ok(0);
    }
    output::line(&format!("Supported {} options:", driver.name()));
    output::print(&options::help(&options::of_format(driver, &table)));
    output::print(
        "\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n",
    );
    Ok(0)
}

/// Refuses formats that cannot be created.
pub fn refuse_read_only(driver: &dyn FormatDriver) -> Result<(), Failure> {
    if driver.capabilities().create {
        return Ok(());
    }
    Err(Failure::new(format!(
        "Format driver '{}' does not support image creation",
        driver.name()
    )))
}

/// What to create.
pub struct Request<'a> {
    /// Its name.
    pub file: &'a str,
    /// Its format.
    pub format: &'a str,
    /// The `-o` options, joined.
    pub list: Option<&'a str>,
    /// Its virtual size, if it was said.
    pub size: Option<u64>,
    /// The image below.
    pub backing: Option<&'a str>,
    /// Its format.
    pub backing_format: Option<&'a str>,
    /// Whether the image below is opened to see that it is there, and how large it is.
    pub open_backing: bool,
    /// Whether the summary line is printed.
    pub show: bool,
    /// Files of images that are read for it.
    pub inputs: Vec<FileId>,
}

/// Creates an image as `create` and others say; gives its virtual size, and its files, which are to be kept.
pub fn create(opener: &Opener, request: &Request<'_>) -> Result<(u64, Made), Failure> {
    let driver = super::driver(request.format)?;
    refuse_read_only(driver)?;
    target::local_path(request.file)?;
    let table = options::create_table(driver);
    let mut given = options::read(request.list, &table)?;
    let shown = options::as_given(&given, request.list, &table);
    let size = match (given.take("size").and_then(|s| s.parse().ok()), request.size) {
        (Some(_), Some(_)) => return Err(Failure::new("The image size must be specified only once")),
        (a, b) => a.or(b),
    };
    let backing = backing(driver, &mut given, request)?;
    let mut inputs = request.inputs.clone();
    let size = match &backing {
        Some(backing) => {
            let full = name::of_backing(driver.name(), request.file, &backing.name)?;
            if request.open_backing {
                Some(size_over(opener, &full, backing, size, &mut inputs)?)
            } else {
                inputs.extend(target::file_named(&full));
                size
            }
        }
        None => size,
    };
    let size = size.ok_or_else(|| Failure::new("Image creation needs a size parameter"))?;
    if request.show {
        output::line(&summary::summary(request.file, driver, &shown, size, backing.as_ref()));
    }
    options::check_choices(&given, &table)?;
    if let Some(name) = given.take("data_file") {
        // The image is to have the name of the file alone: in it `file:` would be a part of that.
        given.set("data_file", target::local_path(&name)?);
    }
    let hints = Hints::new(&options::take_file(driver, &mut given));
    let spec = CreateSpec {
        virtual_size: size,
        options: given,
        backing,
    };
    let made = target::create(opener, request.file, driver.name(), &spec, hints, inputs)?;
    Ok((size, made))
}

fn backing(
    driver: &dyn FormatDriver,
    given: &mut Options,
    request: &Request<'_>,
) -> Result<Option<BackingReference>, Failure> {
    let can = driver.capabilities().backing;
    let refused = |what: &str| {
        let name = driver.name();
        Failure::new(format!("Backing {what} not supported for file format '{name}'"))
    };
    if request.backing.is_some() && !can {
        return Err(refused("file"));
    }
    if request.backing_format.is_some() && !can {
        return Err(refused("file format"));
    }
    let (from_list, format_from_list) = (given.take("backing_file"), given.take("backing_fmt"));
    let file = request.backing.map(str::to_owned).or(from_list);
    let format = request.backing_format.map(str::to_owned).or(format_from_list);
    let Some(file) = file else {
        return match format {
            None => Ok(None),
            Some(_) => Err(Failure::new("Backing format cannot be used without backing file")),
        };
    };
    if file.is_empty() {
        return Err(Failure::new("Expected backing file name, got empty string"));
    }
    if file == request.file {
        return Err(Failure::new(
            "Error: Trying to create an image with the same filename as the backing file",
        ));
    }
    if !request.open_backing && format.is_none() {
        return Err(Failure::new("Backing file specified without backing format"));
    }
    if !request.open_backing
        && let Some(format) = format.as_deref()
        && formats::by_name(format).is_err()
        && !protocol::is_protocol(format)
    {
        return Err(Failure::new(format!(
            "Parameter 'backing-fmt' does not accept value '{format}'"
        )));
    }
    Ok(Some(BackingReference { name: file, format }))
}

/// Looks at the image below, notes its files, and takes its size where none is given.
fn size_over(
    opener: &Opener,
    full: &str,
    backing: &BackingReference,
    size: Option<u64>,
    inputs: &mut Vec<FileId>,
) -> Result<u64, Failure> {
    let spec = Spec::name(full, backing.format.as_deref());
    // Nothing but headers is read: whoever writes to it meanwhile does no harm.
    let below = opener
        .try_open(spec, Access::read(true).keyless())
        .map_err(|f| Failure::new(format!("{}\nCould not open backing image.", f.message())))?;
    if backing.format.is_none() {
        return Err(Failure::new(format!(
            "Backing file specified without backing format\nDetected format of {}.",
            below.chain.top().format()
        )));
    }
    inputs.extend(target::files_of(&below.chain));
    Ok(size.unwrap_or_else(|| below.chain.virtual_size()))
}
