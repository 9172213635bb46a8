//! The source images.

use vdisk_engine::Image;
use vdisk_engine::image::Bitmaps;

use super::Args;
use super::streams::Spool;
use crate::app::Failure;
use crate::spec::{Access, OpenImage, Opener, Spec};
use crate::verbs::target;

/// The open source images.
pub struct Sources {
    pub images: Vec<OpenImage>,
    /// The image as it is now, where a snapshot of it is read.
    pub active: Option<Box<dyn Image>>,
    /// Lives as long as the image that reads it.
    _stdin: Option<Spool>,
}

impl Sources {
    pub fn open(args: &Args, opener: &Opener, names: &[String]) -> Result<Self, Failure> {
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
    pub fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        match (&self.active, self.images.first()) {
            (Some(active), _) => active.bitmaps(),
            (None, first) => first?.chain.top().bitmaps(),
        }
    }
    pub fn len(&self) -> u64 {
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
