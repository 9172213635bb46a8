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
        _ => Ok(beside(base, name)),
    }
}

/// Formats in which the name of the layer below is a path and nothing else. The others are QEMU's, where it may be any name.
const NAMING_PATHS: &[&str] = &["cow", "vhdx", "vpc"];

/// The name that an image of a format has for the layer below, as seen from the folder of `base`, the file of the image.
///
/// # Errors
/// A base that lies in no folder.
pub fn of_backing(format: &str, base: &str, name: &str) -> Result<String, Failure> {
    match NAMING_PATHS.contains(&format) {
        true => relative_to(base, &plain_path(name)),
        false => relative_to(base, name),
    }
}

/// The path of a file that an image consists of, as seen from the folder of `base`: what looks like a protocol or like options is a part of it.
///
/// # Errors
/// A base that lies in no folder of this machine.
pub fn of_part(base: &str, path: &str) -> Result<String, Failure> {
    match protocol(base) {
        _ if path.starts_with('/') => Ok(path.to_owned()),
        None | Some("file") => Ok(beside(base, path)),
        Some(_) => Err(Failure::new(format!(
            "'{path}' is a part of '{base}', which is no file of this machine: expected an image of one file there"
        ))),
    }
}

fn beside(base: &str, name: &str) -> String {
    let path = base.strip_prefix("file:").unwrap_or(base);
    let folder = path.rfind('/').map_or("", |end| &path[..=end]);
    format!("{folder}{name}")
}

/// A path that cannot be taken for a protocol when it is read again.
pub fn plain_path(path: &str) -> String {
    match protocol(path) {
        Some(_) => format!("./{path}"),
        None => path.to_owned(),
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

    #[test]
    fn parts_of_an_image_are_files_of_this_machine() {
        for (base, name, path) in [
            ("top.vmdk", "a:b", "a:b"),
            ("dir/top.vmdk", "http://h/x", "dir/http://h/x"),
            ("dir/top.vmdk", "file:x", "dir/file:x"),
            ("./nbd:x/top", "json:{}", "./nbd:x/json:{}"),
            ("http://h/top", "/x", "/x"),
        ] {
            assert_eq!(of_part(base, name).unwrap(), path, "{base} {name}");
        }
        for base in ["http://h/top", "nbd://h/top", "json:{}"] {
            assert!(of_part(base, "x").is_err(), "{base}");
        }
    }

    #[test]
    fn formats_that_name_paths_name_no_protocol() {
        for name in ["http://h/x", "json:{}", "fat:/x", "file:x", "a:b"] {
            assert_eq!(of_backing("qcow2", "dir/top", name).unwrap(), name);
            for format in NAMING_PATHS {
                assert_eq!(of_backing(format, "dir/top", name).unwrap(), format!("dir/./{name}"));
                assert_eq!(of_backing(format, "top", name).unwrap(), format!("./{name}"));
                let over_http = of_backing(format, "http://server/top", name).unwrap();
                assert!(over_http.starts_with("http://server/"), "{over_http}");
            }
        }
        assert_eq!(of_backing("vhdx", "http://h/d/top", "base").unwrap(), "http://h/d/base");
    }
}
