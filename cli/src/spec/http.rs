//! Files on web servers: `http://`, `https://`, and the options that QEMU has for them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use vdisk_engine::storage::{HttpOptions, HttpStorage};

use super::protocol::{OpenStorage, refuse_rest};
use super::shown::Shown;
use super::{Access, Keys, Opener};
use crate::app::{self, Failure};
use crate::text::size;

/// Opens a file. The user names it, so every address may be connected to.
pub fn open(opener: &Opener, driver: &str, mut keys: Keys, access: &Access) -> Result<OpenStorage, Failure> {
    let url = match (keys.take("filename"), keys.take("url")) {
        (Some(url), None) | (None, Some(url)) => url,
        (Some(_), Some(_)) => return Err(Failure::new("url and file name may not be specified at the same time")),
        (None, None) => return Err(Failure::new(format!("{driver} block driver requires an 'url' option"))),
    };
    if !url.starts_with(&format!("{driver}://")) {
        return Err(Failure::new(format!(
            "{driver} does not support the URL '{url}', expected '{driver}://'"
        )));
    }
    let (mut options, shown) = options(&mut keys, url)?;
    options.cancel = opener.cancel.clone();
    refuse_rest(&keys, driver)?;
    if access.writable {
        return Err(Failure::new(format!("{driver} block driver does not support writes")));
    }
    let plain = shown.is_empty();
    let mut shown = shown;
    shown.push(("url".to_owned(), options.url.as_str().into()));
    let storage = HttpStorage::open(&options).map_err(|e| Failure::new(app::sentence(&e)))?;
    Ok(OpenStorage {
        storage: Arc::new(storage),
        shown: match plain {
            true => Shown::url(driver, &options.url, shown),
            false => Shown::options(driver, shown),
        },
        driver: driver.to_owned(),
    })
}

/// The options, and those of them that the URL alone does not say.
fn options(keys: &mut Keys, url: String) -> Result<(HttpOptions, Vec<(String, Value)>), Failure> {
    let mut options = HttpOptions::new(url, Arc::new(|_| true));
    options.other_servers = true;
    let mut shown = Vec::new();
    if let Some(text) = keys.take("readahead") {
        let bytes = size::size("readahead", &text)?;
        options.readahead = usize::try_from(bytes).unwrap_or(usize::MAX);
        shown.push(("readahead".to_owned(), bytes.into()));
    }
    if let Some(text) = keys.take("timeout") {
        let seconds = text.parse().ok().filter(|n| (1..=10_000).contains(n));
        let seconds = seconds.ok_or_else(|| Failure::new("Parameter 'timeout' expects a number from 1 to 10000"))?;
        options.timeout = Duration::from_secs(seconds);
        shown.push(("timeout".to_owned(), seconds.into()));
    }
    if let Some(verify) = keys.take_flag("sslverify")? {
        options.verify_tls = verify;
        shown.push(("sslverify".to_owned(), verify.into()));
    }
    Ok((options, shown))
}
