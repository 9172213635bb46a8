//! NBD exports: `nbd://host:port/export`, `nbd+unix:///export?socket=path`, `nbd:host:port:exportname=x`, `nbd:unix:path`, and the options
//! that QEMU has for them.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;
use vdisk_engine::storage::{NbdAddress, NbdOptions, NbdStorage, NbdTls};

use super::protocol::{OpenStorage, refuse_rest};
use super::shown::Shown;
use super::{Access, Keys, Opener, url};
use crate::app::{self, Failure};

/// Time for a request: a server may have to write out everything first.
const TIMEOUT: Duration = Duration::from_secs(120);
const DEFAULT_PORT: u16 = 10809;

/// Takes a name apart into options.
///
/// # Errors
/// A name that is none.
pub fn keys_of_name(keys: &mut Keys, name: &str) -> Result<(), Failure> {
    if ["server", "host", "port", "path", "export"].iter().any(|k| keys.has(k)) {
        return Err(Failure::new(
            "host/port/path and file names may not be specified at the same time",
        ));
    }
    match name.strip_prefix("nbd:").filter(|rest| !rest.starts_with("//")) {
        Some(rest) => old_name(keys, rest),
        None => from_url(keys, name),
    }
}

fn from_url(keys: &mut Keys, name: &str) -> Result<(), Failure> {
    let invalid = || Failure::new("No valid URL specified");
    let parts = url::split(name).ok_or_else(invalid)?;
    let over_tls = parts.scheme.starts_with("nbds");
    if over_tls {
        return Err(Failure::new(
            "nbds names no credentials: use driver=nbd with tls-creds=ID and --object tls-creds-x509,id=ID,...",
        ));
    }
    let export = url::decode(parts.path.strip_prefix('/').unwrap_or(parts.path)).ok_or_else(invalid)?;
    if !export.is_empty() {
        keys.add("export", export);
    }
    let mut parameters = parts.parameters().ok_or_else(invalid)?;
    if parts.scheme == "nbd+unix" {
        let unknown = parameters.iter().any(|(name, _)| name != "socket");
        // The last of several counts.
        let socket = parameters.pop().filter(|_| !unknown && parts.host.is_empty());
        let (_, path) = socket.ok_or_else(invalid)?;
        keys.add("server.type", "unix");
        keys.add("server.path", path);
        return Ok(());
    }
    if parts.host.is_empty() || !parameters.is_empty() {
        return Err(invalid());
    }
    keys.add("server.type", "inet");
    keys.add("server.host", parts.host);
    keys.add("server.port", parts.port.unwrap_or(DEFAULT_PORT).to_string());
    Ok(())
}

fn old_name(keys: &mut Keys, rest: &str) -> Result<(), Failure> {
    let (server, export) = match rest.split_once(":exportname=") {
        Some((server, export)) => (server, Some(export)),
        None => (rest, None),
    };
    if let Some(path) = server.strip_prefix("unix:") {
        keys.add("server.type", "unix");
        keys.add("server.path", path);
    } else {
        let (host, port) = server
            .rsplit_once(':')
            .ok_or_else(|| Failure::new(format!("port not found in '{server}'")))?;
        keys.add("server.type", "inet");
        keys.add("server.host", host.trim_matches(['[', ']']));
        keys.add("server.port", port);
    }
    if let Some(export) = export.filter(|e| !e.is_empty()) {
        keys.add("export", export);
    }
    Ok(())
}

/// Opens an export.
pub fn open(opener: &Opener, mut keys: Keys, access: &Access) -> Result<OpenStorage, Failure> {
    if let Some(name) = keys.take("filename") {
        keys_of_name(&mut keys, &name)?;
    }
    let address = address(&mut keys)?;
    let export = keys.take("export").unwrap_or_default();
    let tls = credentials(opener, &mut keys, &address)?;
    if keys.take("reconnect-delay").is_some_and(|d| d != "0") {
        return Err(Failure::new("reconnect-delay is not supported for NBD"));
    }
    let timeout = open_timeout(&mut keys)?;
    refuse_rest(&keys, "nbd")?;
    let shown = shown(&address, &export, tls.as_ref().map(|(options, _)| options.as_slice()));
    let options = NbdOptions {
        address,
        export,
        name: shown.name(),
        writable: access.writable,
        timeout: TIMEOUT,
        clock: elapsed,
        tls: tls.map(|(_, credentials)| credentials),
        cancel: opener.cancel.clone(),
    };
    Ok(OpenStorage {
        storage: Arc::new(connect(&options, timeout)?),
        shown,
        driver: "nbd".to_owned(),
    })
}

/// Options of a node, as they are shown.
type Options = Vec<(String, Value)>;

/// The credentials that `tls-creds` names, for the host in the address or in `tls-hostname`.
fn credentials(opener: &Opener, keys: &mut Keys, address: &NbdAddress) -> Result<Option<(Options, NbdTls)>, Failure> {
    let (id, given) = (keys.take("tls-creds"), keys.take("tls-hostname"));
    let Some(id) = id else {
        return match given {
            Some(_) => Err(Failure::new("TLS hostname is only supported with tls-creds")),
            None => Ok(None),
        };
    };
    let host = match (&given, address) {
        (Some(name), _) => name,
        (None, NbdAddress::Tcp { host, .. }) => host,
        (None, NbdAddress::Unix(_)) => {
            return Err(Failure::new(
                "TLS over a unix socket needs the server's name in tls-hostname",
            ));
        }
    };
    let tls = opener.secrets.tls(&id, host)?;
    let mut shown = vec![("tls-creds".to_owned(), Value::from(id))];
    shown.extend(given.map(|name| ("tls-hostname".to_owned(), Value::from(name))));
    Ok(Some((shown, tls)))
}

