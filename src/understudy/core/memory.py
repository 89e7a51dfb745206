"""Memory that is freed stays with the process, ready for the next tensor of its size.

A training step makes the same few large tensors every time. The C library gives each back to the system when it is
freed, and takes new pages for the next, which the system clears first: a tenth of a step at 512 x 8192 latents.
"""

import ctypes
import os
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Names of glibc's malloc.h."""
AHEAD = 64 << 20
"""Bytes taken from the system at a time."""
OWN = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Torch puts large tensors on huge pages. Read when the first is made."""
SAME = OWN | {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62), "MALLOC_TOP_PAD_": str(AHEAD)}
"""What starts another process with the settings of `keep_freed`."""


def keep_freed() -> None:
    """For this whole process, best before torch is imported: freed memory is used again and given back only at the end,
    and large tensors lie on huge pages. What the process holds at most grows little; what it holds in between does.

    Nothing is changed where the environment already says how to allocate (`MALLOC_MMAP_MAX_`, `GLIBC_TUNABLES`), and
    the C library's part only where that is glibc.
    """
    for name, value in OWN.items():
        os.environ.setdefault(name, value)
    if "MALLOC_MMAP_MAX_" in os.environ or "GLIBC_TUNABLES" in os.environ:
        return
    if (glibc := _glibc()) is not None:
        for name, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, AHEAD)):
            glibc.mallopt(name, value)


def give_back() -> None:
    """Give what is free back to the system now, so that what is held says what is needed."""
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
