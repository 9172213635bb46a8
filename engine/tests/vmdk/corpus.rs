//! Images that others made.

use vdisk_engine::ErrorKind;
use vdisk_engine::control::Control;
use vdisk_engine::image::Repair;

use crate::support::{contents, nonzero_digest, open, sha256, try_open};

#[test]
fn corpus_images_have_the_content_of_the_manifest() {
    let Some(samples) = e2e::corpus::samples(&["vmdk"]) else {
        return;
    };
    let mut read = 0;
    for sample in samples {
        let wanted = sample.content_sha256().map(|s| s.split(' ').next().unwrap_or_default());
        if wanted.is_none() && sample.nonzero_digest().is_none() {
            continue;
        }
        let chain = open(&sample.path, false);
        assert_eq!(Some(chain.virtual_size()), sample.virtual_size(), "{}", sample.name());
        match wanted {
            Some(wanted) => assert_eq!(sha256(&contents(&chain)), wanted, "{}", sample.name()),
            None => assert_eq!(
                Some(nonzero_digest(&chain).as_str()),
                sample.nonzero_digest(),
                "{}",
                sample.name()
            ),
        }
        let report = chain.top().check(Repair::No, &Control::default()).unwrap();
        assert_eq!(report.corruptions, 0, "{}: {:?}", sample.name(), report.messages);
        read += 1;
    }
    assert!(read >= 14, "{read}");
}

#[test]
fn corpus_images_that_nobody_reads_are_refused() {
    let Some(samples) = e2e::corpus::samples(&["vmdk"]) else {
        return;
    };
    let refused = [
        ("kubevirt-cdi/invalid-qcow-large-memory.img", ErrorKind::Corrupt),
        ("osdev/frogos2-fulldevice.vmdk", ErrorKind::Unsupported),
        ("qemu/afl9.vmdk", ErrorKind::Corrupt),
        ("vmdk-forensic/ms3-win.vmdk", ErrorKind::Io),
        ("vmdk-rs/monolithicFlat.vmdk", ErrorKind::Io),
    ];
    for (name, kind) in refused {
        let Some(sample) = samples.iter().find(|s| s.name() == name) else {
            panic!("{name} is not in the corpus")
        };
        let error = try_open(&sample.path, false)
            .err()
            .unwrap_or_else(|| panic!("{name} opened"));
        assert_eq!(error.kind(), kind, "{name}: {error}");
    }
}
