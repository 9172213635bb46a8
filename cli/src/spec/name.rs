//! Names of files, and of files relative to other files.

/// The protocol before the first colon, when there is a colon before any slash.
pub fn protocol(name: &str) -> Option<&str> {
    let end = name.find([':', '/'])?;
    name[end..].starts_with(':').then(|| &name[..end])
}

/// `name` as seen from the folder of `base`. Absolute names and names with a protocol stay as they are.
pub fn relative_to(base: &str, name: &str) -> String {
    if name.starts_with('/') || protocol(name).is_some() {
        return name.to_owned();
    }
    let path = base.strip_prefix("file:").unwrap_or(base);
    match path.rfind('/') {
        Some(end) => format!("{}{name}", &path[..=end]),
        None => name.to_owned(),
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
        ] {
            assert_eq!(relative_to(base, name), full, "{base} {name}");
        }
    }
}
