//! Guest writes and growth in every format that can be written.

use vdisk_engine::formats::{DRIVERS, FormatDriver};
use vdisk_engine::image::Resize;
use vdisk_engine::options::Options;
use vdisk_engine::{Chain, Result};

use crate::lab::{Files, Lab};
use crate::model::Model;
use crate::states::Scenario;

const SIZE: u64 = 3 << 20;

fn start(driver: &dyn FormatDriver) -> Files {
    let lab = Lab::new(&Vec::new());
    let mut options = Options::new();
    if driver.name() == "luks" {
        options = options.with("key-secret", "key").with("iterations", "1000");
    }
    lab.create("top", driver.name(), SIZE, options, None);
    let chain = lab.chain("top", driver.name(), &[0]).unwrap();
    chain.write(0, &vec![0; chain.virtual_size() as usize]).unwrap();
    chain.write(64 << 10, &vec![1; 64 << 10]).unwrap();
    chain.top().close().unwrap();
    lab.contents()
}

/// The disk is the old one with all its bytes, or the new one: no model of anything between. Where growing shows zeroes, it does so
/// afterwards too.
fn shrink_and_grow(chain: &Chain, model: &mut Model<'_>, zeroes: bool) -> Result<()> {
    let small = (1 << 20) + (96 << 10);
    model.flush(chain)?;
    chain.top().resize(&Resize {
        virtual_size: small,
        shrink: true,
        ..Resize::default()
    })?;
    model.shrunk(small);
    model.flush(chain)?;
    if !zeroes {
        return Ok(());
    }
    chain.top().resize(&Resize {
        virtual_size: 4 << 20,
        ..Resize::default()
    })?;
    model.flush(chain)
}

fn run(driver: &dyn FormatDriver) {
    let can = driver.capabilities();
    let scenario = Scenario {
        name: driver.name().to_owned(),
        format: driver.name(),
        start: start(driver),
        most: 5 << 20,
        // New blocks are put over the footer at the end, which is written again by the flush; until then its copy at the start counts.
        damaged: driver.name() == "vpc",
        script: &|lab, model| {
            let chain = lab.chain("top", driver.name(), &[0])?;
            let work = || {
                model.write(&chain, 0, 4096, 1)?;
                model.flush(&chain)?;
                model.write(&chain, (1 << 20) - 2048, 70 << 10, 2)?;
                model.flush(&chain)?;
                if can.zero {
                    model.zero(&chain, 64 << 10, 64 << 10, true)?;
                }
                if can.discard {
                    model.discard(&chain, 1 << 20, 1 << 20)?;
                }
                model.write(&chain, (3 << 20) - (64 << 10), 64 << 10, 4)?;
                model.flush(&chain)?;
                if can.grow && can.zero {
                    chain.top().resize(&Resize {
                        virtual_size: 5 << 20,
                        ..Resize::default()
                    })?;
                    model.write(&chain, 4 << 20, 10 << 10, 5)?;
                }
                if can.shrink {
                    shrink_and_grow(&chain, model, can.zero)?;
                }
                model.write(&chain, 16 << 10, 512, 6)
            };
            let mut work = work;
            let done = work();
            let closed = chain.top().close();
            match (&done, &closed) {
                (Ok(()), Ok(())) => model.flushed(),
                (Err(_), Ok(())) => model.closed_after_failure(),
                _ => {}
            }
            done.and(closed)
        },
    };
    let states = scenario.power_cuts();
    println!(
        "{}: {states} power-cut states, {} failing changes",
        driver.name(),
        scenario.failures()
    );
}

#[test]
fn every_writable_format() {
    for driver in DRIVERS
        .iter()
        .filter(|d| d.capabilities().create && d.capabilities().write)
    {
        run(*driver);
    }
}
