//! `vdisk`, called through a link named `qemu-img`, and qemu-img answer the same command lines alike.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A folder for each program, with the same files.
struct Pair {
    peer: TempDir,
    ours: TempDir,
    link: PathBuf,
    _bin: TempDir,
}

impl Pair {
    fn new() -> Self {
        let bin = tempfile::tempdir().unwrap();
        let link = bin.path().join("qemu-img");
        symlink(env!("CARGO_BIN_EXE_vdisk"), &link).unwrap();
        Self {
            peer: tempfile::tempdir().unwrap(),
            ours: tempfile::tempdir().unwrap(),
            link,
            _bin: bin,
        }
    }

    fn prepare(&self, line: &str) {
        for folder in [&self.peer, &self.ours] {
            let status = Command::new("sh")
                .args(["-c", line])
                .current_dir(folder.path())
                .stdout(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success(), "{line}");
        }
    }

    /// What differs in the answers to a command line.
    fn compare(&self, line: &str) -> Option<String> {
        let args = words(line);
        let peer = run(Path::new("qemu-img"), &args, self.peer.path());
        let ours = run(&self.link, &args, self.ours.path());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let all = |o: &Output| (o.status.code(), text(&o.stdout), text(&o.stderr));
        (all(&peer) != all(&ours))
            .then(|| format!("qemu-img {line}\n  peer: {:?}\n  ours: {:?}", all(&peer), all(&ours)))
    }
}

fn run(program: &Path, args: &[String], folder: &Path) -> Output {
    Command::new(program)
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Words of a line; single and double quotes keep spaces.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), _) if q == c => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

fn table(text: &str) {
    if !e2e::tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let (mut pair, mut count, mut wrong) = (Pair::new(), 0, Vec::new());
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if line.is_empty() {
            pair = Pair::new();
        } else if let Some(command) = line.strip_prefix('!') {
            pair.prepare(command);
        } else {
            count += 1;
            wrong.extend(pair.compare(line));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!("{count} command lines answered alike");
}

#[test]
fn wrong_command_lines_and_raw_images_are_answered_alike() {
    table(include_str!("usage.txt"));
}

#[test]
fn qcow2_images_are_answered_alike() {
    table(include_str!("images.txt"));
}
