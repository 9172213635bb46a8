//! The command line as a whole. clap reads it; its complaints are worded as getopt's, which scripts know from qemu-img.

use std::ffi::OsString;
use std::io::Write as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command, CommandFactory, FromArgMatches, Parser};

use crate::verbs::Verb;
use crate::{app, output};

/// Create, inspect, convert and repair disk images.
#[derive(Debug, Parser)]
#[command(name = "vdisk", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// The command with the habits of getopt: the last of repeated options wins, long names may be cut short, any word can be a value.
pub fn command() -> Command {
    Cli::command().mut_subcommands(|verb| {
        verb.infer_long_args(true).mut_args(|arg| {
            let id = arg.get_id().clone();
            let arg = match arg.get_action() {
                ArgAction::Set | ArgAction::SetTrue => arg.overrides_with(id),
                _ => arg,
            };
            let takes_none = arg.get_num_args().is_some_and(|n| !n.takes_values());
            if arg.is_positional() || takes_none || !arg.get_action().takes_values() {
                arg
            } else {
                arg.allow_hyphen_values(true)
            }
        })
    })
}

/// Reads the command line. `Err` is an exit code: everything is said already.
pub fn parse(mut argv: Vec<OsString>) -> Result<Verb, u8> {
    let verb = argv.get(1).map(|v| v.to_string_lossy().into_owned());
    let size = take_size(&mut argv, verb.as_deref());
    let last = argv.last().map(|a| a.to_string_lossy().into_owned());
    if let Some(first) = argv.first_mut() {
        *first = app::name().into();
    }
    let matches = command()
        .try_get_matches_from(argv)
        .map_err(|e| complain(&e, verb.as_deref(), last.as_deref()))?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|e| complain(&e, None, None))?;
    cli.verb.remember(&matches);
    if let Verb::Resize(resize) = &mut cli.verb {
        resize.size = size;
    }
    Ok(cli.verb)
}

/// `resize FILE -1G`: a word behind the file name that begins like a negative number is a size, not options.
fn take_size(argv: &mut Vec<OsString>, verb: Option<&str>) -> Option<String> {
    if verb != Some("resize") {
        return None;
    }
    let begins = |word: &OsString, digit: bool| {
        let word = word.to_string_lossy();
        let rest = word.strip_prefix('-');
        rest.is_some_and(|rest| !digit || rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let plain = argv.iter().skip(2).position(|word| !begins(word, false))? + 2;
    let place = argv.iter().skip(plain).position(|word| begins(word, true))? + plain;
    argv.remove(place).into_string().ok()
}

fn complain(error: &clap::Error, verb: Option<&str>, last: Option<&str>) -> u8 {
    let name = app::name();
    match error.kind() {
        ErrorKind::DisplayHelp => {
            let _ = write!(std::io::stdout(), "{}", error.render());
            return 0;
        }
        ErrorKind::DisplayVersion => {
            let _ = writeln!(std::io::stdout(), "{}", version());
            return 0;
        }
        _ => {}
    }
    let known = verb.filter(|v| command().find_subcommand(v).is_some());
    let scope = known.map_or(name.to_owned(), |v| format!("{name} {v}"));
    let given = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let message = match error.kind() {
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            format!("{name}: Not enough arguments")
        }
        ErrorKind::InvalidSubcommand => format!("{name}: Command not found: {}", verb.unwrap_or_default()),
        ErrorKind::UnknownArgument if known.is_none() && !given.starts_with('-') => {
            format!("{name}: Command not found: {}", verb.unwrap_or_default())
        }
        ErrorKind::UnknownArgument => format!("{scope}: {}", unknown(given)),
        ErrorKind::InvalidValue => format!("{scope}: {}", missing_value(last.unwrap_or(given))),
        ErrorKind::TooManyValues => format!("{scope}: option '{given}' doesn't allow an argument"),
        ErrorKind::InvalidUtf8 => format!("{scope}: the command line is not valid UTF-8"),
        _ => error.to_string().trim_end().trim_start_matches("error: ").to_owned(),
    };
    output::say(&format!("{message}\nTry '{scope} --help' for more info"));
    1
}

fn unknown(given: &str) -> String {
    match given.strip_prefix("--") {
        Some(_) => format!("unrecognized option '{given}'"),
        None => format!("invalid option -- '{}'", given.chars().nth(1).unwrap_or('-')),
    }
}

fn missing_value(last: &str) -> String {
    match last.strip_prefix("--") {
        Some(_) => format!("option '{last}' requires an argument"),
        None => format!(
            "option requires an argument -- '{}'",
            last.chars().last().unwrap_or('-')
        ),
    }
}

/// The version; under the name of qemu-img with the version that is stood in for, which scripts look for.
fn version() -> String {
    let own = env!("CARGO_PKG_VERSION");
    match app::name() {
        "qemu-img" => format!("qemu-img version 10.0.2 (vdisk {own})"),
        name => format!("{name} {own} (compatible with qemu-img 10.0.2)"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
