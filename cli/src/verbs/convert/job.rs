//! The work of a conversion: make the target, copy, copy bitmaps.

use vdisk_engine::Chain;
use vdisk_engine::image::Below;
use vdisk_engine::ops::convert::{CopyOptions, CopyTarget, convert_into};
use vdisk_engine::ops::{Concatenation, GuestSource};
use vdisk_engine::options::Options;

use super::Args;
use super::opened::Sources;
use super::sources::{Located, Salvage, TopLayer};
use crate::app::{self, Failure};
use crate::options;
use crate::progress::Meter;
use crate::spec::{Access, Made, Opener, Spec};
use crate::verbs::{create, target};

/// The numbers of the command line.
pub struct Numbers {
    pub sparse: u64,
    pub workers: usize,
    pub rate: Option<u64>,
}

pub struct Job<'a> {
    pub args: &'a Args,
    pub opener: &'a Opener,
    pub list: Option<String>,
    pub numbers: Numbers,
    pub target_format: &'a str,
    pub target: String,
    pub to_stdout: bool,
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
    pub fn run(&self, sources: &Sources) -> Result<u64, Failure> {
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
                false => self.numbers.workers,
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

fn list_of(options: &Options) -> Option<String> {
    let pairs: Vec<_> = options
        .iter()
        .map(|(k, v)| format!("{k}={}", v.replace(',', ",,")))
        .collect();
    (!pairs.is_empty()).then(|| pairs.join(","))
}
