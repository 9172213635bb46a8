//! An image that is made anew: what stays.

use std::sync::Arc;

use super::tests::{GRAIN, created, open_on, stream_options};
use crate::image::NothingBelow;
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{ErrorKind, Image, StorageRef};

fn on(bytes: Vec<u8>) -> (StorageRef, Box<dyn Image>) {
    let storage: StorageRef = Arc::new(MemoryStorage::new("d.vmdk", bytes));
    let image = open_on(storage.clone()).unwrap();
    (storage, image)
}

#[test]
fn an_image_says_what_it_was_made_with() {
    let all = stream_options()
        .with("adapter_type", "lsilogic")
        .with("hwversion", "11")
        .with("toolsversion", "12352")
        .with("zeroed_grain", "on");
    for options in [all, Options::new().with("subformat", "monolithicSparse")] {
        let (_, image) = on(created(4 * GRAIN, options.clone()));
        let said = image.made_with();
        for (name, value) in options.iter() {
            assert_eq!(said.get(name), Some(value), "{name}");
        }
        let (_, again) = on(created(4 * GRAIN, said.clone()));
        assert_eq!(again.made_with(), said);
    }
}

#[test]
fn the_adapter_is_known_in_any_capitals() {
    let mut bytes = created(4 * GRAIN, stream_options().with("adapter_type", "lsilogic"));
    let at = bytes.windows(8).position(|part| part == b"lsilogic").unwrap();
    bytes[at..at + 8].copy_from_slice(b"LSILogic");
    assert_eq!(on(bytes).1.made_with().get("adapter_type"), Some("lsilogic"));
}

#[test]
fn compressed_data_is_for_streams_alone() {
    let (_, stream) = on(created(4 * GRAIN, stream_options()));
    stream.check_compressible().unwrap();
    let (_, sparse) = on(created(4 * GRAIN, Options::new()));
    assert_eq!(sparse.check_compressible().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn an_image_that_stands_in_for_another_has_its_cid_whatever_is_written_into_it() {
    let (_, old) = on(created(4 * GRAIN, Options::new()));
    old.write(0, &[1; 512], &NothingBelow).unwrap();
    let id = old.layer_id();
    for options in [stream_options(), Options::new()] {
        let (storage, new) = on(created(4 * GRAIN, options));
        assert_ne!(new.layer_id(), id);
        new.stand_in_for(old.as_ref()).unwrap();
        new.write(0, &[1; GRAIN as usize], &NothingBelow).unwrap();
        new.close().unwrap();
        assert_eq!(open_on(storage).unwrap().layer_id(), id);
    }
}
