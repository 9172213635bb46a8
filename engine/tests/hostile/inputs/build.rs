//! Files around an input: what is fuzzed is a part of a file, and the rest is made to fit.

use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use vdisk_engine::env::CreateSpec;
use vdisk_engine::gate::DenyAll;
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{CreateEnv, Limits, Storage, ops};

use super::{Passphrase, SparseStorage, look, seal};

const LUKS2_COPY: usize = 0x4000;
const BINARY: usize = 4096;

/// A LUKS2 volume with this JSON.
pub fn luks2(json: &[u8]) -> SparseStorage {
    let mut file = vec![0; 2 * LUKS2_COPY];
    for (at, magic) in [(0, b"LUKS\xba\xbe"), (LUKS2_COPY, b"SKUL\xba\xbe")] {
        let head = &mut file[at..at + LUKS2_COPY];
        head[..6].copy_from_slice(magic);
        head[7] = 2;
        head[8..16].copy_from_slice(&(LUKS2_COPY as u64).to_be_bytes());
        head[23] = 1;
        head[72..78].copy_from_slice(b"sha256");
        head[168..204].copy_from_slice(b"6f9a1b6e-0000-4000-8000-000000000001");
        head[256..264].copy_from_slice(&(at as u64).to_be_bytes());
        let len = json.len().min(LUKS2_COPY - BINARY);
        head[BINARY..BINARY + len].copy_from_slice(&json[..len]);
    }
    let file = SparseStorage::of(&file);
    let _ = file.set_len(1 << 20);
    seal::luks2(&file);
    file
}

const TRAILER: usize = 512;

/// A disk image with this property list behind some bytes of data.
pub fn dmg_with_plist(xml: &[u8]) -> SparseStorage {
    SparseStorage::of(&dmg(&[0x55; 512], xml, 2048))
}

/// A disk image of so many sectors: data, a property list, and the trailer behind them.
pub fn dmg(data: &[u8], xml: &[u8], sectors: u64) -> Vec<u8> {
    let mut file = [data, xml].concat();
    let mut koly = [0; TRAILER];
    koly[..4].copy_from_slice(b"koly");
    let mut number = |at: usize, value: u64| koly[at..at + 8].copy_from_slice(&value.to_be_bytes());
    number(4, 4 << 32 | 512);
    number(32, data.len() as u64);
    number(216, data.len() as u64);
    number(224, xml.len() as u64);
    number(492, sectors);
    file.extend(koly);
    file
}

/// A disk image with the block tables and data of an input: how many bytes of table (2 bytes), the table, the data.
pub fn dmg_with_tables(input: &[u8]) -> SparseStorage {
    let (head, rest) = input.split_at(input.len().min(2));
    let len = head.iter().fold(0, |n, b| n << 8 | usize::from(*b));
    let (table, data) = rest.split_at(len.min(rest.len()));
    let text = base64::engine::general_purpose::STANDARD.encode(table);
    let xml = format!(
        "<plist><dict><key>resource-fork</key><dict><key>blkx</key><array><dict><key>Data</key><data>{text}</data></dict></array></dict></dict></plist>"
    );
    SparseStorage::of(&dmg(data, xml.as_bytes(), 2048))
}

/// Surroundings in which new images always come out alike.
pub fn create_env(limits: &Limits) -> CreateEnv<'_> {
    CreateEnv {
        gate: &DenyAll,
        limits,
        secrets: &Passphrase,
        random: &|buf| buf.fill(0x5a),
        now: 1_700_000_000,
    }
}

/// A new image.
pub fn created(format: &str, virtual_size: u64, options: Options) -> SparseStorage {
    let storage = Arc::new(MemoryStorage::empty());
    let limits = Limits::default();
    let env = create_env(&limits);
    let spec = CreateSpec {
        virtual_size,
        options,
        backing: None,
    };
    if let Err(error) = ops::create::create(storage.clone(), format, &spec, &env) {
        panic!("cannot create an image: {error:?}");
    }
    let sparse = SparseStorage::default();
    let bytes = storage.contents();
    let _ = sparse.set_len(bytes.len() as u64);
    for (n, page) in bytes
        .chunks(4096)
        .enumerate()
        .filter(|(_, p)| p.iter().any(|b| *b != 0))
    {
        let _ = sparse.write_at(n as u64 * 4096, page);
    }
    sparse
}

fn new_vhdx() -> &'static SparseStorage {
    static NEW: OnceLock<SparseStorage> = OnceLock::new();
    NEW.get_or_init(|| created("vhdx", 4 << 20, Options::new()))
}

/// A LUKS volume of this version that the passphrase opens, cheaply.
pub fn new_luks(version: u8) -> &'static SparseStorage {
    static NEW: [OnceLock<SparseStorage>; 2] = [const { OnceLock::new() }; 2];
    let options = || {
        let options = Options::new().with("key-secret", "key").with("iterations", "1000");
        match version {
            1 => options,
            _ => options.with("version", "2").with("pbkdf", "pbkdf2"),
        }
    };
    let slot = &NEW[usize::from(version != 1)];
    slot.get_or_init(|| created("luks", 64 << 10, options()))
}

/// A VHDX image whose log is in use and holds an input: 4 KiB pages that lost the zeroes at their ends, each with its length (2 bytes)
/// before it.
pub fn vhdx_log(mut input: &[u8]) {
    const GUID: [u8; 16] = [7; 16];
    let file = new_vhdx().clone();
    for header in [64 << 10, 128 << 10] {
        let _ = file.write_at(header + 48, &GUID);
    }
    let mut offset = [0; 8];
    let _ = file.read_at((64 << 10) + 72, &mut offset);
    let mut at = u64::from_le_bytes(offset);
    while let Some((len, rest)) = input.split_first_chunk() {
        let (page, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(4096).min(rest.len()));
        let _ = file.write_at(at, page);
        if page.starts_with(b"loge") {
            let _ = file.write_at(at + 32, &GUID);
        }
        (at, input) = (at + 4096, rest);
    }
    seal::vhdx(&file);
    look::look("vhdx", Arc::new(file));
}
