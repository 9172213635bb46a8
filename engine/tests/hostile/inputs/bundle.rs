//! A Parallels bundle whose descriptor is an input. It may name `p` (a plain file), `h` and `i` (expandable ones); nothing else is there.

use std::sync::{Arc, OnceLock};

use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::image::Repair;
use vdisk_engine::options::Options;
use vdisk_engine::{Chain, Control, Error, OpenEnv, Result, StorageRef, ops};

use super::{SparseStorage, build, limits, look::typed};

/// Bytes of each file's guest.
const SIZE: u64 = 64 << 10;

/// The files beside the descriptor.
struct Beside;

impl Gate for Beside {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let name = reference.name;
        assert!(
            !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']),
            "{name:?} is asked for, which is not in the bundle's folder"
        );
        let file = match name {
            "p" => SparseStorage::of(&[1; SIZE as usize]),
            "h" | "i" => expandable().clone(),
            _ => return Err(Error::denied(format!("{name:?}"))),
        };
        Ok(Node::new(Arc::new(file), "raw"))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied(format!("{:?}", reference.name)))
    }
}

/// An expandable file whose first cluster is written.
fn expandable() -> &'static SparseStorage {
    static MADE: OnceLock<SparseStorage> = OnceLock::new();
    MADE.get_or_init(|| match make() {
        Ok(file) => file,
        Err(error) => panic!("cannot write to a new image: {error:?}"),
    })
}

fn make() -> Result<SparseStorage> {
    let options = Options::new().with("cluster_size", "4096");
    let file = Arc::new(build::created("parallels", SIZE, options));
    let limits = limits();
    let chain = Chain::open(
        Node::new(file.clone(), "parallels"),
        &OpenEnv::closed(&limits).writable(),
    )?;
    chain.write(0, &[2; 4096])?;
    chain.top().close()?;
    Ok(file.as_ref().clone())
}

/// Looks at the bundle of this descriptor.
pub fn look(xml: &[u8]) {
    let limits = limits();
    let env = OpenEnv::closed(&limits).with_gate(&Beside);
    let main: StorageRef = Arc::new(SparseStorage::of(xml));
    let open = |env: &OpenEnv<'_>| Chain::open(Node::new(main.clone(), "parallels"), env);
    let Some(chain) = typed("open", open(&env)) else { return };
    typed("info", chain.top().info());
    typed("check", chain.top().check(Repair::No, &Control::default()));
    let map = ops::map::map(&chain, 0, chain.virtual_size());
    typed("map", map.take(100).collect::<Result<Vec<_>>>());
    let mut buf = vec![0; chain.virtual_size().min(200 << 10) as usize];
    typed("read", chain.read(0, &mut buf));
    assert!(buf.iter().all(|b| *b <= 2), "bytes that nobody wrote");
    drop(open(&env.writable()));
}
