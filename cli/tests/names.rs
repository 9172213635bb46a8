//! Names in images from strangers: what an image consists of is a file, whatever its name looks like, and no name leads around in circles.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;
#[path = "common/scratch.rs"]
mod scratch;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

use common::{ok, vdisk};
use scratch::{disk, fails};

const MIB: usize = 1 << 20;
const GUID: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";

/// A server that hangs up on everybody and tells who called.
struct Server(SocketAddr, Receiver<SocketAddr>);

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (place, (calls, heard)) = (listener.local_addr().unwrap(), channel());
        std::thread::spawn(move || while calls.send(listener.accept().unwrap().1).is_ok() {});
        Self(place, heard)
    }
    /// Nobody called before us.
    fn was_left_alone(&self) -> bool {
        let call = TcpStream::connect(self.0).unwrap();
        self.1.recv().unwrap() == call.local_addr().unwrap()
    }
}

/// An image `image` whose part (or the layer below) has a name, which the file `part` is to get.
struct Holder {
    what: &'static str,
    format: &'static str,
    /// qemu-img opens such images.
    known: bool,
    make: fn(&Path, &str),
}

const HOLDERS: &[Holder] = &[
    Holder {
        what: "VMDK extent",
        format: "vmdk",
        known: true,
        make: |folder, name| {
            let text = format!(
                "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
                 # Extent description\nRW 2048 FLAT \"{name}\" 0\n\nddb.adapterType = \"ide\"\n"
            );
            fs::write(folder.join("image"), text).unwrap();
            fs::copy(folder.join("disk"), folder.join("part")).unwrap();
        },
    },
    Holder {
        what: "qcow2 data file",
        format: "qcow2",
        known: true,
        make: |folder, name| {
            let stand_in = "p".repeat(name.len());
            let options = format!("data_file={stand_in},data_file_raw=on");
            ok(folder, &["convert", "-O", "qcow2", "-o", &options, "disk", "image"]);
            rename_inside(folder, &stand_in, name, |text| text.as_bytes().to_vec());
        },
    },
    Holder {
        what: "file of a Parallels bundle",
        format: "parallels",
        known: false,
        make: |folder, name| {
            let image = format!("<Image><GUID>{GUID}</GUID><Type>Plain</Type><File>{name}</File></Image>");
            let text = format!(
                "<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version=\"1.0\">\n<Disk_Parameters>\
                 <Disk_size>2048</Disk_size><LogicSectorSize>512</LogicSectorSize></Disk_Parameters><StorageData><Storage>\
                 <Start>0</Start><End>2048</End><Blocksize>2048</Blocksize>{image}</Storage></StorageData><Snapshots><Shot>\
                 <GUID>{GUID}</GUID><ParentGUID>{{00000000-0000-0000-0000-000000000000}}</ParentGUID></Shot></Snapshots>\
                 </Parallels_disk_image>\n"
            );
            fs::write(folder.join("image"), text).unwrap();
            fs::copy(folder.join("disk"), folder.join("part")).unwrap();
        },
    },
    Holder {
        what: "VHDX parent",
        format: "vhdx",
        known: false,
        make: |folder, name| overlay(folder, "vhdx", name, utf16),
    },
    Holder {
        what: "VHD parent",
        format: "vpc",
        known: false,
        make: |folder, name| overlay(folder, "vpc", name, utf16),
    },
    Holder {
        what: "COW backing file",
        format: "cow",
        known: false,
        make: |folder, name| overlay(folder, "cow", name, |text| text.as_bytes().to_vec()),
    },
];

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn overlay(folder: &Path, format: &str, name: &str, encoded: fn(&str) -> Vec<u8>) {
    let stand_in = "p".repeat(name.len());
    let below = if format == "cow" { "raw" } else { format };
    ok(folder, &["convert", "-O", below, "disk", &stand_in]);
    ok(
        folder,
        &["create", "-q", "-f", format, "-F", below, "-b", &stand_in, "image"],
    );
    rename_inside(folder, &stand_in, name, encoded);
}

