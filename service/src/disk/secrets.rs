use std::collections::BTreeMap;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vdisk_engine::env::Secrets;
use vdisk_engine::formats;
use vdisk_engine::options::Options;
use vdisk_engine::{CancelToken, Control, Error, ErrorKind};
use zeroize::Zeroizing;

/// The values of the secrets that a request or job named, by the names it gave them.
#[derive(Clone, Default)]
pub struct OpenSecrets {
    /// The values by name.
    pub values: BTreeMap<String, Zeroizing<Vec<u8>>>,
    /// Set when nobody waits any more for what they open.
    cancel: CancelToken,
}

impl Secrets for OpenSecrets {
    fn get(&self, id: &str) -> vdisk_engine::Result<Zeroizing<Vec<u8>>> {
        let missing = || {
            Error::new(
                ErrorKind::WrongKey,
                format!("no secret is named '{}'", id.escape_debug()),
            )
        };
        self.values.get(id).cloned().ok_or_else(missing)
    }

    /// Key derivation is measured by it: what other threads take does not make keys cheaper to guess.
    fn elapsed(&self) -> Option<Duration> {
        clock_gettime(ClockId::ThreadCPUTime).try_into().ok()
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

impl std::fmt::Debug for OpenSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl OpenSecrets {
    /// With derivations of keys that end when this work is told to stop.
    pub fn until(mut self, control: &Control) -> Self {
        self.cancel = control.cancel_token().clone();
        self
    }

    /// No secrets of its own, for work that opens layers by theirs.
    pub fn none_until(control: &Control) -> Self {
        Self::default().until(control)
    }

    /// With each secret also under the names of the options that refer to it.
    pub fn under_roles(mut self, options: &crate::request::Options) -> Self {
        for (option, name) in options {
            if option.ends_with("key-secret")
                && let Some(value) = self.values.get(name).cloned()
            {
                self.values.insert(option.clone(), value);
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
            if self.values.contains_key(option) {
                options.set(option, option);
            } else if option == "key-secret" && self.values.contains_key(&long) {
                options.set(option, long);
            }
        }
        options
    }
}
