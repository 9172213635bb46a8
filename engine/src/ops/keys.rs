//! amend of encryption: adds and erases the key slots of an image, with qemu-img's options.

use std::time::Duration;

use crate::crypto::luks::{EraseKeys, KdfCost, KeyEnv, KeyWork, NewKey};
use crate::env::Secrets;
use crate::image::KeySlots;
use crate::options::{OptionKind, OptionSpec, Options};
use crate::{Error, ErrorKind, Image, Result};

/// The options of `amend` that change key slots. In qcow2 they stand below `encrypt.`: cut that off with [`Options::below`].
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "state",
        kind: OptionKind::Choice(&["active", "inactive"]),
        default: None,
        help: "Select new state of affected keyslots (active/inactive)",
    },
    OptionSpec {
        name: "new-secret",
        kind: OptionKind::Text,
        default: None,
        help: "New secret to set in the matching keyslots. Empty string to erase",
    },
    OptionSpec {
        name: "old-secret",
        kind: OptionKind::Text,
        default: None,
        help: "Select all keyslots that match this password",
    },
    OptionSpec {
        name: "keyslot",
        kind: OptionKind::Number,
        default: None,
        help: "Select a single keyslot to modify explicitly",
    },
    OptionSpec {
        name: "iter-time",
        kind: OptionKind::Number,
        default: Some("2000"),
        help: "Time to spend in PBKDF in milliseconds",
    },
    OptionSpec {
        name: "iterations",
        kind: OptionKind::Number,
        default: None,
        help: "PBKDF iterations, in place of a time",
    },
];

/// Adds a key (`state=active`) or erases keys (`state=inactive`). `unlock` is the id of the secret that opens the image now.
/// Gives the slots that were changed.
///
/// # Errors
/// `Unsupported` for an image without key slots; `InvalidArgument` for options that do not belong together, a slot that is in use (unless
/// `force`), and for what would erase the last key (unless `force`); `WrongKey`.
pub fn change_keys(
    image: &dyn Image,
    options: &Options,
    unlock: Option<&str>,
    force: bool,
    secrets: &dyn Secrets,
    env: &KeyEnv<'_>,
) -> Result<Vec<u32>> {
    let slots = image.key_slots().ok_or_else(|| image.cannot("change the keys of"))?;
    options.check(OPTIONS, image.format())?;
    let slot = slot_number(options)?;
    match options.get("state") {
        Some("active") => add(slots, options, unlock, slot, force, secrets, env).map(|slot| vec![slot]),
        Some("inactive") => erase(slots, options, slot, force, secrets, env),
        _ => Err(Error::invalid(
            "option 'state' is needed: active adds a key, inactive erases keys",
        )),
    }
}

/// The slots that a passphrase opens, in their order, those that are only asked for by number too; none is no error.
///
/// # Errors
/// Those of deriving keys and reading the slots, but for `WrongKey`.
pub fn opened_by(slots: &dyn KeySlots, passphrase: &[u8], work: &KeyWork<'_>) -> Result<Vec<u32>> {
    let mut opened = Vec::new();
    for slot in slots.list()?.iter().filter(|slot| slot.holds_key) {
        match slots.test(passphrase, Some(slot.number), work) {
            Ok(number) => opened.push(number),
            Err(error) if error.kind() == ErrorKind::WrongKey => {}
            Err(error) => return Err(error),
        }
    }
    Ok(opened)
}

fn slot_number(options: &Options) -> Result<Option<u32>> {
    let narrow = |n: u64| u32::try_from(n).map_err(|_| Error::invalid(format!("there is no key slot {n}")));
    options.number("keyslot")?.map(narrow).transpose()
}

fn refuse(options: &Options, names: &[&str], why: &str) -> Result<()> {
    match names.iter().find(|name| options.get(name).is_some()) {
        Some(name) => Err(Error::invalid(format!("option '{name}' must not be given {why}"))),
        None => Ok(()),
    }
}

fn add(
    slots: &dyn KeySlots,
    options: &Options,
    unlock: Option<&str>,
    slot: Option<u32>,
    force: bool,
    secrets: &dyn Secrets,
    env: &KeyEnv<'_>,
) -> Result<u32> {
    refuse(options, &["old-secret"], "when a key is added")?;
    let id = options.get("new-secret").filter(|id| !id.is_empty());
    let new = secrets.get(id.ok_or_else(|| Error::invalid("option 'new-secret' is needed to add a key"))?)?;
    let unlock = unlock.ok_or_else(|| Error::invalid("option 'key-secret' is needed to open the image"))?;
    let new = NewKey {
        passphrase: &new,
        slot,
        cost: cost(options)?,
        overwrite: force,
    };
    slots.add(&secrets.get(unlock)?, &new, env)
}

fn cost(options: &Options) -> Result<KdfCost> {
    match (options.number("iter-time")?, options.number("iterations")?) {
        (Some(_), Some(_)) => Err(Error::invalid("give 'iter-time' or 'iterations', not both")),
        (Some(time), None) => Ok(KdfCost::Time(Duration::from_millis(time))),
        (None, Some(count)) => u32::try_from(count)
            .map(KdfCost::Iterations)
            .map_err(|_| Error::invalid(format!("option 'iterations' takes at most {}, not {count}", u32::MAX))),
        (None, None) => Ok(KdfCost::default()),
    }
}

fn erase(
    slots: &dyn KeySlots,
    options: &Options,
    slot: Option<u32>,
    force: bool,
    secrets: &dyn Secrets,
    env: &KeyEnv<'_>,
) -> Result<Vec<u32>> {
    refuse(
        options,
        &["new-secret", "iter-time", "iterations"],
        "when keys are erased",
    )?;
    let old = options.get("old-secret").map(|id| secrets.get(id)).transpose()?;
    let which = match (slot, &old) {
        (Some(slot), None) => EraseKeys::Slot(slot),
        (None, Some(old)) => EraseKeys::Matching(old),
        (Some(slot), Some(old)) => EraseKeys::SlotMatching(slot, old),
        (None, None) => {
            return Err(Error::invalid(
                "name the key to erase: option 'keyslot' or 'old-secret'",
            ));
        }
    };
    slots.erase(which, force, env)
}
