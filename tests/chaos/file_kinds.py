"""What a kind of file is, for the trials of `chaos_files`."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Kind(NamedTuple):
    """`make(folder)` writes right files and returns the one to be damaged; `read(folder)` reads them as the library
    does, and raises WrongNumbersError if they hold something else; `variants`: damages of this kind alone."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    variants: tuple[Callable[[Path, random.Random], str], ...] = ()
    weight: int = 1
