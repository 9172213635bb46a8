//! Names of files, and of files relative to other files.

use vdisk_engine::storage::resolve_url;

use crate::app::Failure;

/// The protocol before the first colon, when there is a colon before any slash.
pub fn protocol(name: &str) -> Option<&str> {
    let end = name.find([':', '/'])?;
    name[end..].starts_with(':').then(|| &name[..end])
}

/// `name` as seen from the folder of `base`. Absolute names and names with a protocol stay as they are.
///
/// # Errors
/// A base that lies in no folder.
pub fn relative_to(base: &str, name: &str) -> Result<String, Failure> {
    if name.starts_with('/') || protocol(name).is_some() {
        return Ok(name.to_owned());
    }
    match protocol(base) {
        // What looks like a path in such a name is one of the server's exports, or of its socket.
        Some(p) if p.starts_with("nbd") => Err(Failure::new("Cannot generate a base directory for NBD nodes")),
        Some("json") => Err(Failure::new(format!(
            "Cannot use relative backing file names for '{base}'"
        ))),
        Some("http" | "https") => Ok(resolve_url(base, name)),
        _ => {
            let path = base.strip_prefix("file:").unwrap_or(base);
            let folder = path.rfind('/').map_or("", |end| &path[..=end]);
            Ok(format!("{folder}{name}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_any_slash_ends_a_protocol() {
        assert_eq!(protocol("nbd+unix:///x"), Some("nbd+unix"));
        assert_eq!(protocol("./a:b"), None);
        assert_eq!(protocol("a"), None);
    }

    // What `qemu-img info` shows as the full backing file name.
    #[test]
    fn names_start_from_the_folder_of_the_file_that_holds_them() {
        for (base, name, full) in [
            ("top.qcow2", "base", "base"),
            ("dir/top.qcow2", "base", "dir/base"),
            ("dir/top.qcow2", "/abs", "/abs"),
            ("/a/b/top", "../c", "/a/b/../c"),
            ("dir/top", "nbd://h/x", "nbd://h/x"),
            ("http://h/d/top?sig=a/b", "base", "http://h/d/base"),
            ("http://h/d/e/top", "../base", "http://h/d/base"),
        ] {
            assert_eq!(relative_to(base, name).unwrap(), full, "{base} {name}");
        }
        for base in [
            "nbd+unix:///x?socket=/run/a",
            "nbd:unix:/run/a",
            "nbd://h/a/b",
            "json:{\"file\":\"/a/b\"}",
        ] {
            assert!(relative_to(base, "b").is_err(), "{base}");
            assert_eq!(relative_to(base, "/b").unwrap(), "/b");
        }
    }
}
