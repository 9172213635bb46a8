//! What is read, what is refused, and that edits keep all else.

use super::*;
use crate::{Limits, Result};

const TEXT: &str = "# Disk DescriptorFile\nversion=1\nCID=0000abcd\nparentCID=ffffffff\ncreateType=\"custom\"\n\
                    # Extent description\nRW 63 FLAT \"a b.vmdk\" 7\nRDONLY 10 ZERO\n";

fn parse(text: &str) -> Result<Descriptor> {
    Descriptor::parse(text.as_bytes(), &Limits::default())
}

#[test]
fn extents_are_taken_with_spaces_in_names() {
    let d = parse(TEXT).unwrap();
    let first = &d.extents[0];
    assert_eq!(
        (first.name.as_str(), first.len, first.offset),
        ("a b.vmdk", 63 * 512, 7 * 512)
    );
    assert_eq!(
        (d.extents[1].kind, d.extents[1].access),
        (ExtentType::Zero, Access::ReadOnly)
    );
}

#[test]
fn a_descriptor_is_known_by_its_first_line_or_by_its_version() {
    for first in [
        "# Disk DescriptorFile",
        "#Disk DescriptorFile",
        "# DISK DESCRIPTOR FILE",
        "\u{feff}# Disk DescriptorFile",
        "\r\n# Disk DescriptorFile\r",
        "# by hand",
    ] {
        let text = TEXT.replace("# Disk DescriptorFile", first);
        assert!(looks_like_descriptor(text.as_bytes()), "{first}");
        assert_eq!(parse(&text).unwrap().extents.len(), 2, "{first}");
    }
    for text in [&TEXT[22..], &TEXT[22..].replace('\n', "\r\n")] {
        assert!(text.starts_with("version=1"));
        assert!(looks_like_descriptor(text.as_bytes()), "{text}");
    }
    for text in [
        "",
        "#",
        "# Disk",
        "version=1\n",
        "version = 1\ncreateType=\"custom\"\n",
        "\nversion=1\ncreateType=\"custom\"\n",
        "version=1\n\0createType=\"custom\"\n",
        "# x\nversion=1\n",
        "# x\nversion=10\ncreateType=",
    ] {
        assert!(!looks_like_descriptor(text.as_bytes()), "{text}");
    }
}

#[test]
fn a_text_in_another_encoding_keeps_its_bytes() {
    let western = |name: &[u8], encoding: &str| {
        let text = TEXT.replace("version=1", &format!("version=1\nencoding=\"{encoding}\""));
        let (before, after) = text.split_once("a b").unwrap();
        [
            before.as_bytes(),
            name,
            after.as_bytes(),
            b"ddb.comment = \"\x80\xff\"\n",
        ]
        .concat()
    };
    let raw = western(b"caf\xe9", "windows-1252");
    let mut d = Descriptor::parse(&raw, &Limits::default()).unwrap();
    assert_eq!(d.extents[0].name, "caf\u{e9}.vmdk");
    assert_eq!(d.text(), raw);
    d.set_cid(1);
    let changed = String::from_utf8_lossy(&raw).replace("CID=0000abcd", "CID=00000001");
    assert_eq!(String::from_utf8_lossy(&d.text()), changed);
    for (name, encoding) in [(&b"caf\xe9"[..], "GBK"), (b"\x80", "windows-1252")] {
        let error = Descriptor::parse(&western(name, encoding), &Limits::default()).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Unsupported, "{error}");
    }
    assert_eq!(
        Descriptor::parse(&western(b"a b", "GBK"), &Limits::default())
            .unwrap()
            .extents[0]
            .name,
        "a b.vmdk"
    );
}

#[test]
fn no_extent_is_lost_for_its_small_letters() {
    let d = parse(&TEXT.replace("RW 63 FLAT", "rw 63 flat")).unwrap();
    assert_eq!((d.extents.len(), d.extents[0].kind), (2, ExtentType::Flat));
}