/// Puts a name of the same length in the place of the one that `image` has; the file itself becomes `part`.
fn rename_inside(folder: &Path, old: &str, new: &str, encoded: fn(&str) -> Vec<u8>) {
    let (path, from, to) = (folder.join("image"), encoded(old), encoded(new));
    let mut bytes = fs::read(&path).unwrap();
    // In front of it a VHD has the name in the other byte order, which is not looked at.
    let at = bytes.windows(from.len()).rposition(|w| w == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(&to);
    fs::write(&path, bytes).unwrap();
    fs::rename(folder.join(old), folder.join("part")).unwrap();
}

fn names(folder: &Path, server: &Server) -> Vec<String> {
    let (folder, place) = (folder.display(), server.0);
    vec![
        format!("http://{place}/x"),
        format!("nbd://{place}/x"),
        format!("nbd:{place}:exportname=x"),
        format!("json:{{'driver':'file','filename':'{folder}/secret'}}"),
        format!("fat:{folder}/folder"),
        "json:{'driver':'null-co'}".to_owned(),
        "json:{'driver':'file','filename':'secret'}".to_owned(),
        "fat:folder".to_owned(),
        "file:secret".to_owned(),
        "blkdebug::secret".to_owned(),
        "a:b".to_owned(),
        "plain".to_owned(),
    ]
}

#[test]
fn what_an_image_consists_of_is_a_file_whatever_its_name_looks_like() {
    let have_peer = e2e::tools::have(&["qemu-img"]);
    let server = Server::start();
    for holder in HOLDERS {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        fs::create_dir(folder.join("folder")).unwrap();
        fs::write(folder.join("folder/f"), "x").unwrap();
        fs::write(folder.join("secret"), vec![1; 4 * MIB]).unwrap();
        let disk: Vec<u8> = (0..MIB).map(|i| (i / 512 % 251) as u8).collect();
        fs::write(folder.join("disk"), &disk).unwrap();
        for name in names(folder, &server) {
            let what = format!("{} {name}", holder.what);
            (holder.make)(folder, &name);
            let convert = ["convert", "-f", holder.format, "-O", "raw", "image", "out"];
            let peer = |args: &[&str]| {
                let asked = Command::new("qemu-img").args(args).current_dir(folder).output();
                (have_peer && holder.known).then(|| asked.unwrap())
            };
            for args in [
                &convert[..],
                &["info", "--backing-chain", "-f", holder.format, "image"],
                &["check", "-f", holder.format, "image"],
            ] {
                let out = vdisk(folder, args);
                let said = String::from_utf8_lossy(&out.stderr).into_owned();
                if args == convert {
                    let missing = said.contains("No such file") || holder.format == "parallels" && name.contains('/');
                    assert!(out.status.code() == Some(1) && missing, "{what}: {said}");
                    if let Some(peer) = peer(args) {
                        let theirs = String::from_utf8_lossy(&peer.stderr).into_owned();
                        assert!(
                            peer.status.code() == Some(1) && theirs.contains("No such file"),
                            "{what}: {theirs}"
                        );
                    }
                }
                assert!(
                    !out.stdout.windows(6).any(|w| w == b"secret") || name.contains("secret"),
                    "{what}"
                );
            }
            if !name.contains('/') {
                fs::rename(folder.join("part"), folder.join(&name)).unwrap();
                ok(folder, &convert);
                assert!(fs::read(folder.join("out")).unwrap().starts_with(&disk), "{what}");
                if let Some(peer) = peer(&convert) {
                    let theirs = String::from_utf8_lossy(&peer.stderr).into_owned();
                    assert!(peer.status.success(), "{what}: {theirs}");
                    assert!(fs::read(folder.join("out")).unwrap() == disk, "{what}");
                }
                fs::remove_file(folder.join(&name)).unwrap();
            }
            fs::remove_file(folder.join("image")).unwrap();
        }
    }
    assert!(server.was_left_alone());
}

/// qemu-img stores what it created, too: a name with a protocol would be read as that of a file with a colon in its name.
#[test]
fn a_new_image_names_its_data_file_without_a_protocol() {
    let dir = tempfile::tempdir().unwrap();
    let create = |name: &str, image: &str| {
        let option = format!("data_file={name}");
        vdisk(dir.path(), &["create", "-q", "-f", "qcow2", "-o", &option, image, "1M"])
    };
    assert!(create("file:data", "image").status.success());
    ok(dir.path(), &["convert", "-O", "raw", "image", "out"]);
    assert!(dir.path().join("data").exists());
    for name in ["other:data", "http://127.0.0.1/data"] {
        assert_eq!(create(name, "image2").status.code(), Some(1), "{name}");
        assert!(!dir.path().join("image2").exists(), "{name}");
    }
}

/// The name of a qcow2 file as the file of a raw image.
fn raw_over(file: &str) -> String {
    format!(r#"{{"driver":"raw","file":{{"driver":"qcow2","file":{{"driver":"file","filename":"{file}"}}}}}}"#)
}

fn create_over(folder: &Path, image: &str, name: &str) {
    let args = [
        "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name, image, "1M",
    ];
    ok(folder, &args);
}

#[test]
fn an_image_inside_of_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    create_over(folder, "image", &format!("json:{}", raw_over("image")));
    for args in [
        &["map", "image"][..],
        &["convert", "-O", "raw", "image", "out"],
        &["check", "image"],
        &["info", "--backing-chain", "image"],
    ] {
        let code = vdisk(folder, args).status.code();
        assert!(code.is_some_and(|code| code <= 1), "{args:?} ended by a signal");
    }
    let (_, said) = fails(folder, &["map", "image"]);
    assert!(said.contains("at most 64"), "{said}");
    let nested = (0..100).fold(r#"{"driver":"file","filename":"image"}"#.to_owned(), |inner, _| {
        format!(r#"{{"driver":"raw","file":{inner}}}"#)
    });
    let (code, said) = fails(folder, &["info", &format!("json:{nested}")]);
    assert!(code == 1 && said.contains("at most 64"), "{said}");
    let deep = format!("json:{}{}", r#"{"file":"#.repeat(100_000), "}".repeat(100_000));
    create_over(folder, "deep", &deep[..1000]);
    assert_eq!(fails(folder, &["map", "deep"]).0, 1);
    assert_eq!(fails(folder, &["info", &deep[..100_000]]).0, 1);
}

#[test]
fn images_inside_of_images_are_read_by_several_workers() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    disk(folder);
    ok(folder, &["convert", "-O", "qcow2", "disk", "0"]);
    let last = 19;
    for n in 1..=last {
        let below = format!("json:{}", raw_over(&(n - 1).to_string()));
        create_over(folder, &n.to_string(), &below);
    }
    ok(folder, &["convert", "-m", "4", "-O", "raw", &last.to_string(), "out"]);
    let (out, whole) = (folder.join("out"), folder.join("disk"));
    assert!(fs::read(out).unwrap() == fs::read(whole).unwrap()[..MIB]);
}

/// Every image is one in the guest's data of another, and both have the next one below: their number doubles.
#[test]
fn images_that_double_with_every_name_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    ok(folder, &["create", "-q", "-f", "qcow2", "inner", "1M"]);
    ok(folder, &["convert", "-f", "raw", "-O", "qcow2", "inner", "0"]);
    for n in 1..12 {
        let (image, below) = (n.to_string(), n - 1);
        let name = format!(
            r#"json:{{"driver":"raw","file":{{"driver":"qcow2","file":{{"driver":"qcow2","file":{{"driver":"file","filename":"{below}"}}}}}}}}"#
        );
        create_over(folder, "inner", &name);
        ok(folder, &["convert", "-f", "raw", "-O", "qcow2", "inner", &image]);
        ok(
            folder,
            &["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", &name, &image],
        );
    }
    let name = "driver=qcow2,file.driver=qcow2,file.file.filename=11";
    let (code, said) = fails(folder, &["map", "--image-opts", name]);
    assert!(code == 1 && said.contains("at most 256"), "{said}");
}
