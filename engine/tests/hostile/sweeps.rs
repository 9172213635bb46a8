//! Files cut anywhere, and bytes changed at random.

use vdisk_engine::formats::DRIVERS;

use crate::exercise::exercise;
use crate::samples::sample;

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A small generator, so that a change is its seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }
}

fn formats() -> impl Iterator<Item = &'static str> {
    DRIVERS.iter().filter(|d| d.capabilities().create).map(|d| d.name())
}

#[test]
fn an_image_cut_anywhere_is_answered() {
    let _alone = crate::alone();
    let mut count = 0;
    for format in formats() {
        let good = sample(format);
        let ends = (0..=1024).step_by(61).chain((1..24).map(|n| good.len() * n / 24));
        for end in ends.filter(|e| *e < good.len()) {
            exercise(format, &good[..end], None, &format!("{format} cut at {end:#x}"));
            count += 1;
        }
    }
    println!("{count} cut images answered");
}

#[test]
fn an_image_changed_at_random_is_answered() {
    let _alone = crate::alone();
    let (seed, wanted) = (number("VDISK_SEED", 1), number("VDISK_MUTATIONS", 30));
    let mut count = 0;
    for format in formats() {
        let good = sample(format);
        for index in 0..wanted {
            let mut random = Random::new(seed << 32 | index);
            let mut below = |end| random.below(end);
            let mut bad = good.clone();
            for _ in 0..1 + below(6) {
                let reach = [64, 512, 4096, 70_000, good.len()][below(5)].min(good.len());
                // Footers count from the end.
                let place = below(reach);
                let at = if below(4) == 0 { good.len() - 1 - place } else { place };
                bad[at] = [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, below(256) as u8][below(8)];
            }
            exercise(format, &bad, None, &format!("{format}, seed {seed}, change {index}"));
            count += 1;
        }
    }
    println!("{count} changed images answered");
}
