//! The steps of a conversion: check the command line, open the sources, make the target, copy, copy bitmaps.

use vdisk_engine::formats::FormatDriver;
use vdisk_engine::image::{Below, Bitmaps};
use vdisk_engine::ops::convert::{CopyOptions, CopyTarget, convert_into};
use vdisk_engine::ops::{Concatenation, GuestSource};
use vdisk_engine::options::Options;
use vdisk_engine::{Chain, Image};

use super::Args;
use super::sources::{Located, Salvage, TopLayer};
use super::streams::Spool;
use crate::app::{self, Failure, Outcome};
use crate::options;
use crate::output::Format;
use crate::progress::Meter;
use crate::spec::{Access, Made, OpenImage, Opener, Spec, keyval};
use crate::text::size;
use crate::verbs::{create, target};

/// The numbers of the command line.
struct Numbers {
    sparse: u64,
    workers: u64,
    rate: Option<u64>,
}

/// Copies.
pub fn run(args: &Args) -> Outcome {
    let format = Format::parse(args.output.as_deref())?;
    let list = keyval::join(&args.options)?;
    let numbers = numbers(args)?;
    let target_format = target_format(args)?;
    if let Some(list) = list.as_deref().filter(|l| keyval::asks_for_help(l)) {
        let _ = list;
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
    let workers = match args.parallel.as_deref() {
        None => 8,
        Some(text) => size::number_between("number of coroutines", text, 1, 16)?,
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let rate = args.rate.as_deref().map(|t| size::size("rate limit", t)).transpose()?;
    Ok(Numbers {
        sparse,
        // More threads than processors only cost memory.
        workers: workers.min(cores * 2),
        rate,
    })
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

/// The open source images.
struct Sources {
    images: Vec<OpenImage>,
    /// The image as it is now, where a snapshot of it is read.
    active: Option<Box<dyn Image>>,
    /// Lives as long as the image that reads it.
    _stdin: Option<Spool>,
}

impl Sources {
    fn open(args: &Args, opener: &Opener, names: &[String]) -> Result<Self, Failure> {
        let cache = crate::verbs::source_cache(args.source_cache.as_deref())?;
        crate::verbs::target_cache(args.target_cache.as_deref(), target::NEW_IMAGE)?;
        let access = Access::read(args.force_share).cached(cache);
        let stdin = names.iter().any(|n| n == "-").then(Spool::from_stdin).transpose()?;
        let mut images = Vec::with_capacity(names.len());
        for name in names {
            let spooled = stdin
                .as_ref()
                .filter(|_| name == "-")
                .map(|s| s.path().display().to_string());
            let text = spooled.as_deref().unwrap_or(name);
            let spec = Spec::new(text, args.source_format.as_deref(), args.image_opts)?;
            images.push(opener.open(spec, access)?);
        }
        let mut active = None;
        if let Some(selector) = args.snapshot.as_deref() {
            let (image, now) = at_snapshot(images, selector)?;
            (images, active) = (vec![image], Some(now));
        }
        Ok(Self {
            images,
            active,
            _stdin: stdin,
        })
    }
    /// The bitmaps of the first one. A snapshot has none of its own: as with QEMU they are those of the image now.
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        match (&self.active, self.images.first()) {
            (Some(active), _) => active.bitmaps(),
            (None, first) => first?.chain.top().bitmaps(),
        }
    }
    fn len(&self) -> u64 {
        self.images.iter().map(|i| i.chain.virtual_size()).sum()
    }
}

/// The one image as it was when a snapshot was taken, and as it is now.
fn at_snapshot(mut images: Vec<OpenImage>, selector: &str) -> Result<(OpenImage, Box<dyn Image>), Failure> {
    match (images.pop(), images.is_empty()) {
        (Some(image), true) => {
            let (chain, active) = target::snapshot(image.chain, selector)?;
            Ok((OpenImage { chain, ..image }, active))
        }
        _ => Err(Failure::new("No support for concatenating multiple snapshot")),
    }
}

struct Job<'a> {
    args: &'a Args,
    opener: &'a Opener,
    list: Option<String>,
    numbers: Numbers,
    target_format: &'a str,
    target: String,
    to_stdout: bool,
}

/// The target before it is filled.
struct New {
    with_backing: bool,
    /// What opens it.
    secrets: Vec<(String, String)>,
    made: Made,
}

impl Job<'_> {
    /// Makes the target and copies; gives its size. Files of the target that were not there before go away again on failure.
    fn run(&self, sources: &Sources) -> Result<u64, Failure> {
        self.check_bitmaps(sources)?;
        let New {
            with_backing,
            secrets,
            made,
        } = self.make_target(sources)?;
        let cache = crate::verbs::target_cache(self.args.target_cache.as_deref(), target::NEW_IMAGE)?;
        let access = Access::write().cached(cache);
        let target = if self.args.target_image_opts {
            self.opener.open(Spec::new(&self.target, None, true)?, access)?
        } else {
            self.opener
                .open_new(&self.target, self.target_format, secrets, access)?
        };
        self.check_target(&target, sources)?;
        self.copy_data(sources, &target.chain, with_backing)?;
        if self.args.bitmaps {
            self.copy_bitmaps(sources, &target.chain)?;
        }
        made.keep();
        Ok(target.chain.virtual_size())
    }

    fn check_bitmaps(&self, sources: &Sources) -> Result<(), Failure> {
        if !self.args.bitmaps {
            return Ok(());
        }
        if sources.images.len() != 1 {
            return Err(Failure::new("Copying bitmaps only possible with single source"));
        }
        let Some(bitmaps) = sources.bitmaps().filter(|b| b.possible()) else {
            return Err(Failure::new("Source lacks bitmap support"));
        };
        let driver = crate::verbs::driver(self.target_format)?;
        if !driver.capabilities().bitmaps {
            return Err(no_bitmaps(driver.name()));
        }
        if !self.args.skip_broken_bitmaps {
            target::refuse_broken_bitmaps(bitmaps)?;
        }
        Ok(())
    }

    /// Creates the target.
    fn make_target(&self, sources: &Sources) -> Result<New, Failure> {
        if self.args.no_create {
            return Ok(New {
                with_backing: self.args.backing.is_some(),
                secrets: Vec::new(),
                made: Made::default(),
            });
        }
        let driver = crate::verbs::driver(self.target_format)?;
        create::refuse_read_only(driver)?;
        let table = options::create_table(driver);
        let mut given = options::read(self.list.as_deref(), &table)?;
        let backing = self.args.backing.clone().or(given.take("backing_file"));
        let format = self.args.backing_format.clone().or(given.take("backing_fmt"));
        if sources.images.len() > 1 && backing.is_some() {
            return Err(Failure::new(
                "Having a backing file for the target makes no sense when concatenating multiple input images",
            ));
        }
        if backing.is_some() && format.is_none() {
            return Err(Failure::new("Use of backing file requires explicit backing format"));
        }
        if backing.is_none() && format.is_some() {
            return Err(self.failed(Failure::new("Backing format cannot be used without backing file")));
        }
        self.check_compression(driver, &given)?;
        given.take("size");
        options::check_choices(&given, &table).map_err(|f| self.failed(f))?;
        let list = list_of(&given);
        let secrets = given
            .iter()
            .filter(|(name, _)| ["key-secret", "encrypt.key-secret"].contains(name));
        let secrets = secrets.map(|(name, id)| (name.to_owned(), id.to_owned())).collect();
        let request = create::Request {
            file: &self.target,
            format: self.target_format,
            list: list.as_deref(),
            size: Some(sources.len()),
            backing: backing.as_deref(),
            backing_format: format.as_deref(),
            open_backing: false,
            show: false,
            inputs: sources.images.iter().flat_map(|i| target::files_of(&i.chain)).collect(),
        };
        let (_, made) = create::create(self.opener, &request).map_err(|f| self.failed(f))?;
        Ok(New {
            with_backing: backing.is_some(),
            secrets,
            made,
        })
    }

    fn failed(&self, failure: Failure) -> Failure {
        failure.context(format!(
            "{}: error while converting {}",
            self.target, self.target_format
        ))
    }

    fn check_compression(&self, driver: &dyn FormatDriver, given: &Options) -> Result<(), Failure> {
        if !self.args.compress {
            return Ok(());
        }
        if !driver.capabilities().compress {
            return Err(Failure::new("Compression not supported for this file format"));
        }
        if given.get("encrypt.format").is_some() || matches!(given.flag("encryption"), Ok(Some(true))) {
            return Err(Failure::new(
                "Compression and encryption not supported at the same time",
            ));
        }
        if given.get("data_file").is_some() {
            return Err(Failure::new(
                "Compression and an external data file not supported at the same time",
            ));
        }
        if given.get("preallocation").is_some_and(|p| p != "off") {
            return Err(Failure::new(
                "Compression and preallocation not supported at the same time",
            ));
        }
        Ok(())
    }

    fn check_target(&self, target: &OpenImage, sources: &Sources) -> Result<(), Failure> {
        let driver = crate::verbs::driver(target.chain.top().format())?;
        self.check_compression(driver, &Options::new())?;
        // Subformats that are a plain run of bytes have no units to compress.
        if self.args.compress && target.chain.top().info()?.cluster_size.is_none() {
            return Err(Failure::new("Compression not supported for this file format"));
        }
        if target.chain.virtual_size() < sources.len() {
            return Err(Failure::new("output file is smaller than input file"));
        }
        if self.args.bitmaps {
            // An old version of the format has none.
            if target.chain.top().bitmaps().is_none_or(|b| !b.possible()) {
                return Err(no_bitmaps(driver.name()));
            }
            refuse_unfit_bitmaps(sources, target)?;
        }
        Ok(())
    }

    fn copy_data(&self, sources: &Sources, target: &Chain, with_backing: bool) -> Result<(), Failure> {
        let (show, rate) = (self.args.progress && !self.args.quiet, self.numbers.rate);
        let meter = match self.to_stdout {
            true => Meter::on_stderr(show, rate, &self.opener.cancel),
            false => Meter::new(show, rate, &self.opener.cancel),
        };
        let copy = CopyOptions {
            // A failing disk is best read in one go, in its order; so are the warnings.
            workers: match self.args.salvage {
                true => 1,
                false => usize::try_from(self.numbers.workers).unwrap_or(1),
            },
            compress: self.args.compress,
            sparse: self.numbers.sparse,
            ordered: !self.args.out_of_order,
            count_data: self.args.salvage || self.args.progress && !self.args.quiet,
            ..CopyOptions::default()
        };
        let below = target.below(0);
        let over: Option<&dyn Below> = if target.layers().len() > 1 { Some(&below) } else { None };
        let new = CopyTarget::fresh(target.top(), over)?;
        let into = CopyTarget {
            fresh: !self.args.no_create,
            is_zero: new.is_zero && !self.args.no_create && !with_backing || self.args.target_is_zero,
            ..new
        };
        let run = |source: &dyn GuestSource| {
            let (salvage, located) = (Salvage(source), Located::new(source));
            let source: &dyn GuestSource = if self.args.salvage { &salvage } else { &located };
            convert_into(source, &into, &copy, &meter.control()).map_err(|e| match located.failed() {
                Some(place) => Failure::new(format!("error while reading {place}: {}", app::reason(&e))),
                None => Failure::from(e).context("error while converting"),
            })
        };
        let done = match sources.images.as_slice() {
            [one] if with_backing => run(&TopLayer {
                chain: &one.chain,
                covered: target.layers().get(1).map_or(0, |l| l.virtual_size()),
            }),
            [one] => run(&one.chain),
            many => {
                let parts: Vec<&dyn GuestSource> = many.iter().map(|i| &i.chain as &dyn GuestSource).collect();
                run(&Concatenation::new(&parts)?)
            }
        };
        done?;
        meter.finish();
        Ok(())
    }

    fn copy_bitmaps(&self, sources: &Sources, target: &Chain) -> Result<(), Failure> {
        if let (Some(from), Some(to)) = (sources.bitmaps(), target.top().bitmaps()) {
            target::copy_bitmaps(from, to, self.args.skip_broken_bitmaps)?;
            target.top().close()?;
        }
        Ok(())
    }
}

fn no_bitmaps(format: &str) -> Failure {
    Failure::new(format!("Format driver '{format}' does not support bitmaps"))
}

/// Refuses a target of another size than the bitmaps of the source are for, before anything is written to it.
fn refuse_unfit_bitmaps(sources: &Sources, target: &OpenImage) -> Result<(), Failure> {
    let list = sources.bitmaps().map_or(Ok(Vec::new()), |bitmaps| bitmaps.list())?;
    let size = sources
        .active
        .as_ref()
        .map_or(sources.len(), |active| active.virtual_size());
    match list.iter().find(|b| !b.in_use) {
        None => Ok(()),
        Some(bitmap) => target::refuse_other_size(target.chain.virtual_size(), size)
            .map_err(|f| f.context(format!("Failed to populate bitmap {}", bitmap.name))),
    }
}

fn list_of(options: &vdisk_engine::options::Options) -> Option<String> {
    let pairs: Vec<_> = options
        .iter()
        .map(|(k, v)| format!("{k}={}", v.replace(',', ",,")))
        .collect();
    (!pairs.is_empty()).then(|| pairs.join(","))
}
