//! Seeds of the fuzz targets: images of our own drivers with many create options, images of qemu-img where it is installed, and texts. Each is
//! answered here; `VDISK_SEEDS=FOLDER` stores them too, one folder a target.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use vdisk_engine::env::CreateSpec;
use vdisk_engine::gate::Node;
use vdisk_engine::options::Options;
use vdisk_engine::storage::{MemoryStorage, read_vec};
use vdisk_engine::{Chain, Limits, OpenEnv, Result, Storage, ops};

use crate::inputs::{self, Passphrase, create_env, packed};

/// Create options that give other structures.
const VARIANTS: &[(&str, &[&str])] = &[
    (
        "qcow2",
        &[
            "",
            "cluster_size=512",
            "cluster_size=4k",
            "cluster_size=4k,extended_l2=off,refcount_bits=1",
            "compat=0.10",
            "cluster_size=16k,extended_l2=on",
            "compression_type=zstd",
            "refcount_bits=64",
            "lazy_refcounts=on",
        ],
    ),
    ("qcow", &[""]),
    ("qed", &["cluster_size=4k,table_size=1", "cluster_size=64k"]),
    ("vdi", &["", "static=on", "block_size=4k"]),
    (
        "vpc",
        &[
            "subformat=dynamic",
            "subformat=fixed",
            "subformat=dynamic,force_size=on",
        ],
    ),
    (
        "vhdx",
        &["", "block_size=1M", "subformat=fixed", "block_state_zero=off"],
    ),
    (
        "vmdk",
        &[
            "subformat=monolithicSparse",
            "subformat=streamOptimized",
            "compat6=on",
            "zeroed_grain=on",
        ],
    ),
    ("parallels", &["", "cluster_size=4k"]),
    ("bochs", &[""]),
    ("cloop", &["", "block_size=512"]),
    ("cow", &[""]),
    ("dmg", &["", "subformat=ULFO"]),
    (
        "luks",
        &[
            "key-secret=key,iterations=1000",
            "key-secret=key,version=2,pbkdf=pbkdf2,iterations=1000",
        ],
    ),
    ("raw", &[""]),
];

/// What is done with an image: writes, zeroes, discards, a new size, a repair, a snapshot, a bitmap.
const PROGRAMS: &[&[u8]] = &[
    &[0, 0, 0, 3, 1, 8, 0, 40, 3, 2, 0, 1, 9, 0, 0, 0],
    &[7, 0, 0, 0, 0, 1, 0, 200, 4, 0, 0, 100, 7, 1, 0, 0],
    &[8, 0, 0, 0, 2, 0, 0, 1, 5, 2, 0, 0, 0, 16, 0, 9],
    &[5, 1, 0, 0, 6, 0, 0, 0, 1, 0, 0, 9, 8, 1, 0, 0],
];

#[test]
fn seeds_are_answered() {
    let _alone = crate::alone();
    let mut count = 0;
    for (format, variants) in VARIANTS {
        for options in *variants {
            for data in [false, true] {
                match made(format, options, data) {
                    Ok(bytes) => count += keep_image(format, &bytes),
                    Err(error) => panic!("{format}, {options}: {error}"),
                }
            }
        }
    }
    count += by_tools() + texts();
    println!("{count} seeds answered");
    assert!(count > 100);
}

fn made(format: &str, options: &str, data: bool) -> Result<Vec<u8>> {
    let storage = Arc::new(MemoryStorage::empty());
    let limits = Limits::default();
    let env = create_env(&limits);
    let mut parsed = Options::new();
    for (name, value) in options.split(',').filter_map(|o| o.split_once('=')) {
        parsed.set(name, value);
    }
    let spec = CreateSpec {
        virtual_size: 256 << 10,
        options: parsed,
        backing: None,
    };
    ops::create::create(storage.clone(), format, &spec, &env)?;
    let mut node = Node::new(storage.clone(), format);
    if options.contains("key-secret") {
        node = node.with_options(Options::new().with("key-secret", "key"));
    }
    let chain = Chain::open(node, &OpenEnv::closed(&limits).with_secrets(&Passphrase).writable())?;
    if data {
        if chain.write(0, &[3; 1024]).is_err() {
            fill(&chain)?;
        }
        let _ = chain.write(80 << 10, &[5; 512]);
        let _ = chain.top().write_compressed(64 << 10, &[7; 64 << 10]);
        inside(&chain);
    }
    chain.top().close()?;
    drop(chain);
    Ok(storage.contents())
}