/// Tries until the server is there, or the time is up.
fn connect(options: &NbdOptions, patience: Duration) -> Result<NbdStorage, Failure> {
    let end = elapsed().saturating_add(patience);
    loop {
        match NbdStorage::open(options.clone()) {
            Ok(storage) => return Ok(storage),
            Err(error) if error.io_error().is_some() && elapsed() < end => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => return Err(Failure::new(app::sentence(&error))),
        }
    }
}

/// Time since the first call.
pub fn elapsed() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

fn open_timeout(keys: &mut Keys) -> Result<Duration, Failure> {
    let Some(text) = keys.take("open-timeout") else {
        return Ok(Duration::ZERO);
    };
    text.parse()
        .map(Duration::from_secs)
        .map_err(|_| Failure::new("Parameter 'open-timeout' expects a number"))
}

fn address(keys: &mut Keys) -> Result<NbdAddress, Failure> {
    let mut server = keys.take_below("server");
    for name in ["host", "port", "path"] {
        if let Some(value) = keys.take(name) {
            server.add(name, value);
        }
    }
    let path = server.take("path");
    let host = server.take("host");
    let kind = server.take("type");
    let kind = kind.as_deref().or(match (&path, &host) {
        (Some(_), Some(_)) => {
            return Err(Failure::new("path and host may not be used at the same time"));
        }
        (Some(_), None) => Some("unix"),
        (None, Some(_)) => Some("inet"),
        (None, None) => None,
    });
    let port = server.take("port");
    for flag in ["numeric", "ipv4", "ipv6", "keep-alive"] {
        if server.has(flag) {
            return Err(Failure::new(format!("server.{flag} is not supported for NBD")));
        }
    }
    refuse_rest(&server, "nbd")?;
    let missing = |what: &str| Failure::new(format!("Parameter 'server.{what}' is missing"));
    match kind {
        Some("unix") => Ok(NbdAddress::Unix(path.ok_or_else(|| missing("path"))?)),
        Some("inet") => Ok(NbdAddress::Tcp {
            host: host.ok_or_else(|| missing("host"))?,
            port: match port {
                Some(text) => text
                    .parse()
                    .map_err(|_| Failure::new(format!("address resolution failed: '{text}' is no port number")))?,
                None => DEFAULT_PORT,
            },
        }),
        Some(other) => Err(Failure::new(format!("server.type '{other}' is not supported for NBD"))),
        None => Err(Failure::new("NBD server address missing")),
    }
}

fn shown(address: &NbdAddress, export: &str, tls: Option<&[(String, Value)]>) -> Shown {
    let mut server = serde_json::Map::new();
    let slash = if export.is_empty() { "" } else { "/" };
    let name = match address {
        NbdAddress::Unix(path) => {
            server.insert("type".to_owned(), "unix".into());
            server.insert("path".to_owned(), path.as_str().into());
            format!("nbd+unix://{slash}{export}?socket={path}")
        }
        NbdAddress::Tcp { host, port } => {
            server.insert("type".to_owned(), "inet".into());
            server.insert("host".to_owned(), host.as_str().into());
            server.insert("port".to_owned(), port.to_string().into());
            format!("nbd://{host}:{port}{slash}{export}")
        }
    };
    let mut options = vec![("server".to_owned(), Value::Object(server))];
    if !export.is_empty() {
        options.push(("export".to_owned(), export.into()));
    }
    options.extend_from_slice(tls.unwrap_or_default());
    Shown::url("nbd", &name, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Result<(NbdAddress, Option<String>), Failure> {
        let mut keys = Keys::default();
        keys_of_name(&mut keys, name)?;
        Ok((address(&mut keys)?, keys.take("export")))
    }

    // QEMU's manual, "Disk images / NBD access".
    #[test]
    fn names_say_server_and_export() {
        let tcp = |host: &str, port| NbdAddress::Tcp {
            host: host.to_owned(),
            port,
        };
        let unix = |path: &str| NbdAddress::Unix(path.to_owned());
        for (name, server, export) in [
            ("nbd://h:1/a%20b", tcp("h", 1), Some("a b")),
            ("nbd://h", tcp("h", 10809), None),
            ("nbd+tcp://[::1]:2/x", tcp("::1", 2), Some("x")),
            ("nbd+unix:///x?socket=/s%3f", unix("/s?"), Some("x")),
            ("nbd+unix://?socket=s", unix("s"), None),
            ("nbd+unix:///x?socket=s#f", unix("s"), Some("x")),
            ("nbd+unix:///x?socket=r&socket=s&", unix("s"), Some("x")),
            ("nbd://h/x?#f", tcp("h", 10809), Some("x")),
            ("nbd:h:3", tcp("h", 3), None),
            ("nbd:h:3:exportname=e:f", tcp("h", 3), Some("e:f")),
            ("nbd:unix:/s:exportname=e", unix("/s"), Some("e")),
        ] {
            let (found, found_export) = named(name).unwrap();
            assert_eq!((found, found_export.as_deref()), (server, export), "{name}");
        }
    }

    #[test]
    fn names_that_say_no_server_are_refused() {
        for name in [
            "nbd://",
            "nbd:",
            "nbd:h",
            "nbd+unix:///x",
            "nbd+unix://h/x?socket=s",
            "nbd://h:99999/x",
            "nbd://h/%zz",
            "nbds://h/x",
            "nbd://h/x?a=b",
            "nbd://h/x?&",
            "nbd+unix:///x?socket=s&a=b",
            "nbd+unix:///x?&socket=s",
            "nbd+unix:///x?socket",
        ] {
            assert!(named(name).is_err(), "{name}");
        }
    }
}
