//! What a fuzzer's bytes mean to the readers of names and options: shared by the fuzz targets (`fuzz/`) and the test of their kept inputs.

use vdisk_cli::options;
use vdisk_cli::spec::{Keys, json, keyval, name, nbd, url};
use vdisk_cli::text::{qdict, size};
use vdisk_engine::formats::DRIVERS;

type Read = fn(&str);

/// The readers: the name, which is also that of the folder of inputs, and what is done with a text.
pub const READERS: &[(&str, Read)] = &[
    ("json_name", json_name),
    ("option_list", option_list),
    ("sizes", sizes),
    ("urls", urls),
];

/// Gives an input to the reader of this name.
pub fn run(name: &str, data: &[u8]) {
    let Some((_, read)) = READERS.iter().find(|(known, _)| *known == name) else {
        panic!("no reader '{name}'");
    };
    read(&String::from_utf8_lossy(data));
}

fn json_name(text: &str) {
    if let Ok(Some(keys)) = json::parse(&format!("json:{text}")) {
        for (key, value) in keys.iter() {
            assert!(qdict::line(value).len() < usize::MAX - key.len());
        }
        take_all(keys);
    }
}

/// Everything that can be asked of keys; nothing is left when all were taken.
fn take_all(mut keys: Keys) {
    let mut below = keys.take_below("file");
    let _ = (below.take("filename"), below.take_flag("read-only"));
    let names: Vec<_> = keys.iter().map(|(key, _)| key.to_owned()).collect();
    for (index, name) in names.iter().enumerate() {
        match index % 3 {
            0 => drop(keys.take(name)),
            1 => drop(keys.take_value(name)),
            _ => drop(keys.take_flag(name)),
        }
        assert!(!keys.has(name), "{name:?} was taken and is still there");
    }
    assert!(keys.is_empty());
}

fn option_list(text: &str) {
    let pairs = keyval::parse(text, None);
    again(&pairs);
    take_all(Keys::from_pairs(keyval::parse(text, Some("file"))));
    let _ = (
        keyval::asks_for_help(text),
        keyval::join(&[text.to_owned(), "a=b".to_owned()]),
    );
    for driver in DRIVERS {
        let table = options::create_table(*driver);
        if let Ok(read) = options::read(Some(text), &table) {
            let _ = (options::check_choices(&read, &table), options::check_keys(&read));
        }
    }
}

/// Written out, pairs read as they were.
fn again(pairs: &[(String, String)]) {
    if pairs.iter().any(|(key, _)| key.contains([',', '='])) {
        return;
    }
    let list: Vec<_> = pairs
        .iter()
        .map(|(k, v)| format!("{k}={}", v.replace(',', ",,")))
        .collect();
    let read = keyval::parse(&list.join(","), None);
    assert_eq!(read, pairs);
}

fn sizes(text: &str) {
    let read = size::parse(text);
    if !text.is_empty() && text.len() < 20 && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0') {
        assert!(
            matches!((&read, text.parse::<u64>()), (Ok(a), Ok(b)) if *a == b),
            "{text} is a number"
        );
    }
    if let Ok(bytes) = read {
        assert!(!size::human(bytes).is_empty());
    }
    let _ = (size::size("size", text), size::number_between("number", text, 1, 100));
    let _ = vdisk_engine::options::parse_size(text);
}

fn urls(text: &str) {
    if let Some(parts) = url::split(text) {
        assert!(text.starts_with(parts.scheme) && text.contains(parts.host));
        assert!(text.contains(parts.path));
    }
    let _ = url::decode(text);
    let mut keys = Keys::from_pairs(Vec::new());
    let _ = nbd::keys_of_name(&mut keys, text);
    if let Some(protocol) = name::protocol(text) {
        assert!(text[protocol.len()..].starts_with(':'));
    }
    let _ = name::relative_to(text, "a/b");
    let _ = name::relative_to("a/b", text);
}
