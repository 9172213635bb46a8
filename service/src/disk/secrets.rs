use std::collections::BTreeMap;

use vdisk_engine::env::Secrets;
use vdisk_engine::formats;
use vdisk_engine::options::Options;
use vdisk_engine::{Error, ErrorKind};
use zeroize::Zeroizing;

/// The values of the secrets that a request or job named, by the names it gave them.
#[derive(Clone, Default)]
pub struct OpenSecrets(pub BTreeMap<String, Zeroizing<Vec<u8>>>);

impl Secrets for OpenSecrets {
    fn get(&self, id: &str) -> vdisk_engine::Result<Zeroizing<Vec<u8>>> {
        let missing = || {
            Error::new(
                ErrorKind::WrongKey,
                format!("no secret is named '{}'", id.escape_debug()),
            )
        };
        self.0.get(id).cloned().ok_or_else(missing)
    }
}

impl OpenSecrets {
    /// Open options that hand each secret named like an option of the format (`encrypt.key-secret`) to that option.
    pub(super) fn open_options(&self, format: &str) -> Options {
        let mut options = Options::new();
        if let Ok(driver) = formats::by_name(format) {
            let known = driver.open_options();
            for name in self
                .0
                .keys()
                .filter(|name| known.iter().any(|option| option.name == name.as_str()))
            {
                options.set(name, name);
            }
        }
        options
    }
}
