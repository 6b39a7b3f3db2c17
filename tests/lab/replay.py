#!/usr/bin/env python3
"""What a disk holds after a power cut: plays the log of QEMU's blklogwrites driver onto an image.

replay.py LOG flushes FROM TO        the offsets in the log behind each flush between two offsets, one a line
replay.py LOG play IMAGE FROM TO     writes what the log has between two offsets into the image

The format is that of the kernel's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst; struct
log_write_super and log_write_entry in drivers/md/dm-log-writes.c): a superblock in the first sector, then an entry in
a sector of its own before the data that it is for.
"""

import os
import struct
import sys

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD = 1, 2, 4


def entries(log, start, end):
    """Each entry between two offsets: (offset behind it, first sector, sectors, flags, offset of the data)."""
    log.seek(0)
    magic, version, _, sector = struct.unpack("<QQQI", log.read(28))
    if magic != MAGIC or version != 1:
        sys.exit("this is no log of writes")
    at = sector
    size = os.fstat(log.fileno()).st_size
    while at + sector <= min(end, size):
        log.seek(at)
        first, count, flags, _ = struct.unpack("<QQQQ", log.read(32))
        data = at + sector
        at = data if flags & DISCARD else data + count * sector
        if at > size:
            return
        if at > start:
            yield at, first * sector, count * sector, flags, data


def main():
    path, verb, *rest = sys.argv[1:]
    with open(path, "rb") as log:
        if verb == "flushes":
            start, end = map(int, rest)
            for behind, _, _, flags, _ in entries(log, start, end):
                if flags & (FLUSH | FUA):
                    print(behind)
        elif verb == "play":
            start, end = map(int, rest[1:])
            with open(rest[0], "r+b") as image:
                for _, to, length, flags, data in entries(log, start, end):
                    image.seek(to)
                    if flags & DISCARD:
                        # What was thrown away reads as anything; zeroes are what the disk gives.
                        while length > 0:
                            image.write(bytes(min(length, 1 << 20)))
                            length -= 1 << 20
                    elif length:
                        log.seek(data)
                        image.write(log.read(length))
        else:
            sys.exit(__doc__)


main()
