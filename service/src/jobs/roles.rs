//! What the secrets of a request are for: each has the name that an option gives it, or that of its role.

use vdisk_engine::formats::{self, FormatDriver};
use vdisk_engine::options::OptionSpec;

use super::plan::engine_options;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::request::{Options, SecretRefs};
use crate::service::Inner;
use crate::store::images::ImageRecord;

/// The secrets that will open an image made with these options, by role. A secret that is named by its role alone becomes an option.
pub fn take_roles(driver: &dyn FormatDriver, options: &mut Options, secrets: &SecretRefs) -> SecretRefs {
    let known = driver.open_options();
    let mut roles = SecretRefs::new();
    for role in driver.create_options().iter().map(|option| option.name) {
        if !role.ends_with("key-secret") || !known.iter().any(|option| option.name == role) {
            continue;
        }
        let long = format!("encrypt.{role}");
        if role == "key-secret" && secrets.contains_key(&long) {
            options.entry(role.to_owned()).or_insert(long);
        }
        if secrets.contains_key(role) && wants_encryption(driver, options, role) {
            options.entry(role.to_owned()).or_insert_with(|| role.to_owned());
        }
        let named = options.get(role).and_then(|name| secrets.get(name));
        roles.extend(named.map(|id| (role.to_owned(), *id)));
    }
    roles
}

/// Refuses secrets that neither an option nor one of the layers that are opened uses: who gives one counts on it. The options are those
/// that [`take_roles`] has seen.
///
/// # Errors
/// `invalid_argument`.
pub fn refuse_unused(
    driver: &dyn FormatDriver,
    options: &Options,
    secrets: &SecretRefs,
    layers: &[ImageRecord],
) -> Result<()> {
    let is_named = |name: &str| {
        let mut keys = options.iter().filter(|(option, _)| option.ends_with("key-secret"));
        keys.any(|(_, secret)| secret == name)
    };
    let (format, role) = (driver.name(), key_role(driver.name())?);
    // A key that its image has anyway may be given again where it cannot be meant for the target.
    let is_own = |layer: &ImageRecord, id| role.is_none() && layer.image.secrets.values().any(|own| own == id);
    let opens = |name: &str, id| {
        let mut encrypted = layers.iter().filter(|layer| layer.image.encrypted);
        encrypted.any(|layer| is_role(&layer.image.format, name) && (lacks_key(layer) || is_own(layer, id)))
    };
    let mut unused = secrets.iter().filter(|(name, id)| !is_named(name) && !opens(name, *id));
    let Some((name, _)) = unused.next() else { return Ok(()) };
    let missing = match role.as_ref().map(|role| (role.option, &role.choice)) {
        None => format!("an image of format '{format}' takes no passphrase"),
        Some((option, Some(choice))) if option == name && !options.contains_key(option) => {
            format!("set option '{}' to have the image encrypted", choice.option)
        }
        Some((option, _)) => format!("the passphrase of the image is what option '{option}' names"),
    };
    let public = format!("nothing uses the secret named '{}': {missing}", name.escape_debug());
    Err(ServiceError::invalid("secrets", public))
}

/// Whether an encrypted image names no secret of its own, so that one must be given to open it.
pub fn lacks_key(record: &ImageRecord) -> bool {
    let image = &record.image;
    image.encrypted && !image.secrets.keys().any(|name| is_role(&image.format, name))
}

/// Whether a secret of this name is taken for the passphrase of a format's images. Where the format itself is the encryption, the long
/// name will do too.
fn is_role(format: &str, name: &str) -> bool {
    let Ok(driver) = formats::by_name(format) else {
        return false;
    };
    let mut roles = driver.open_options().iter().map(|option| option.name);
    roles.any(|role| role.ends_with("key-secret") && (role == name || name == format!("encrypt.{role}")))
}

/// The option by which a format's images are given their passphrase.
pub struct KeyRole {
    /// Its name, which is the role of the secret.
    pub option: &'static str,
    /// The option that says whether and how an image is encrypted; `None` where every image of the format is.
    pub choice: Option<KeyChoice>,
}

/// The option that says how an image is encrypted.
pub struct KeyChoice {
    /// Its name.
    pub option: String,
    /// Whether LUKS is among what it takes: its options are.
    pub luks: bool,
}

/// How a format's images are given their passphrase; `None` when they take none.
///
/// # Errors
/// `unsupported` for an unknown format.
pub fn key_role(format: &str) -> Result<Option<KeyRole>> {
    let unknown = |error: vdisk_engine::Error| ServiceError::new(ErrorCode::Unsupported, error.to_string());
    let driver = formats::by_name(format).map_err(unknown)?;
    let named = |option: &&OptionSpec| option.name.ends_with("key-secret");
    let Some(role) = driver.open_options().iter().find(named) else {
        return Ok(None);
    };
    let group = role.name.strip_suffix("key-secret").unwrap_or_default();
    let chosen = format!("{group}format");
    let creates = |name: &str| driver.create_options().iter().any(|option| option.name == name);
    let is_choice = !group.is_empty() && creates(&chosen);
    Ok(Some(KeyRole {
        option: role.name,
        choice: is_choice.then(|| KeyChoice {
            option: chosen,
            luks: creates(&format!("{group}iter-time")),
        }),
    }))
}

/// A key makes no image encrypted: where encryption is a choice, an option says so.
fn wants_encryption(driver: &dyn FormatDriver, options: &Options, role: &str) -> bool {
    let Some(group) = role.strip_suffix("key-secret").filter(|group| !group.is_empty()) else {
        return true;
    };
    let chosen = format!("{group}format");
    let is_choice = driver.create_options().iter().any(|option| option.name == chosen);
    // The name that the choice had before there was one.
    let old = engine_options(options).flag("encryption").ok().flatten();
    !is_choice || options.contains_key(&chosen) || old == Some(true)
}

/// Refuses secrets that do not exist.
///
/// # Errors
/// `not_found`.
pub async fn require_secrets(inner: &Inner, secrets: &SecretRefs) -> Result<()> {
    for id in secrets.values() {
        inner
            .store
            .secret(*id)
            .await
            .map_err(|error| error.with_field("secrets"))?;
    }
    Ok(())
}
