//! Images over bases, also over one that their header does not name: what is zeroed, copied, discarded, grown and rewritten in the top never
//! shows what is below.

use vdisk_engine::formats::FormatDriver;
use vdisk_engine::image::Resize;
use vdisk_engine::ops::amend::amend;
use vdisk_engine::ops::convert::{CopyOptions, CopyTarget, convert_into};
use vdisk_engine::ops::resize::resize;
use vdisk_engine::options::Options;
use vdisk_engine::{Chain, Control, ErrorKind, Result};

use crate::layers::{FULL, Layer, base_format, done, fill, make, make_with, model, overlays, size_of, variants};
use crate::support::{Files, contents};

/// Who says what lies below an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    ByHeader,
    ByOpener,
}

/// A base without a zero in it, and an empty image over it.
struct Bed {
    files: Files,
    base: &'static str,
    driver: &'static dyn FormatDriver,
    named: Named,
}

impl Bed {
    /// `None` where the format does not take such a base.
    fn new(driver: &'static dyn FormatDriver, options: &Options, named: Named, top: u64) -> Option<Self> {
        // A VHD or VHDX without a base stands alone, whatever its opener says.
        if named == Named::ByOpener && ["vpc", "vhdx"].contains(&driver.name()) {
            return None;
        }
        let (files, base) = (Files::default(), base_format(driver));
        let bottom = Layer {
            size: FULL,
            writes: vec![(0, FULL, 9)],
        };
        assert!(make(&files, "base", base, &bottom, None));
        let below = (named == Named::ByHeader).then_some(("base", base));
        files.create_with("top", driver.name(), options, top, below).ok()?;
        let bed = Self {
            files,
            base,
            driver,
            named,
        };
        // Some know what they were made over.
        bed.open(false).is_ok().then_some(bed)
    }

    fn open(&self, writable: bool) -> Result<Chain> {
        match self.named {
            Named::ByHeader => self.files.open("top", self.driver.name(), writable),
            Named::ByOpener => {
                let base = ("base", self.base);
                self.files.open_over("top", self.driver.name(), base, writable)
            }
        }
    }

    fn assert_shows(&self, expected: &[u8], what: &str) {
        let shown = contents(&self.open(false).unwrap());
        assert!(shown == expected, "{} {:?}: {what}", self.driver.name(), self.named);
    }

    /// What the empty top shows.
    fn empty(&self) -> Vec<u8> {
        contents(&self.open(false).unwrap())
    }
}

/// Does something with every format that can have a base, in all ways to store it.
fn each(top: u64, work: impl Fn(&Bed, &Options)) {
    let mut met = 0;
    for driver in overlays() {
        for options in variants(driver) {
            for named in [Named::ByHeader, Named::ByOpener] {
                if let Some(bed) = Bed::new(driver, &options, named, top) {
                    work(&bed, &options);
                    met += 1;
                }
            }
        }
    }
    assert!(met > 20, "only {met}");
}

fn scattered() -> Layer {
    Layer {
        size: FULL,
        writes: vec![
            (65_536, 131_072, 1),
            (66_048, 512, 0),
            (196_608, 262_144, 2),
            (131_072, 131_072, 0),
            (1 << 20, (1 << 20) + 512, 0),
            (FULL - 1024, 1024, 0),
        ],
    }
}

#[test]
fn zeroes_hide_what_is_below() {
    each(FULL, |bed, options| {
        let expected = model(FULL, &bed.empty(), &scattered());
        fill(&bed.open(true).unwrap(), &scattered());
        bed.assert_shows(&expected, &format!("{options:?}"));
    });
}

