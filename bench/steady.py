#!/usr/bin/env python3
"""Keeps one page of every 2 MiB of free memory in use while measurements run, on virtual machines whose host takes larger free blocks back.

    bench/steady.py GIB [--folder DIR]

Fills a file of GIB in DIR (a tmpfs; default /dev/shm), so that the host gives the memory, and frees all of it but these pages. Ends, and
frees them, at the end of its input or Ctrl-C. Leave room: the file takes GIB for a moment. Best begun before the inputs of the measurements are
made, with nearly all of the memory.
"""
import argparse, ctypes, sys, tempfile

PAGE, BLOCK = 4096, 2 << 20


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("gib", type=int)
    p.add_argument("--folder", default="/dev/shm")
    a = p.parse_args()
    # Without a name: it goes with this program.
    with tempfile.TemporaryFile(dir=a.folder, buffering=0) as file:
        for _ in range((a.gib << 30) // BLOCK):
            file.write(b"\1" * BLOCK)
        punch(file.fileno(), a.gib << 30)
        print("ready", flush=True)
        try:
            sys.stdin.read()
        except KeyboardInterrupt:
            pass


def punch(fd, length):
    """Frees all but the first page of each block."""
    keep_size, punch_hole = 1, 2
    libc = ctypes.CDLL(None, use_errno=True)
    for at in range(0, length, BLOCK):
        if libc.fallocate(fd, keep_size | punch_hole, ctypes.c_long(at + PAGE), ctypes.c_long(BLOCK - PAGE)):
            raise OSError(ctypes.get_errno(), "cannot free parts of the file")


if __name__ == "__main__":
    main()
