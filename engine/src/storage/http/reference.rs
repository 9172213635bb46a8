//! References from one URL to another (RFC 3986, 5.2).

/// The URL that `reference` means where it stands in what `base`, a URL with a host, gave. A fragment, which is for people, is left out.
pub fn resolve_url(base: &str, reference: &str) -> String {
    let reference = before(reference, '#');
    let Some((scheme, rest)) = base.split_once("://").filter(|_| !has_scheme(reference)) else {
        return reference.to_owned();
    };
    if reference.starts_with("//") {
        return format!("{scheme}:{reference}");
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (rest, path) = (before(rest, '#'), before(before(rest, '#'), '?'));
    let merged = match reference.chars().next() {
        None => rest.to_owned(),
        Some('?') => format!("{path}{reference}"),
        Some('/') => without_dots(reference),
        Some(_) => {
            let folder = path.rfind('/').and_then(|end| path.get(..=end)).unwrap_or("/");
            without_dots(&format!("{folder}{reference}"))
        }
    };
    format!("{scheme}://{authority}{merged}")
}

fn before(text: &str, mark: char) -> &str {
    text.split(mark).next().unwrap_or(text)
}

fn has_scheme(reference: &str) -> bool {
    let end = reference.find([':', '/', '?']);
    end.is_some_and(|end| end > 0 && reference[end..].starts_with(':'))
}

/// An absolute path, with a query or without, after its `.` and `..` were followed.
fn without_dots(path: &str) -> String {
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let dots = segment == "." || segment == "..";
        if segment == ".." {
            kept.pop();
        } else if !dots {
            kept.push(segment);
        }
        if dots && segments.peek().is_none() {
            kept.push("");
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 3986, 5.4, without fragments.
    #[test]
    fn references_mean_what_the_rfc_says() {
        for (reference, meant) in [
            ("g:h", "g:h"),
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("#s", "http://a/b/c/d;p?q"),
            ("g#s", "http://a/b/c/g"),
            (";x", "http://a/b/c/;x"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../..", "http://a/"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
            ("/../g", "http://a/g"),
            ("g.", "http://a/b/c/g."),
            ("..g", "http://a/b/c/..g"),
            ("./g/.", "http://a/b/c/g/"),
            ("g/../h", "http://a/b/c/h"),
            ("g?y/../x", "http://a/b/c/g?y/../x"),
        ] {
            assert_eq!(resolve_url("http://a/b/c/d;p?q", reference), meant, "{reference}");
        }
        assert_eq!(resolve_url("http://a", "g"), "http://a/g");
        assert_eq!(resolve_url("https://a:1/d/x?sig=b/c", "y"), "https://a:1/d/y");
    }
}
