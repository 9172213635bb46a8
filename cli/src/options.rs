//! `-o` lists against a driver's table, and their help.

use std::fmt::Write as _;

use vdisk_engine::formats::FormatDriver;
use vdisk_engine::ops::keys;
use vdisk_engine::options::{OptionKind, OptionSpec, Options};

use crate::app::Failure;
use crate::spec::keyval;
use crate::text::size;

/// Options that belong to every format that can have them, and that the engine is told in other ways.
const SIZE: OptionSpec = OptionSpec {
    name: "size",
    kind: OptionKind::Size,
    default: None,
    help: "Virtual disk size",
};
const BACKING_FILE: OptionSpec = OptionSpec {
    name: "backing_file",
    kind: OptionKind::Text,
    default: None,
    help: "File name of a base image",
};
const BACKING_FMT: OptionSpec = OptionSpec {
    name: "backing_fmt",
    kind: OptionKind::Text,
    default: None,
    help: "Image format of the base image",
};

const fn encrypt(name: &'static str, kind: OptionKind, help: &'static str) -> OptionSpec {
    OptionSpec {
        name,
        kind,
        default: None,
        help,
    }
}

/// Key slots of an image that has its LUKS header inside.
const ENCRYPT: &[OptionSpec] = &[
    encrypt(
        "encrypt.iter-time",
        OptionKind::Number,
        "Time to spend in PBKDF in milliseconds",
    ),
    encrypt(
        "encrypt.keyslot",
        OptionKind::Number,
        "Select a single keyslot to modify explicitly",
    ),
    encrypt(
        "encrypt.new-secret",
        OptionKind::Text,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    encrypt(
        "encrypt.old-secret",
        OptionKind::Text,
        "Select all keyslots that match this password",
    ),
    encrypt(
        "encrypt.state",
        OptionKind::Choice(&["active", "inactive"]),
        "Select new state of affected keyslots (active/inactive)",
    ),
];

/// What the file system is told about the file below an image. A new file has no length yet: there is nothing to reserve, unless the format
/// itself does.
const FILE: &[OptionSpec] = &[
    OptionSpec {
        name: "extent_size_hint",
        kind: OptionKind::Size,
        default: None,
        help: "Extent size hint for the image file, 0 to disable",
    },
    OptionSpec {
        name: "nocow",
        kind: OptionKind::Bool,
        default: None,
        help: "Turn off copy-on-write (valid only on btrfs)",
    },
    OptionSpec {
        name: "preallocation",
        kind: OptionKind::Choice(&["off", "falloc", "full"]),
        default: None,
        help: "Preallocation mode (allowed values: off, falloc, full)",
    },
];

/// The options that the format itself has, without those of the file.
pub fn of_format(driver: &dyn FormatDriver, table: &[OptionSpec]) -> Vec<OptionSpec> {
    // A raw image is its file, and so is all but the header of a LUKS volume: how space is reserved is a matter of the file.
    let own = |name| has(driver, name) && !["raw", "luks"].contains(&driver.name());
    let of_file = |s: &&OptionSpec| FILE.iter().any(|f| f.name == s.name) && !own(s.name);
    table.iter().filter(|s| !of_file(s)).copied().collect()
}

fn has(driver: &dyn FormatDriver, option: &str) -> bool {
    driver.create_options().iter().any(|o| o.name == option)
}

/// Takes the options out that are for the file below, and that the format does not have itself.
pub fn take_file(driver: &dyn FormatDriver, options: &mut Options) -> Options {
    let mut taken = Options::new();
    for spec in FILE.iter().filter(|spec| !has(driver, spec.name)) {
        if let Some(value) = options.take(spec.name) {
            taken.set(spec.name, value);
        }
    }
    taken
}

/// All options of creating an image of a format.
pub fn create_table(driver: &dyn FormatDriver) -> Vec<OptionSpec> {
    let mut table = driver.create_options().to_vec();
    let mut add = |spec: OptionSpec| {
        if !table.iter().any(|s| s.name == spec.name) {
            table.push(spec);
        }
    };
    add(SIZE);
    if driver.capabilities().backing {
        add(BACKING_FILE);
        add(BACKING_FMT);
    }
    FILE.iter().copied().for_each(add);
    table
}

/// The options that `amend` changes.
pub fn amend_table(driver: &dyn FormatDriver) -> Vec<OptionSpec> {
    const AMENDABLE: &[&str] = &[
        "backing_file",
        "backing_fmt",
        "compat",
        "data_file",
        "data_file_raw",
        "lazy_refcounts",
        "refcount_bits",
        "size",
    ];
    let opens_with = |name| driver.open_options().iter().any(|o| o.name == name);
    if opens_with("key-secret") {
        return keys::OPTIONS.to_vec();
    }
    let mut table = create_table(driver);
    table.retain(|s| AMENDABLE.contains(&s.name));
    if opens_with("encrypt.key-secret") && driver.capabilities().amend {
        table.extend_from_slice(ENCRYPT);
    }
    table
}

/// Reads a list against a table.
///
/// # Errors
/// Unknown names and values of the wrong kind, in qemu-img's words.
pub fn read(list: Option<&str>, table: &[OptionSpec]) -> Result<Options, Failure> {
    let mut options = Options::new();
    for (name, value) in keyval::parse(list.unwrap_or_default(), None) {
        let Some(spec) = table.iter().find(|s| s.name == name) else {
            return Err(Failure::new(format!("Invalid parameter '{name}'")));
        };
        options.set(name, checked(spec, value)?);
    }
    Ok(options)
}

/// Options as the summary line tells them: of yes and no the word that was given.
pub fn as_given(options: &Options, list: Option<&str>, table: &[OptionSpec]) -> Options {
    let is_flag = |name: &str| table.iter().any(|s| s.name == name && s.kind == OptionKind::Bool);
    let words = keyval::parse(list.unwrap_or_default(), None).into_iter();
    words
        .filter(|(name, _)| is_flag(name))
        .fold(options.clone(), |shown, (name, word)| shown.with(name, word))
}

fn checked(spec: &OptionSpec, value: String) -> Result<String, Failure> {
    let name = spec.name;
    match spec.kind {
        OptionKind::Size => match size::parse(&value) {
            Ok(bytes) => Ok(bytes.to_string()),
            Err(_) => Err(not_a_size(name)),
        },
        OptionKind::Number => match size::number_between(name, &value, 0, u64::MAX) {
            Ok(number) => Ok(number.to_string()),
            Err(_) => Err(Failure::new(format!("Parameter '{name}' expects a number"))),
        },
        OptionKind::Bool => match value.as_str() {
            // As it is: the line that `create` prints repeats the word.
            "on" | "yes" | "true" | "y" | "off" | "no" | "false" | "n" => Ok(value),
            _ => Err(Failure::new(format!("Parameter '{name}' expects 'on' or 'off'"))),
        },
        OptionKind::Choice(_) | OptionKind::Text => Ok(value),
    }
}

/// Words of the wrong kind are told after the summary line, as qemu-img does.
pub fn check_choices(options: &Options, table: &[OptionSpec]) -> Result<(), Failure> {
    for (name, value) in options.iter() {
        let spec = table.iter().find(|s| s.name == name);
        if let Some(OptionKind::Choice(words)) = spec.map(|s| s.kind)
            && !words.contains(&value)
        {
            return Err(Failure::new(format!(
                "Parameter '{}' does not accept value '{value}'",
                if name == "compat" { "version" } else { name }
            )));
        }
    }
    Ok(())
}

/// Key slots change to a state that is one of two.
pub fn check_keys(options: &Options) -> Result<(), Failure> {
    let state = options.get("encrypt.state").or(options.get("state"));
    match state.filter(|s| !["active", "inactive"].contains(s)) {
        Some(other) => Err(Failure::new(format!(
            "Parameter 'state' does not accept value '{other}'"
        ))),
        None => Ok(()),
    }
}

/// What a wrong size is answered.
pub fn not_a_size(name: &str) -> Failure {
    Failure::new(format!(
        "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, \
         tera-, peta-\nand exabytes, respectively."
    ))
}

/// The table for people, sorted by name.
pub fn help(table: &[OptionSpec]) -> String {
    let mut table = table.to_vec();
    table.sort_by_key(|s| s.name);
    let mut out = String::new();
    for spec in table {
        let kind = match spec.kind {
            OptionKind::Size => "size",
            OptionKind::Number => "num",
            OptionKind::Bool => "bool (on/off)",
            OptionKind::Choice(_) | OptionKind::Text => "str",
        };
        let _ = writeln!(out, "  {:<22} - {}", format!("{}=<{kind}>", spec.name), spec.help);
    }
    out
}
