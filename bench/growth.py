#!/usr/bin/env python3
"""Measures how the cost of a conversion grows, and draws it: docs/performance/*.svg from docs/performance/growth.json.

    cargo build --release -p vdisk-cli && bench/growth.py [--work DIR] [--runs N] [--draw]

Four series, each with everything else kept the same: virtual size (2,000 scattered blocks of 4 KiB), data size (one run), length of the runs
that 128 MiB of data lie in, depth of the chain over 64 MiB. Each point is the least processor time of N runs (what else the machine does only
adds to it) and their peak of resident memory (never less than this program's own, which a child inherits). The elapsed time is kept beside, and
means something on an idle machine alone. `--draw` draws the figures that were measured last.
"""
import argparse, json, math, os, random, shutil, subprocess, sys, tempfile, time

DOCS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "docs", "performance")
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


def cost(command):
    """Elapsed seconds, processor seconds and peak MiB of one run."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {child.returncode}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def best(runs, command, output):
    found = []
    for _ in range(runs):
        if os.path.exists(output):
            os.remove(output)
        found.append(cost(command))
    elapsed, processor, peaks = zip(*found)
    return dict(elapsed=round(min(elapsed), 4), cpu=round(min(processor), 4), mib=round(max(peaks), 1))


def sparse(path, size, runs):
    """A raw disk with data at these (offset, length)."""
    noise = random.Random(1).randbytes(MIB)
    with open(path, "wb") as disk:
        disk.truncate(size)
        for offset, length in runs:
            disk.seek(offset)
            for done in range(0, length, MIB):
                disk.write(noise[: min(MIB, length - done)])


def by_virtual_size(convert, disk):
    places = random.Random(2)
    for size in (GIB, 16 * GIB, 256 * GIB, TIB, 4 * TIB, 16 * TIB, 64 * TIB):
        sparse(disk, size, [(places.randrange(size // 4096) * 4096, 4096) for _ in range(2000)])
        yield size / GIB, convert("raw", disk)


def by_data_size(convert, disk):
    for size in (16 * MIB, 64 * MIB, 256 * MIB, 512 * MIB, GIB, 2 * GIB):
        sparse(disk, 4 * GIB, [(0, size)])
        yield size / MIB, convert("raw", disk)


def by_fragmentation(convert, disk):
    for run in (4 << 10, 16 << 10, 64 << 10, 256 << 10, MIB, 4 * MIB):
        sparse(disk, GIB, [(at, run) for at in range(0, GIB, 8 * run)])
        yield run / 1024, convert("raw", disk)


def by_chain_depth(convert, disk, vdisk):
    sparse(disk, GIB, [(at, MIB) for at in range(0, GIB, 16 * MIB)])
    layer = disk + ".0"
    subprocess.run([vdisk, "convert", "-f", "raw", "-O", "qcow2", disk, layer], check=True)
    for depth in range(1, 201):
        if depth > 1:
            over = f"{disk}.{depth}"
            subprocess.run([vdisk, "create", "-q", "-f", "qcow2", "-b", layer, "-F", "qcow2", over], check=True)
            layer = over
        if depth in (1, 2, 5, 10, 20, 50, 100, 200):
            yield depth, convert("qcow2", layer)


SERIES = {
    "virtual-size": (by_virtual_size, "virtual size, GiB", "raw to qcow2, 2,000 scattered blocks of 4 KiB"),
    "data-size": (by_data_size, "data, MiB", "raw to qcow2, one run of data in 4 GiB"),
    "fragmentation": (by_fragmentation, "length of a run, KiB", "raw to qcow2, 128 MiB of data in runs"),
    "chain-depth": (by_chain_depth, "layers", "chain to qcow2, 64 MiB of data in the lowest layer"),
}


def measure(a):
    found = {}
    for name, (series, _, _) in SERIES.items():
        folder = tempfile.mkdtemp(prefix="vdisk-growth-", dir=a.work)
        disk, out = os.path.join(folder, "disk"), os.path.join(folder, "out")
        convert = lambda format, path: best(a.runs, [a.vdisk, "convert", "-f", format, "-O", "qcow2", path, out], out)
        more = (a.vdisk,) if series is by_chain_depth else ()
        try:
            found[name] = [dict(x=x, **point) for x, point in series(convert, disk, *more)]
        finally:
            shutil.rmtree(folder)
        for point in found[name]:
            print(f"{name:14} {point['x']:10g} {point['cpu']:9.4f} s {point['mib']:7.1f} MiB", flush=True)
    return found


def scale(low, high, start, end):
    """Maps values to places on a logarithmic axis of whole decades."""
    low, high = math.floor(math.log10(low)), math.ceil(math.log10(high))
    high = max(high, low + 1)
    decades = [10.0**d for d in range(low, high + 1)]
    return decades, lambda v: start + (math.log10(v) - low) / (high - low) * (end - start)


def drawing(name, points):
    """One plot: processor seconds (left, line with dots) and peak MiB (right, dashed) over the quantity, all logarithmic."""
    _, label, title = SERIES[name]
    left, right, top, bottom = 64, 576, 40, 290
    xs, ys, ms = ([p[k] for p in points] for k in ("x", "cpu", "mib"))
    xticks, x = scale(min(xs), max(xs), left, right)
    yticks, y = scale(min(ys), max(ys), bottom, top)
    mticks, m = scale(min(ms), max(ms), bottom, top)
    text = lambda px, py, words, anchor="middle", colour="#333": (
        f'<text x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>')
    line = lambda px, py, qx, qy: f'<path d="M{px:.1f} {py:.1f}L{qx:.1f} {qy:.1f}" stroke="#ddd"/>'
    curve = lambda at, values, style: (
        '<path fill="none" d="M' + "L".join(f"{x(a):.1f} {at(b):.1f}" for a, b in zip(xs, values)) + f'" {style}/>')
    parts = [text(320, 22, title)]
    parts += [line(x(t), top, x(t), bottom) + text(x(t), bottom + 18, f"{t:g}") for t in xticks]
    parts += [line(left, y(t), right, y(t)) + text(left - 6, y(t) + 4, f"{t:g}", "end", "#1565c0") for t in yticks]
    parts += [text(right + 6, m(t) + 4, f"{t:g}", "start", "#c62828") for t in mticks]
    parts += [curve(y, ys, 'stroke="#1565c0" stroke-width="2"'), curve(m, ms, 'stroke="#c62828" stroke-dasharray="5 4"')]
    parts += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="#1565c0"/>' for a, b in zip(xs, ys)]
    parts += [text(320, bottom + 38, label), text(8, top - 8, "processor seconds", "start", "#1565c0"),
              text(632, top - 8, "peak MiB", "end", "#c62828")]
    head = ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 340" font-family="sans-serif" font-size="12">'
            '<rect width="640" height="340" fill="#fff"/>')
    return "\n".join([head, *parts, "</svg>\n"])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vdisk", default="target/release/vdisk")
    p.add_argument("--work", default="/dev/shm")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--draw", action="store_true")
    a = p.parse_args()
    os.makedirs(DOCS, exist_ok=True)
    figures = os.path.join(DOCS, "growth.json")
    if not a.draw:
        with open(figures, "w") as out:
            json.dump(measure(a), out, indent=1)
            out.write("\n")
    with open(figures) as measured:
        for name, points in json.load(measured).items():
            with open(os.path.join(DOCS, name + ".svg"), "w") as out:
                out.write(drawing(name, points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
