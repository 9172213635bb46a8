//! VDI of the VirtualBox releases before the present layout: shorter headers, other texts, map and data where they fit, blocks with bytes before
//! them. Numbers: VirtualBox's VDICore.h, as its documentation of the format tells them.

use super::support::{File, noise, qemu_agrees, shows, takes_writes};

const MIB: usize = 1 << 20;

struct Layout {
    text: &'static str,
    header: u32,
    map: usize,
    data: usize,
    block: usize,
    extra: usize,
    cylinders: u32,
}

/// Three blocks: the first is third in the file, the second zeroed, the third first; the second place is free.
fn image(layout: &Layout) -> (Vec<u8>, Vec<u8>) {
    let mut file = File::default();
    let size = 3 * layout.block - 512;
    file.put(0, layout.text.as_bytes());
    for (at, value) in [
        (64, 0xbeda_107f),
        (68, 0x0001_0001),
        (72, layout.header),
        (76, 1),
        (340, layout.map as u32),
        (344, layout.data as u32),
        (348, layout.cylinders),
        (352, 16),
        (356, 63),
        (360, 512),
        (376, layout.block as u32),
        (380, layout.extra as u32),
        (384, 3),
        (388, 2),
    ] {
        file.le32(at, value);
    }
    file.le64(368, size as u64);
    file.put(392, &[7; 16]);
    file.put(408, &[8; 16]);
    for (number, entry) in [1, u32::MAX - 1, 0].into_iter().enumerate() {
        file.le32(layout.map + 4 * number, entry);
    }
    let (a, b) = (noise(layout.block, 1), noise(layout.block, 2));
    let stride = layout.block + layout.extra;
    file.put(layout.data + layout.extra, &b);
    file.put(layout.data + stride + layout.extra, &a);
    let mut guest = [a, vec![0; layout.block], b].concat();
    guest.truncate(size);
    (file.0, guest)
}

#[test]
fn headers_of_other_lengths_and_places_are_read() {
    let present = Layout {
        text: "<<< Sun xVM VirtualBox Disk Image >>>\n",
        header: 400,
        map: 512,
        data: 1024,
        block: MIB,
        extra: 0,
        cylinders: 0,
    };
    let layouts = [
        Layout {
            text: "<<< innotek VirtualBox Disk Image >>>\n",
            header: 384,
            cylinders: 1,
            ..present
        },
        Layout {
            text: "<<< InnoTek VirtualBox Disk Image >>>\n",
            header: 384,
            map: 1024,
            data: 2048,
            ..present
        },
        Layout {
            text: "",
            header: 384,
            map: 4096,
            data: 8192,
            ..present
        },
        Layout { header: 440, ..present },
        Layout {
            map: MIB,
            data: 2 * MIB,
            ..present
        },
    ];
    for layout in &layouts {
        let (file, guest) = image(layout);
        shows("vdi", &file, &guest);
        qemu_agrees("vdi", &file, &guest);
        let changed = takes_writes("vdi", &file, &guest);
        assert_eq!(changed[..76], file[..76], "text, version and length of the header stay");
    }
}

#[test]
fn bytes_before_the_blocks_and_small_blocks_are_read() {
    for (block, extra) in [(MIB, 512), (64 << 10, 4096), (4096, 0)] {
        let layout = Layout {
            text: "<<< Oracle VM VirtualBox Disk Image >>>\n",
            header: 400,
            map: 512,
            data: 1024,
            block,
            extra,
            cylinders: 0,
        };
        let (file, guest) = image(&layout);
        shows("vdi", &file, &guest);
        takes_writes("vdi", &file, &guest);
    }
}
