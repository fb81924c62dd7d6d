"""Put data sets into the data folder, so that later runs need no network.

python scripts/download_data.py                   every set that can be downloaded
python scripts/download_data.py fashion_mnist     only that one
python scripts/download_data.py uci_boston        says what is needed where, if it is not there
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works from a checkout that is not installed

from hyperopt_id.tasks import cifar10, fashion_mnist, penn_treebank, uci

DOWNLOADS: dict[str, Callable[[Path], Path]] = {
    "fashion_mnist": fashion_mnist.locate,
    "penn_treebank": penn_treebank.locate,
    "cifar10": cifar10.locate,
}
BY_HAND = {f"uci_{name}": partial(uci.locate, source=source) for name, source in uci.SOURCES.items()}
LOCATE = DOWNLOADS | BY_HAND


def main() -> int:
    """Exit status 0 when every named data set is in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {', '.join(LOCATE)}")
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path(os.environ.get("HYPEROPT_ID_DATA") or "data"),
        help="the data folder (default: the environment variable HYPEROPT_ID_DATA, else ./data)",
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in LOCATE]
    if unknown:
        parser.error(f"unknown data set {', '.join(unknown)}: use {', '.join(LOCATE)}")
    failures = 0
    for name in arguments.names or DOWNLOADS:
        try:
            print(f"{name}: {LOCATE[name](arguments.data_root)}")
        except ValueError as error:
            failures += 1
            print(f"{name}: {error}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
