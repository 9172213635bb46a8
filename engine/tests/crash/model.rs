//! What a guest may see after a power cut: what was flushed, or anything written since.

use std::collections::BTreeMap;

use vdisk_engine::image::ExtentKind;
use vdisk_engine::{Chain, Image, Result};

use crate::lab::Lab;

const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Event {
    /// Sectors get a value.
    Set(std::ops::Range<usize>, u8),
    All(Vec<u8>),
    /// Everything before is stable.
    Flushed,
    Snapshot(String),
    Forgotten(String),
}

/// Values of whole sectors over time, in steps of the lab's log.
pub struct Model<'a> {
    lab: &'a Lab,
    initial: Vec<u8>,
    now: Vec<u8>,
    events: Vec<(usize, Event)>,
    /// What each snapshot holds.
    snapshots: BTreeMap<String, Vec<u8>>,
    /// Events before the call that runs now.
    settled: usize,
}

impl<'a> Model<'a> {
    /// Begins with what a chain shows.
    pub fn new(lab: &'a Lab, chain: &Chain, most: u64) -> Self {
        let mut initial: Vec<u8> = contents(chain).unwrap().chunks(SECTOR).map(|s| s[0]).collect();
        initial.resize(most as usize / SECTOR, 0);
        Self {
            lab,
            now: initial.clone(),
            initial,
            events: Vec::new(),
            snapshots: BTreeMap::new(),
            settled: 0,
        }
    }
    fn note(&mut self, event: Event) {
        match &event {
            Event::Set(range, value) => self.now[range.clone()].fill(*value),
            Event::All(values) => self.now.clone_from(values),
            _ => {}
        }
        self.events.push((self.lab.changes(), event));
    }
    fn set(&mut self, at: u64, len: u64, value: u8) {
        self.settled = self.events.len();
        let end = (at + len) as usize;
        self.note(Event::Set(at as usize / SECTOR..end.div_ceil(SECTOR), value));
    }
    /// Makes the next change one whose outcome is open until it returns.
    pub fn write(&mut self, chain: &Chain, at: u64, len: u64, value: u8) -> Result<()> {
        self.set(at, len, value);
        chain.write(at, &vec![value; len as usize])
    }
    pub fn zero(&mut self, chain: &Chain, at: u64, len: u64, unmap: bool) -> Result<()> {
        self.set(at, len, 0);
        chain.write_zeroes(at, len, unmap)
    }
    pub fn discard(&mut self, chain: &Chain, at: u64, len: u64) -> Result<()> {
        self.set(at, len, 0);
        chain.top().discard(at, len)
    }
    pub fn compressed(&mut self, chain: &Chain, at: u64, len: u64, value: u8) -> Result<()> {
        self.set(at, len, value);
        chain.top().write_compressed(at, &vec![value; len as usize])
    }
    /// What lies past a new, smaller end is gone: growing shows zeroes.
    pub fn shrunk(&mut self, to: u64) {
        let end = self.now.len() * SECTOR;
        self.note(Event::Set(to as usize / SECTOR..end / SECTOR, 0));
    }
    pub fn flush(&mut self, chain: &Chain) -> Result<()> {
        self.settled = self.events.len();
        chain.top().flush()?;
        self.flushed();
        Ok(())
    }
    pub fn flushed(&mut self) {
        self.note(Event::Flushed);
    }
    pub fn snapshot(&mut self, chain: &Chain, name: &str) -> Result<()> {
        self.settled = self.events.len();
        self.snapshots.insert(name.to_owned(), self.now.clone());
        chain.top().snapshots().unwrap().create(name, (0, 0))?;
        self.note(Event::Snapshot(name.to_owned()));
        Ok(())
    }
    pub fn apply(&mut self, chain: &Chain, name: &str) -> Result<()> {
        self.settled = self.events.len();
        let values = self.snapshots[name].clone();
        self.note(Event::All(values));
        chain.top().snapshots().unwrap().apply(name)
    }
    pub fn forget(&mut self, chain: &Chain, name: &str) -> Result<()> {
        self.settled = self.events.len();
        self.note(Event::Forgotten(name.to_owned()));
        chain.top().snapshots().unwrap().delete(name)
    }
    /// After a call failed and the image could be closed: every call before it is done, that one may or may not be.
    pub fn closed_after_failure(&mut self) {
        let open = self.events.split_off(self.settled.min(self.events.len()));
        let at = self.lab.changes();
        self.events.push((at, Event::Flushed));
        self.events.extend(open.into_iter().map(|(_, event)| (at, event)));
    }

