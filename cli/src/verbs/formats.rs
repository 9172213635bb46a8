//! `formats`: what this program can read and write. Not in qemu-img.

use serde_json::{Value, json};
use vdisk_engine::formats::{DRIVERS, FormatDriver};

use crate::app::Outcome;
use crate::output::{self, Format};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Output format: human or json
    #[arg(long, value_name = "FORMAT")]
    output: Option<String>,
}

/// Lists the drivers.
pub fn run(args: &Args) -> Outcome {
    if Format::parse(args.output.as_deref())?.is_json() {
        output::json(&DRIVERS.iter().map(|d| to_json(*d)).collect());
        return Ok(0);
    }
    for driver in DRIVERS {
        let can = driver.capabilities();
        let access = match (can.create, can.write) {
            (true, _) => "read, write, create",
            (false, true) => "read, write",
            (false, false) => "read",
        };
        output::line(&format!("{:<12} {access:<20} {}", driver.name(), driver.description()));
    }
    Ok(0)
}

fn to_json(driver: &dyn FormatDriver) -> Value {
    let options: Vec<_> = crate::options::create_table(driver)
        .iter()
        .map(|o| json!({"name": o.name, "default": o.default, "help": o.help}))
        .collect();
    json!({
        "name": driver.name(),
        "aliases": driver.aliases(),
        "description": driver.description(),
        "capabilities": driver.capabilities(),
        "create-options": options,
    })
}
