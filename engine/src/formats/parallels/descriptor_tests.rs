use super::*;
use crate::ErrorKind;

const TEXT: &str = "<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version=\"1.0\"><Disk_Parameters>\
<Disk_size>3000</Disk_size><LogicSectorSize>512</LogicSectorSize><Encryption><Engine>{00000000-0000-0000-0000-000000000000}\
</Engine></Encryption></Disk_Parameters><StorageData><Storage><Start>2048</Start><End>4096</End><Image><GUID>\
{5FBAABE3-6958-40ff-92a7-860e329aab41}</GUID><Type>Compressed</Type><File>b.hds</File></Image></Storage><Storage><Start>0</Start>\
<End>2048</End><Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>Plain</Type><File>/old/place/a.hds</File></Image>\
</Storage></StorageData><Snapshots><Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><ParentGUID>\
{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot></Snapshots></Parallels_disk_image>\n";

fn parse(text: &str) -> Result<Descriptor> {
    Descriptor::parse(text.as_bytes(), &Limits::default())
}

#[test]
fn storages_come_in_the_order_of_the_disk() {
    let found = parse(TEXT).unwrap();
    assert_eq!((found.size, found.states.len()), (3000 * 512, 1));
    let names: Vec<_> = found
        .parts
        .iter()
        .map(|p| (p.start, p.layers[0].name.as_str()))
        .collect();
    assert_eq!(names, [(0, "a.hds"), (1 << 20, "b.hds")]);
    assert!(looks_like_descriptor(TEXT.as_bytes()));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (from, to) in [
        ("<Disk_size>3000", "<Disk_size>4097"),
        ("<Disk_size>3000", "<Disk_size>-1"),
        ("<Disk_size>3000", "<Disk_size>36893488147419103232"),
        ("<Start>2048", "<Start>2047"),
        ("<Start>2048", "<Start>2049"),
        ("<Start>2048", "<Start>4096"),
        ("<Start>0<", "<Start>18014398509481983<"),
        ("b.hds", "../b.hds"),
        ("b.hds", "sub/b.hds"),
        ("b.hds", "..\\b.hds"),
        ("b.hds", ".."),
        ("b.hds", ""),
        ("/old/place/a.hds", "/old/.."),
        ("/old/place/a.hds", "/old/"),
        ("5FBAABE3", "6FBAABE3"),
        ("5FBAABE3", "g"),
        ("<StorageData>", "<StorageData><Storage/>"),
        ("<ParentGUID>{00000000", "<ParentGUID>{00000001"),
        (
            "{00000000-0000-0000-0000-000000000000}</ParentGUID>",
            "{5fbaabe3-6958-40ff-92a7-860e329aab41}</ParentGUID>",
        ),
        (
            "<Parallels_disk_image Version=\"1.0\">",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><Parallels_disk_image>",
        ),
    ] {
        let text = TEXT.replace(from, to);
        assert_ne!(text, TEXT, "{from}");
        let error = parse(&text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{from} -> {to}: {error}");
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (from, to) in [
        ("<LogicSectorSize>512", "<LogicSectorSize>4096"),
        ("<Engine>{00000000", "<Engine>{00000001"),
        ("<Type>Plain", "<Type>Raw"),
        ("<Disk_size>", "<Padding>1</Padding><Disk_size>"),
    ] {
        let error = parse(&TEXT.replace(from, to)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{to}: {error}");
    }
}

#[test]
fn files_and_states_are_bounded() {
    let limits = Limits {
        files: 1,
        ..Limits::default()
    };
    let error = Descriptor::parse(TEXT.as_bytes(), &limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    let guid = |n: usize| format!("{{00000000-0000-0000-0000-{n:012}}}");
    let shot = |n| {
        format!(
            "<Shot><GUID>{}</GUID><ParentGUID>{}</ParentGUID></Shot>",
            guid(n),
            guid(n + 1)
        )
    };
    let many: String = (1..10_000).map(shot).collect();
    let text = TEXT.replace(
        "<Snapshots>",
        &format!("<Snapshots><TopGUID>{}</TopGUID>{many}", guid(1)),
    );
    assert_eq!(parse(&text).unwrap_err().kind(), ErrorKind::LimitExceeded);
}