/// Images that are only filled.
fn fill(chain: &Chain) -> Result<()> {
    let mut guest = vec![0; 256 << 10];
    guest[..1024].fill(3);
    let limits = Limits::default();
    let raw = Node::new(Arc::new(MemoryStorage::new("source", guest)), "raw");
    let source = Chain::open(raw, &OpenEnv::closed(&limits))?;
    let (options, control) = (ops::convert::CopyOptions::default(), vdisk_engine::Control::default());
    ops::convert::convert(&source, chain.top(), &options, &control).map(drop)
}

fn inside(chain: &Chain) {
    if let Some(snapshots) = chain.top().snapshots() {
        let _ = snapshots.create("one", (1, 2));
        let _ = chain.write(512, &[9; 512]);
    }
    if let Some(bitmaps) = chain.top().bitmaps() {
        let _ = bitmaps
            .add("dirty", 65_536, true)
            .and_then(|()| bitmaps.mark("dirty", &[(0, 512)]));
    }
}

fn keep_image(format: &str, bytes: &[u8]) -> usize {
    let packed: Vec<_> = PROGRAMS.iter().filter_map(|then| packed::pack(bytes, then)).collect();
    packed
        .iter()
        .filter(|p| p.len() < 60_000)
        .map(|p| keep(format, p))
        .sum()
}