#[test]
fn edits_change_their_line_alone() {
    let mut d = parse(TEXT).unwrap();
    d.set_cid(1);
    d.set_parent(Some(("p.vmdk", 2)));
    d.set_extent_len(0, 64 * 512);
    let text = String::from_utf8(d.text()).unwrap();
    assert!(text.contains("CID=00000001\nparentCID=00000002\ncreateType=\"custom\"\nparentFileNameHint=\"p.vmdk\"\n"));
    assert!(text.contains("RW 64 FLAT \"a b.vmdk\" 7\nRDONLY 10 ZERO\n"));
    d.set_parent(None);
    d.set_cid(0xabcd);
    d.set_extent_len(0, 63 * 512);
    assert_eq!(d.text(), TEXT.as_bytes());
}

#[test]
fn lines_that_cannot_be_meant_are_refused() {
    let long = format!("createType=\"{}\"\n", "x".repeat(64));
    for (from, to) in [
        ("createType=\"custom\"\n", ""),
        ("createType=\"custom\"\n", long.as_str()),
        (
            "createType=\"custom\"\n",
            "createType=\"custom\"\ncreateType=\"vmfs\"\n",
        ),
        ("CID=0000abcd", "CID=xyz"),
        ("RW 63 ", "RW -1 "),
        ("RW 63 ", "RW 0 "),
        ("RW 63 ", "RW 9223372036854775808 "),
        (" 7\n", " -7\n"),
        (" 7\n", " 18446744073709551615\n"),
        (" 7\n", "\n"),
        ("FLAT", "VMFSRAW"),
        ("RDONLY 10", "NOACCESS 10"),
        ("\"a b.vmdk\"", "\"\""),
        ("\"a b.vmdk\"", "a"),
        ("10 ZERO\n", "10 ZERO\n\0\x7f"),
        ("10 ZERO\n", "10 ZERO\n\0RW 1 FLAT \"x\" 0\n"),
        ("10 ZERO\n", "10 ZERO\n\x01"),
    ] {
        let text = TEXT.replace(from, to);
        assert_ne!(text, TEXT);
        assert!(parse(&text).is_err(), "{from:?} -> {to:?}");
    }
}

/// As qemu-img 10.0.2 reads them.
#[test]
fn what_makes_no_difference_is_read() {
    for (from, to) in [
        ("CID=0000abcd", "CID=0000abcd\nCID=0000abcd"),
        ("CID=0000abcd", "CID=0xabcd"),
        (" 7\n", " 7\n# \x01\n"),
        (" 7\n", " 7\n\x0b\n"),
    ] {
        let d = parse(&TEXT.replace(from, to)).unwrap();
        assert_eq!((d.cid, d.extents[0].offset), (0xabcd, 7 * 512), "{to:?}");
        assert_eq!(d.text(), TEXT.replace(from, to).as_bytes());
    }
    let d = parse(&TEXT.replace(" 7\n", " 0x0\n")).unwrap();
    assert_eq!(d.extents[0].offset, 0);
    assert!(
        parse(&TEXT.replace(" 7\n", " 0x7\n")).is_err(),
        "qemu-img takes it for 0"
    );
}

#[test]
fn a_key_that_stands_twice_is_changed_in_both_places() {
    let twice = TEXT.replace("CID=0000abcd", "CID=0000abcd\nCID=0000abcd");
    let mut d = parse(&twice).unwrap();
    d.set_cid(1);
    let changed = twice.replace("CID=0000abcd", "CID=00000001");
    assert_eq!(String::from_utf8(d.text()).unwrap(), changed);
    assert_eq!(parse(&changed).unwrap().cid, 1);
    assert!(parse(&changed.replacen("CID=00000001", "CID=00000002", 1)).is_err());
}

#[test]
fn only_an_embedded_descriptor_may_leave_out_its_type() {
    let text = TEXT.replace("createType=\"custom\"\n", "");
    assert!(parse(&text).is_err());
    let d = Descriptor::parse_embedded(text.as_bytes(), &Limits::default()).unwrap();
    assert_eq!((d.create_type.as_str(), d.cid), ("", 0xabcd));
}

#[test]
fn what_qemu_leaves_of_a_longer_text_is_padding() {
    assert!(parse(&format!("{TEXT}\0\n\0\0")).is_ok());
}

#[test]
fn too_many_extents_are_refused() {
    let text = TEXT.to_owned() + &"RW 1 ZERO\n".repeat(20_000);
    assert_eq!(parse(&text).unwrap_err().kind(), crate::ErrorKind::LimitExceeded);
}
