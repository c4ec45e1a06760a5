"""Memory that is let go of goes back to the system at once."""

import ctypes
import sys

MMAP_THRESHOLD = -3
"""What glibc's `mallopt` calls the size from which a block has pages of its own."""


def return_memory_at_once(least: int = 2**20) -> None:
    """Have every block of so many bytes given back when it is freed, on Linux with glibc; elsewhere nothing changes.

    Left alone, glibc raises that size to 32 MB as it goes, and keeps freed weights and activations of networks in pieces
    too small for the next ones: 300 MB and more beside a CLIP of 600.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, least)