#[test]
fn a_copy_into_an_overlay_shows_its_source() {
    for fresh in [false, true] {
        each(FULL, |bed, options| {
            assert!(make(&bed.files, "source", "qcow2", &scattered(), None));
            let (source, target) = (
                bed.files.open("source", "qcow2", false).unwrap(),
                bed.open(true).unwrap(),
            );
            let below = target.below(0);
            let target = CopyTarget {
                fresh,
                ..CopyTarget::fresh(target.top(), Some(&below)).unwrap()
            };
            convert_into(&source, &target, &CopyOptions::default(), &Control::default()).unwrap();
            bed.assert_shows(&contents(&source), &format!("{options:?}, fresh: {fresh}"));
        });
    }
}

#[test]
fn what_is_discarded_does_not_show_what_is_below() {
    let zeroed = Layer {
        size: FULL,
        writes: vec![(0, FULL, 1), (0, FULL, 0)],
    };
    each(FULL, |bed, options| {
        let chain = bed.open(true).unwrap();
        fill(&chain, &zeroed);
        done(bed.driver, "discard", chain.top().discard(0, FULL));
        chain.top().close().unwrap();
        drop(chain);
        bed.assert_shows(&vec![0; FULL as usize], &format!("{options:?}"));
    });
}

#[test]
fn what_an_image_grows_by_reads_as_zeroes_over_a_longer_base() {
    for (size, grown) in [(1 << 20, 2 << 20), (66_048, FULL), (512, 1024)] {
        each(size, |bed, options| {
            let mut expected = bed.empty();
            let chain = bed.open(true).unwrap();
            // Some take the size of their base from the start.
            let to = Resize {
                virtual_size: grown.max(chain.virtual_size()),
                ..Resize::default()
            };
            if done(bed.driver, "resize", resize(&chain, &to)) {
                expected.resize(chain.virtual_size() as usize, 0);
            }
            drop(chain);
            bed.assert_shows(&expected, &format!("{options:?}, {size} to {grown}"));
        });
    }
}

#[test]
fn zero_clusters_still_hide_what_is_below_when_an_image_becomes_one_of_version_2() {
    each(FULL, |bed, options| {
        if bed.driver.name() != "qcow2" || options.get("compat").is_some() {
            return;
        }
        let expected = model(FULL, &bed.empty(), &scattered());
        fill(&bed.open(true).unwrap(), &scattered());
        let older = Options::new().with("compat", "0.10");
        let amended = amend(&bed.open(true).unwrap(), &older, false, &Control::default());
        assert_eq!(
            amended.map_err(|e| e.kind()).err(),
            options.get("extended_l2").map(|_| ErrorKind::Unsupported)
        );
        bed.assert_shows(&expected, &format!("{options:?}"));
    });
}

/// An overlay shows nothing of what the layer below it grows by, and still knows it.
#[test]
fn an_overlay_stays_good_when_the_layer_below_it_grows() {
    for driver in overlays().into_iter().filter(|d| d.capabilities().grow) {
        let (files, base) = (Files::default(), base_format(driver));
        let full = |size, fill| Layer {
            size,
            writes: vec![(0, size, fill)],
        };
        if !make(&files, "bottom", base, &full(FULL, 1), None)
            || !make_with(
                &files,
                "middle",
                driver.name(),
                &Options::new(),
                &full(1 << 20, 2),
                Some(("bottom", base)),
            )
            || !make(
                &files,
                "top",
                driver.name(),
                &full(512, 3),
                Some(("middle", driver.name())),
            )
        {
            continue;
        }
        let below = model(size_of(&files, "bottom", base), &[], &full(FULL, 1));
        let below = model(size_of(&files, "middle", driver.name()), &below, &full(1 << 20, 2));
        let expected = model(size_of(&files, "top", driver.name()), &below, &full(512, 3));
        let chain = files.open("middle", driver.name(), true).unwrap();
        let to = Resize {
            virtual_size: (2 << 20).max(chain.virtual_size()),
            ..Resize::default()
        };
        done(driver, "resize", resize(&chain, &to));
        drop(chain);
        assert!(
            contents(&files.open("top", driver.name(), false).unwrap()) == expected,
            "{}",
            driver.name()
        );
    }
}
