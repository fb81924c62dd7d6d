r"""CRC-32C of many parts of some data at once, as TensorBoard writes it behind what it protects.

With every byte b, the state c of a part becomes

\[t[(c \oplus b) \bmod 256] \oplus \lfloor c / 256 \rfloor ,\]

with a table t of 256 numbers. All parts go on together, so that the loop is as long as the longest ones; the last few
go on alone. What is written is the checksum rotated by 15 bits, plus a constant ("masked").
"""

import numpy as np
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import CRC_TABLE, crc_update

FEW = 64  # parts that are faster one by one
TABLE, ONES, MASK = np.array(CRC_TABLE, np.uint32), np.uint32(0xFFFFFFFF), np.uint32(0xA282EAD8)


def masked_checksums(data: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The checksums uint32 [N] of `data[start : start + length]`."""
    octets, order = np.frombuffer(data, np.uint8), np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    reach = int(lengths[FEW - 1]) if len(lengths) >= FEW else 0  # until here, at least so many go on
    state = np.full(len(order), ONES)
    going_on = np.searchsorted(-lengths, -np.arange(reach), side="left")
    for position, count in enumerate(going_on.tolist()):
        index = (state[:count] ^ octets[starts[:count] + position]) & np.uint32(0xFF)
        state[:count] = TABLE[index] ^ (state[:count] >> np.uint32(8))
    found = state ^ ONES
    for part in np.flatnonzero(lengths > reach).tolist():
        rest = data[starts[part] + reach : starts[part] + lengths[part]]
        found[part] = crc_update(int(found[part]), rest)
    masked = np.empty_like(found)
    masked[order] = (found >> np.uint32(15) | found << np.uint32(17)) + MASK
    return masked