/// Answers a seed, and stores it under the sum of its bytes where that is asked for.
fn keep(target: &str, bytes: &[u8]) -> usize {
    if inputs::TARGETS.iter().any(|t| t.name == target) {
        inputs::run(target, bytes);
    }
    if let Ok(folder) = std::env::var("VDISK_SEEDS") {
        let folder = Path::new(&folder).join(target);
        let name = format!("seed-{:08x}-{}", crc32c::crc32c(bytes), bytes.len());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    1
}

/// Images that other tools make, where they are there.
fn by_tools() -> usize {
    let qemu: &[(&str, &str, &str)] = &[
        ("qcow2", "qcow2", ""),
        ("qcow2", "qcow2", "cluster_size=512"),
        ("qcow2", "qcow2", "data_file_raw=off,extended_l2=on"),
        ("qcow", "qcow", ""),
        ("qed", "qed", "cluster_size=4096,table_size=1"),
        ("vdi", "vdi", ""),
        ("vpc", "vpc", ""),
        ("vpc", "vpc", "subformat=fixed"),
        ("vhdx", "vhdx", ""),
        ("vmdk", "vmdk", ""),
        ("vmdk", "vmdk", "subformat=streamOptimized"),
        ("parallels", "parallels", ""),
    ];
    let file = std::env::temp_dir().join(format!("vdisk-seed-{}", std::process::id()));
    let mut count = 0;
    for (target, format, options) in qemu {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", format]);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        command.arg(&file).arg("256k");
        if command.status().is_ok_and(|s| s.success())
            && let Ok(bytes) = std::fs::read(&file)
        {
            count += keep_image(target, &bytes);
        }
        let _ = std::fs::remove_file(&file);
    }
    count
}

const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nCID=0000abcd\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
    # Extent description\nRW 128 FLAT \"f\" 0\nRW 128 ZERO\n\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"ide\"\n\
    ddb.geometry.cylinders = \"1\"\n";

fn texts() -> usize {
    let texts: &[(&str, &[&str])] = &[
        (
            "vmdk_descriptor",
            &[
                DESCRIPTOR,
                "# Disk DescriptorFile\ncreateType=\"custom\"\nRW 1 SPARSE \"a\"\nparentFileNameHint=\"b\"\n",
            ],
        ),
        (
            "json_name",
            &[
                r#"{"driver":"qcow2","file":{"driver":"file","filename":"a"}}"#,
                r"{'file.filename': 'a\'b', 'driver': 'raw'}",
                r#"{"file.driver":"nbd","file.server.type":"inet","x":[1,null,true,{"y":1.5}]}"#,
            ],
        ),
        (
            "option_list",
            &[
                "size=1G,cluster_size=64k,backing_file=a,,b",
                "driver=qcow2,file.filename=x,readonly",
                "compat=1.1,nolazy_refcounts,help",
            ],
        ),
        ("sizes", &["1.5G", "0x200", "18446744073709551615", "1e3", "64k"]),
        (
            "urls",
            &[
                "nbd://host:10809/name?socket=/x",
                "nbd+unix:///a?socket=b%20c",
                "http://u@[::1]:80/p?q#f",
                "nbd:unix:/x:exportname=y",
                "nbd:host:1:exportname=z",
            ],
        ),
        (
            "options",
            &[
                "qcow2\ncluster_size=64k\nrefcount_bits=16\nsize=1G",
                "vmdk\nsubformat=streamOptimized",
                "luks\niterations=1000",
                "vhdx\nblock_size=1M\nsize=64T",
            ],
        ),
        (
            "dmg_plist",
            &[
                "<?xml version=\"1.0\"?><plist version=\"1.0\"><dict><key>resource-fork</key><dict><key>blkx</key><array><dict><key>Data</key><data>bWlzaAAAAAE=</data></dict></array></dict></dict></plist>",
            ],
        ),
    ];
    let mut count: usize = texts
        .iter()
        .flat_map(|(t, list)| list.iter().map(|x| keep(t, x.as_bytes())))
        .sum();
    if let Ok(volume) = made("luks", "key-secret=key,version=2,pbkdf=pbkdf2,iterations=1000", false) {
        let json: Vec<u8> = volume[4096..].iter().copied().take_while(|b| *b != 0).collect();
        count += keep("luks2_json", &json);
        count += keep(
            "luks2_json",
            String::from_utf8_lossy(&json).replace("pbkdf2", "argon2id").as_bytes(),
        );
    }
    count + parts()
}

/// Seeds of the targets that are parts of images.
fn parts() -> usize {
    let mut table = vec![0u8; 204];
    table[..4].copy_from_slice(b"mish");
    (table[7], table[23], table[203]) = (1, 8, 2);
    let mut count = 0;
    for kind in [
        1u32,
        0,
        2,
        0x8000_0004,
        0x8000_0005,
        0x8000_0006,
        0x8000_0007,
        0x8000_0008,
    ] {
        let mut blob = table.clone();
        for (kind, sectors, len) in [(kind, 8u64, 64u64), (0xffff_ffff, 0, 0)] {
            blob.extend(kind.to_be_bytes());
            blob.extend([0; 4]);
            for number in [0, sectors, 0, len] {
                blob.extend(number.to_be_bytes());
            }
        }
        let len = u16::try_from(blob.len()).unwrap_or(0).to_be_bytes();
        count += keep("dmg_tables", &[&len[..], &blob, &[0x55; 64]].concat());
    }
    count += DESCRIPTORS
        .iter()
        .map(|xml| keep("parallels_bundle", xml.as_bytes()))
        .sum::<usize>();
    count += grains().iter().map(|data| keep("deflate", data)).sum::<usize>();
    count += servers().iter().map(|lines| keep("nbd", lines)).sum::<usize>();
    for (flags, version) in [(4, 1), (8, 2)] {
        count += PROGRAMS
            .iter()
            .map(|then| keep("luks", &over_luks(flags, version, then)))
            .sum::<usize>();
    }
    count + keep("vhdx_log", &log_entry())
}

/// Data for one grain: nothing, text, numbers, noise, halves that are alike, a run.
fn grains() -> [Vec<u8>; 6] {
    let noise = |len: u32| {
        (1..=len)
            .map(|n| (n.wrapping_mul(0x9e37_79b1) >> 13) as u8)
            .collect::<Vec<_>>()
    };
    [
        Vec::new(),
        DESCRIPTOR.as_bytes().to_vec(),
        (0..8192u32).flat_map(u32::to_le_bytes).collect(),
        noise(3000),
        noise(32_768).repeat(2),
        vec![0; 65_536],
    ]
}

/// The header's first sectors, of version 2 also those of the JSON, over a new volume: what a fuzzer can change without losing the keys.
fn over_luks(flags: u8, version: u8, then: &[u8]) -> Vec<u8> {
    let volume = inputs::new_luks(version);
    let len = volume.len().unwrap();
    let mut input = vec![1 | flags];
    input.extend(u32::try_from(len / 512).unwrap().to_le_bytes());
    input.extend([0, 0, 2]);
    for (sector, bytes) in [(0u32, 592u16), (8, 1024)] {
        input.extend(sector.to_le_bytes());
        input.extend(bytes.to_le_bytes());
        input.extend(read_vec(volume, u64::from(sector) * 512, usize::from(bytes)).unwrap());
    }
    input.extend(then);
    input
}

fn log_entry() -> Vec<u8> {
    let mut page = b"loge".to_vec();
    page.resize(96, 0);
    page[9] = 0x10;
    (page[16], page[24]) = (1, 1);
    page[48..56].copy_from_slice(&(8u64 << 20).to_le_bytes());
    page[56..64].copy_from_slice(&(8u64 << 20).to_le_bytes());
    page[64..68].copy_from_slice(b"zero");
    page[72..80].copy_from_slice(&4096u64.to_le_bytes());
    page[80..88].copy_from_slice(&(4u64 << 20).to_le_bytes());
    page[88] = 1;
    [&96u16.to_le_bytes()[..], &page].concat()
}

/// One file; two states in two parts.
const DESCRIPTORS: &[&str] = &[
    "<?xml version='1.0'?><Parallels_disk_image Version=\"1.0\"><Disk_Parameters><Disk_size>128</Disk_size></Disk_Parameters><StorageData><Storage>\
     <Start>0</Start><End>128</End><Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>Compressed</Type><File>h</File></Image>\
     </Storage></StorageData></Parallels_disk_image>",
    "<Parallels_disk_image><Disk_Parameters><Disk_size>240</Disk_size><LogicSectorSize>512</LogicSectorSize><Padding>0</Padding></Disk_Parameters>\
     <StorageData><Storage><Start>0</Start><End>128</End>\
     <Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>Compressed</Type><File>h</File></Image>\
     <Image><GUID>{11111111-2222-3333-4444-555555555555}</GUID><Type>Plain</Type><File>p</File></Image></Storage>\
     <Storage><Start>128</Start><End>256</End>\
     <Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>Compressed</Type><File>i</File></Image>\
     <Image><GUID>{11111111-2222-3333-4444-555555555555}</GUID><Type>Compressed</Type><File>/x/h</File></Image></Storage></StorageData>\
     <Snapshots><Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><ParentGUID>{11111111-2222-3333-4444-555555555555}</ParentGUID></Shot>\
     <Shot><GUID>{11111111-2222-3333-4444-555555555555}</GUID><ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot></Snapshots>\
     </Parallels_disk_image>",
];

/// Size and flags (all but READ_ONLY) of an export of 4 KiB.
const EXPORT: [u8; 10] = [0, 0, 0, 0, 0, 0, 16, 0, 0, 0x6d];

/// What good NBD servers say (doc/proto.md): an oldstyle one, one that knows only export names, one with structured replies.
fn servers() -> [Vec<u8>; 3] {
    let simple = |cookies: std::ops::Range<u64>, data: usize| -> Vec<u8> {
        let mut said = Vec::new();
        for cookie in cookies {
            said.extend([0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
            said.extend(cookie.to_be_bytes());
            said.extend(vec![7; if cookie == 1 { data } else { 0 }]);
        }
        said
    };
    let mut old = b"\x01NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53".to_vec();
    old.extend(&EXPORT[..8]);
    old.extend([0, 0, 0, 0x6d]);
    old.extend([0; 124]);
    old.extend(simple(1..6, 2048));
    let mut named = b"\x03NBDMAGICIHAVEOPT\x00\x02".to_vec();
    named.extend(EXPORT);
    named.extend(simple(1..6, 2048));
    let mut good = b"\x03NBDMAGICIHAVEOPT\x00\x03".to_vec();
    good.extend(option(8, 1, &[]));
    good.extend(option(10, 4, b"\0\0\0\x07base:allocation"));
    good.extend(option(10, 1, &[]));
    good.extend(option(7, 3, &[&[0, 0][..], &EXPORT].concat()));
    good.extend(option(7, 3, &[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 1, 0, 0, 0]));
    good.extend(option(7, 1, &[]));
    good.extend(chunk(0, 1, 1, &[&[0; 8][..], &[7; 1024]].concat()));
    good.extend(chunk(1, 2, 1, &[0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0]));
    good.extend(chunk(
        1,
        5,
        2,
        &[0, 0, 0, 7, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 3],
    ));
    good.extend((3..7).flat_map(|cookie| chunk(1, 0, cookie, &[])));
    [old, named, good]
}

/// An answer to an option.
fn option(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut said = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    for number in [option, kind, data.len() as u32] {
        said.extend(number.to_be_bytes());
    }
    said.extend(data);
    said
}

/// A part of a structured reply.
fn chunk(flags: u8, kind: u8, cookie: u64, data: &[u8]) -> Vec<u8> {
    let mut said = vec![0x66, 0x8e, 0x33, 0xef, 0, flags, 0, kind];
    said.extend(cookie.to_be_bytes());
    said.extend((data.len() as u32).to_be_bytes());
    said.extend(data);
    said
}
