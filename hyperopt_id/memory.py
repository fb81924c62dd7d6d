"""The memory of this machine, asked for before it is taken.

A request that cannot be met is refused by name while nothing has been allocated: Linux grants memory that it does not
have and ends the process when it is used. What is compared is all that the machine has, not what is free right now, so
that the answer is the same under any load.
"""

import os
from pathlib import Path

import torch

GIBIBYTE = 2**30
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def total(device: torch.device | None = None) -> int:
    """Bytes of memory that the machine, or the container that this runs in, or a CUDA device has."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in LIMITS:
        try:
            known.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # not in a container, or one without a limit ("max")
            continue
    return min(known)


def require(needed: float, what: str, cure: str, device: torch.device | None = None) -> None:
    """Raise ValueError if `what` needs more bytes than there are; `cure` says what to change."""
    have = total(device)
    if needed > have:
        sizes = f"about {needed / GIBIBYTE:.3g} GiB, this {'device' if device and device.type == 'cuda' else 'machine'}"
        raise ValueError(f"{what} needs {sizes} has {have / GIBIBYTE:.3g}; {cure}")
