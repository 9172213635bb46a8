//! URLs as names of images.

/// The parts of a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Before `://`.
    pub scheme: &'a str,
    /// Host, without the brackets of an IPv6 address.
    pub host: &'a str,
    /// Port, where there is one.
    pub port: Option<u16>,
    /// From the first slash on, not decoded.
    pub path: &'a str,
    /// After the question mark, not decoded.
    pub query: Option<&'a str>,
}

/// Takes a URL apart, without its fragment; `None` for what is none.
pub fn split(url: &str) -> Option<Parts<'_>> {
    let url = url.split('#').next()?;
    let (scheme, rest) = url.split_once("://")?;
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (_, server) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (host, port) = match server.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']')?;
            (
                host,
                if rest.is_empty() {
                    None
                } else {
                    Some(rest.strip_prefix(':')?)
                },
            )
        }
        None => match server.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        },
    };
    let port = port.map(str::parse).transpose().ok()?;
    Some(Parts {
        scheme,
        host,
        port,
        path,
        query,
    })
}

impl Parts<'_> {
    /// What the query says, decoded; `None` for one that is no list of names with values.
    pub fn parameters(&self) -> Option<Vec<(String, String)>> {
        let query = self.query.unwrap_or_default();
        let list = query.strip_suffix('&').unwrap_or(query);
        let pair = |text: &str| {
            let (name, value) = text.split_once('=')?;
            Some((decode(name)?, decode(value)?))
        };
        match list {
            "" if query.is_empty() => Some(Vec::new()),
            list => list.split('&').map(pair).collect(),
        }
    }
}

/// Undoes percent encoding; `None` for a wrong one.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, tail) = rest.split_first_chunk::<2>()?;
        let digits = std::str::from_utf8(digits).ok().filter(|d| !d.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}
