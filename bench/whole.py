#!/usr/bin/env python3
"""Measures the whole: `vdisk` with one and two workers, and the same conversion through `vdiskd` over HTTP; prints a table of ratios.

    cargo build --release -p vdisk-cli -p vdisk-api && bench/whole.py [--work DIR] [--runs N] [--only WORD]

The input is 1 GiB of bytes that pack to about a half. Times are medians of N runs on an otherwise idle machine; the work folder (3 GiB)
should be in memory, so that the programs are measured and not a disk. Exit status 1 when a goal is missed.
"""
import argparse, http.client, json, os, random, re, shutil, statistics, subprocess, sys, tempfile, threading, time

GIB = 1 << 30


def make_input(path):
    """Bytes of 16 values in no order."""
    source = random.Random(1)
    table = bytes(b" etaoinshrdlu\0\n/"[i % 16] for i in range(256))
    with open(path, "wb") as out:
        for _ in range(GIB >> 20):
            out.write(source.randbytes(1 << 20).translate(table))


def seconds(command, output):
    if os.path.exists(output):
        os.remove(output)
    start = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - start


class Service:
    """A `vdiskd` of its own, on a free port of the loopback."""

    def __init__(self, program, folder):
        with open(folder + ".log", "w") as log:
            self.process = subprocess.Popen(
                [program, "serve", "--data-dir", folder, "--listen", "127.0.0.1:0", "--log", "info"],
                stdout=log, stderr=subprocess.STDOUT)
        self.local = threading.local()
        self.port = self.find_port(folder + ".log")

    def find_port(self, log):
        for _ in range(300):
            for line in open(log):
                if found := re.search(r"127\.0\.0\.1:(\d+)", line):
                    return int(found[1])
            time.sleep(0.05)
        raise RuntimeError("vdiskd does not say where it listens: " + open(log).read()[-500:])

    def call(self, method, path, body=None):
        """One request on this thread's connection; gives the decoded answer."""
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {}
        if isinstance(body, dict):
            body, headers = json.dumps(body), {"Content-Type": "application/json"}
        elif body is not None:
            headers = {"Content-Type": "application/octet-stream"}
        self.local.connection.request(method, path, body, headers)
        answer = self.local.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]}")
        return json.loads(text) if text else None

    def upload(self, path):
        image = self.call("POST", "/v1/images/import", {"name": "disk", "format": "raw", "source": {"upload": True}})
        with open(path, "rb") as data:
            self.call("PUT", image["upload_url"], data)
        return image["id"]

    def convert(self, image, name, format):
        return self.call("POST", f"/v1/images/{image}/convert", {"name": name, "format": format})["id"]

    def wait(self, job):
        while True:
            found = self.call("GET", f"/v1/jobs/{job}?wait=30s")
            if found["state"] == "succeeded":
                return found
            if found["state"] in ("failed", "cancelled"):
                raise RuntimeError(json.dumps(found))

    def stop(self):
        self.process.terminate()
        self.process.wait()


def through_the_service(service, image, number):
    start = time.monotonic()
    done = service.wait(service.convert(image, f"copy{number}", "qcow2"))
    took = time.monotonic() - start
    service.call("DELETE", f"/v1/images/{done['result']['image_id']}")
    return took


def tiny_jobs(service, count, clients):
    """Conversions of an empty image of 1 MiB that are begun and waited for by several clients: how many end in a second."""
    image = service.call("POST", "/v1/images", {"name": "tiny", "format": "qcow2", "virtual_size": 1 << 20})["id"]
    failed = []

    def client(first):
        try:
            jobs = [service.convert(image, f"tiny{n}", "qcow2") for n in range(first, count, clients)]
            for job in jobs:
                service.wait(job)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return count / (time.monotonic() - start)


def show(name, value, goal, better, what):
    met = value <= goal if better == "below" else value >= goal
    print(f"{name:34} {value:8.2f}  {better} {goal:6.2f}  {'ok' if met else 'MISSED'}  {what}", flush=True)
    return met


def scaling(a, disk, out):
    """How much faster two workers are than one, turn by turn."""
    met = True
    packed = os.path.join(a.work, "packed")
    for codec in ("zlib", "zstd"):
        pack = [a.vdisk, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={codec}"]
        seconds([*pack, disk, packed], packed)
        for name, command, source in (
            (f"compress {codec}", pack, disk),
            (f"decompress {codec}", [a.vdisk, "convert", "-f", "qcow2", "-O", "raw"], packed),
        ):
            pairs = [[seconds([*command, "-m", m, source, out], out) for m in ("1", "2")] for _ in range(a.runs)]
            one, two = (statistics.median(times) for times in zip(*pairs))
            gain = statistics.median(x / y for x, y in pairs)
            met &= show(f"{name}, 2 workers to 1", gain, 1.7, "above", f"{one:.3f} s and {two:.3f} s")
    os.remove(packed)
    return met


def service_cost(a, disk, out):
    """The same conversion by the program and by the service, turn by turn; then many small jobs."""
    service = Service(a.vdiskd, os.path.join(a.work, "service"))
    try:
        image = service.upload(disk)
        pairs = []
        for number in range(a.runs + 1):
            engine = seconds([a.vdisk, "convert", "-m", "2", "-f", "raw", "-O", "qcow2", disk, out], out)
            os.remove(out)
            pairs.append((through_the_service(service, image, number), engine))
        pairs = pairs[1:]
        by_service, by_engine = (statistics.median(times) for times in zip(*pairs))
        ratio = statistics.median(x / y for x, y in pairs)
        met = show("convert 1 GiB, service to engine", ratio, 1.05, "below", f"{by_service:.3f} s and {by_engine:.3f} s")
        rate = tiny_jobs(service, 1000, 8)
        return show("tiny jobs a second", rate, 200, "above", "1,000 conversions of 1 MiB by 8 clients") and met
    finally:
        service.stop()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vdisk", default="target/release/vdisk")
    p.add_argument("--vdiskd", default="target/release/vdiskd")
    p.add_argument("--work", default="/dev/shm")
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--only", choices=("scaling", "service"))
    a = p.parse_args()
    a.work = tempfile.mkdtemp(prefix="vdisk-whole-", dir=a.work)
    disk, out = os.path.join(a.work, "disk"), os.path.join(a.work, "out")
    try:
        make_input(disk)
        print(f"{'case':34} {'value':>8}  {'goal':>12}")
        parts = {"scaling": scaling, "service": service_cost}
        met = [part(a, disk, out) for name, part in parts.items() if a.only in (None, name)]
        return 0 if all(met) else 1
    finally:
        shutil.rmtree(a.work)


if __name__ == "__main__":
    sys.exit(main())
