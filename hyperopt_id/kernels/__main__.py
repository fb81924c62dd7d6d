"""`python -m hyperopt_id.kernels [DEVICE...]` compiles the kernels for devices (cpu by default) ahead of their use."""

import sys
from collections.abc import Sequence

from hyperopt_id.kernels import compiler, mulo


def main(devices: Sequence[str]) -> int:
    for device in devices:
        try:
            mulo.prepare(device)
        except compiler.NoCompiler as error:
            print(f"{device}: {error}")
            return 1
        print(f"{device}: compiled, in {compiler.cache_folder()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["cpu"]))
