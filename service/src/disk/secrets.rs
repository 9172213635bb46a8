use std::collections::BTreeMap;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
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

    /// Key derivation is measured by it: what other threads take does not make keys cheaper to guess.
    fn elapsed(&self) -> Option<Duration> {
        clock_gettime(ClockId::ThreadCPUTime).try_into().ok()
    }
}

impl std::fmt::Debug for OpenSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl OpenSecrets {
    /// With each secret also under the names of the options that refer to it.
    pub fn under_roles(mut self, options: &crate::request::Options) -> Self {
        for (option, name) in options {
            if option.ends_with("key-secret")
                && let Some(value) = self.0.get(name).cloned()
            {
                self.0.insert(option.clone(), value);
            }
        }
        self
    }

    /// Open options that hand each secret named like an option of the format (`encrypt.key-secret`) to that option. Where the format
    /// itself is the encryption (LUKS: `key-secret`), the long name will do too.
    pub(super) fn open_options(&self, format: &str) -> Options {
        let mut options = Options::new();
        let Ok(driver) = formats::by_name(format) else {
            return options;
        };
        for option in driver.open_options().iter().map(|option| option.name) {
            let long = format!("encrypt.{option}");
            if self.0.contains_key(option) {
                options.set(option, option);
            } else if option == "key-secret" && self.0.contains_key(&long) {
                options.set(option, long);
            }
        }
        options
    }
}
