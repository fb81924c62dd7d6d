"""`python -m hyperopt_id.compilation_worker < JOB`: compile graphs into libraries, in a process of its own.

JOB is JSON: {"threads", "deterministic", "options", "nice", "alive", "programs": [[path, text of the graph], ...]}. A
graph that cannot be compiled leaves PATH with the ending .txt and a line that says why, so that nobody tries again.
When the pipe `alive` ends, so has who waits for the programs, and this process and all that it has started end, too.
"""

import json
import os
import shutil
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import torch

from hyperopt_id import compilation_graph, files, user_cache

_FOREIGN = "aoti_torch_proxy_executor_call_function("  # a call of what has no C interface


def main() -> int:
    job = json.load(sys.stdin)
    os.nice(job["nice"])
    if job["alive"] is not None:
        watch(job["alive"])
    torch.set_num_threads(job["threads"])  # loops are compiled for a number of threads
    torch.use_deterministic_algorithms(job["deterministic"])
    for name, text in job["programs"]:
        path = Path(name)
        try:
            content = compiled(text, job["options"])
        except Exception as error:  # whatever the compiler stumbles over
            reason = one_line(error)
            print(reason, file=sys.stderr)
            if not isinstance(error, OSError | MemoryError):  # those may go away
                files.replace(path.with_suffix(".txt"), lambda file, said=reason: file.write(said.encode()))
            return 1
        user_cache.store(path, content)
    return 0


def watch(pipe: int) -> None:
    """End this process and all of its group when the last process that might write to the pipe is gone."""

    def end() -> None:
        os.read(pipe, 1)  # nothing is ever written
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()


def compiled(text: str, options: dict[str, Any]) -> bytes:
    """The content of a library that computes the graph."""
    import torch._inductor  # after the number of threads is set

    module, inputs = compilation_graph.read(text)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        path = Path(str(torch._inductor.aot_compile(module, tuple(inputs), options=options)))
    try:
        if any(_FOREIGN in source.read_text() for source in path.parent.glob("*.wrapper.cpp")):
            raise NotImplementedError("one of its operations has no C interface")
        return path.read_bytes()
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)


def one_line(error: BaseException) -> str:
    """What the error says first, and what the C++ compiler said, if it was that."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said, causes = lines[0].strip(), [line.strip() for line in lines[1:] if "error:" in line]
    if said.endswith(":") and not causes:  # the name of an exception alone
        return f"torch's compiler ended in {said.removesuffix(':')}, without a reason"
    return ": ".join([said, *causes[:1]])


if __name__ == "__main__":
    sys.exit(main())
