//! Small valid images of every kind, kept as files together with inputs that once broke something: each is answered, as it is and with
//! changes that a fuzzer would make (bytes, runs copied elsewhere, numbers, cuts, growth).

use std::path::Path;

use vdisk_engine::formats;

use crate::exercise::exercise;
use crate::sweeps::{Random, number};

/// One change.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    let len = bytes.len().max(1);
    let reach = [64, 1024, 8192, len][random.below(4)].min(len);
    let at = random.below(reach).min(bytes.len());
    let run = 1 + random.below(16);
    let end = (at + run).min(bytes.len());
    match random.below(6) {
        0 => bytes[at..end].fill([0, 0xff, 0x80, 1][random.below(4)]),
        1 => {
            for byte in &mut bytes[at..end] {
                *byte = random.below(256) as u8;
            }
        }
        2 => {
            let from = random.below(len - (end - at).min(len - 1));
            let run = bytes[from..(from + end - at).min(len)].to_vec();
            bytes[at..at + run.len()].copy_from_slice(&run);
        }
        3 => {
            let value = 1u64 << random.below(64);
            let number = [value, value - 1, value.wrapping_neg()][random.below(3)];
            let width = [2, 4, 8][random.below(3)];
            let little = number.to_le_bytes();
            let text = if random.below(2) == 0 {
                little
            } else {
                number.swap_bytes().to_le_bytes()
            };
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&text[..end - at]);
        }
        4 => bytes.truncate(at),
        _ => bytes.splice(at..at, vec![0; run * 64]).for_each(drop),
    }
}

#[test]
fn the_corpora_are_answered() {
    let _alone = crate::alone();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/corpus");
    let (mut count, seed) = (0, number("VDISK_SEED", 1));
    for folder in std::fs::read_dir(root).unwrap() {
        let folder = folder.unwrap();
        let format = folder.file_name().into_string().unwrap();
        formats::by_name(&format).unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let path = file.unwrap().path();
            let good = std::fs::read(&path).unwrap();
            exercise(&format, &good, None, &path.display().to_string());
            for index in 0..number("VDISK_MUTATIONS", 30) * 4 {
                let mut random = Random::new(seed << 32 | index);
                let mut bad = good.clone();
                for _ in 0..1 + random.below(4) {
                    if !bad.is_empty() {
                        mutate(&mut bad, &mut random);
                    }
                }
                exercise(
                    &format,
                    &bad,
                    None,
                    &format!("{}, seed {seed}, change {index}", path.display()),
                );
                count += 1;
            }
        }
    }
    println!("{count} inputs answered");
    assert!(count > 0);
}