    /// Fails unless the image may look like this when the first `changes` changes were asked for.
    pub fn check(&self, chain: &Chain, changes: usize, what: &str) {
        let bytes = contents(chain).unwrap_or_else(|e| panic!("{what}: cannot be read: {e:?}"));
        let (allowed, snapshots) = self.allowed(changes);
        for (sector, bytes) in bytes.chunks(SECTOR).enumerate().take(allowed.len()) {
            let value = bytes[0];
            assert!(bytes.iter().all(|b| *b == value), "{what}: sector {sector} is torn");
            let allowed = &allowed[sector];
            assert!(
                allowed.contains(&value),
                "{what}: sector {sector} is {value}, not of {allowed:?}"
            );
        }
        let Some(list) = chain.top().snapshots() else { return };
        let there = list.list().unwrap();
        for snapshot in &there {
            let image = list
                .open(&snapshot.id)
                .unwrap_or_else(|e| panic!("{what}: snapshot: {e:?}"));
            let bytes = over_base(&*image, chain).unwrap_or_else(|e| panic!("{what}: snapshot: {e:?}"));
            let expected = &self.snapshots[&snapshot.name];
            let same = bytes.iter().enumerate().all(|(i, b)| *b == expected[i / SECTOR]);
            assert!(same, "{what}: snapshot {} shows other bytes", snapshot.name);
        }
        for name in snapshots {
            assert!(there.iter().any(|s| s.name == name), "{what}: snapshot {name} is lost");
        }
    }

    /// Values that each sector may have, and snapshots that must be there.
    fn allowed(&self, changes: usize) -> (Vec<Vec<u8>>, Vec<String>) {
        let mut now = self.initial.clone();
        let mut allowed: Vec<Vec<u8>> = now.iter().map(|v| vec![*v]).collect();
        let mut snapshots = Vec::new();
        for (at, event) in self.events.iter().filter(|(at, _)| *at <= changes) {
            match event {
                Event::Set(range, value) => {
                    now[range.clone()].fill(*value);
                    allowed[range.clone()].iter_mut().for_each(|list| list.push(*value));
                }
                Event::All(values) => {
                    now.clone_from(values);
                    allowed.iter_mut().zip(values).for_each(|(list, v)| list.push(*v));
                }
                Event::Flushed => allowed.iter_mut().zip(&now).for_each(|(list, v)| *list = vec![*v]),
                Event::Snapshot(name) => snapshots.push(name.clone()),
                Event::Forgotten(name) if *at < changes => snapshots.retain(|s| s != name),
                Event::Forgotten(_) => {}
            }
        }
        (allowed, snapshots)
    }
}

/// What a snapshot of the top shows, with the layer below where it has nothing.
fn over_base(snapshot: &dyn Image, chain: &Chain) -> Result<Vec<u8>> {
    let mut bytes = vec![0; snapshot.virtual_size() as usize];
    snapshot.read(0, &mut bytes)?;
    let Some(base) = chain.layers().get(1) else {
        return Ok(bytes);
    };
    let end = bytes.len().min(base.virtual_size() as usize);
    let mut at = 0;
    while at < end {
        let extent = snapshot.extent(at as u64, (end - at) as u64)?;
        let next = at + extent.len as usize;
        if extent.kind == ExtentKind::Unallocated {
            base.read(at as u64, &mut bytes[at..next])?;
        }
        at = next;
    }
    Ok(bytes)
}

fn contents(chain: &Chain) -> Result<Vec<u8>> {
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read(0, &mut bytes)?;
    Ok(bytes)
}
