"""Laws of checkpoints: bit-exact, at most `keep`, and not lost by damage, failed writes or kill -9."""

import random
import subprocess
import sys
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyperopt_id import checkpoint

GENERATOR = torch.Generator().manual_seed(0)
BASE = torch.randn(6, 4, generator=GENERATOR)
TREES = {
    "dtypes": {
        str(dtype): (BASE * 10).to(dtype)
        for dtype in (
            torch.float64,
            torch.float32,
            torch.bfloat16,
            torch.float16,
            torch.int64,
            torch.uint8,
            torch.bool,
        )
    },
    "special numbers": {
        "tensor": torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45]),
        "list": [float("inf"), -0.0, 0.1 + 0.2, 2**80, True, None, "text", -3],
    },
    "shapes": {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "large": torch.arange(9.0).reshape(1, 3, 3),
    },
    "views": {
        "row": BASE[2],
        "transposed": BASE.T,
        "strided": BASE[::2, 1],
        "expanded": BASE[:1].expand(5, 4),
    },
    "graph": {"variable": BASE.clone().requires_grad_(), "result": BASE.clone().requires_grad_() * 2},
    "nesting": {"a": [{"b/c": (BASE, [])}, ()], "generator": GENERATOR.get_state(), 3: {}},
}


def assert_identical(left: Any, right: Any) -> None:
    if isinstance(right, torch.Tensor):
        right = right.detach()
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert not left.requires_grad
        same_bytes = (
            left.contiguous().flatten().view(torch.uint8),
            right.contiguous().flatten().view(torch.uint8),
        )
        assert torch.equal(*same_bytes)
    elif isinstance(right, dict):
        assert list(left) == list(right)
        for key in right:
            assert_identical(left[key], right[key])
    elif isinstance(right, (list, tuple)):
        assert type(left) is type(right)
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_identical(one, other)
    else:
        assert (type(left), repr(left)) == (type(right), repr(right))


@pytest.mark.parametrize("name", TREES)
def test_load_inverts_save_to_the_last_bit(tmp_path: Path, name: str):
    checkpoint.save(tmp_path, TREES[name], 7, keep=2)
    tree, step = checkpoint.load(tmp_path)
    assert step == 7
    assert_identical(tree, TREES[name])


def test_torch_load_reads_a_checkpoint_without_this_package(tmp_path: Path):
    path = checkpoint.save(tmp_path, TREES["nesting"], 7, keep=2)
    assert (tmp_path / "latest").read_text() == path.name + "\n"
    assert_identical(torch.load(path, weights_only=True)["tree"], TREES["nesting"])


def test_a_view_is_written_without_the_tensor_it_views(tmp_path: Path):
    path = checkpoint.save(tmp_path, {"row": torch.zeros(1000, 1000)[3]}, 1, keep=1)
    assert path.stat().st_size < 20_000


def test_tied_tensors_stay_tied(tmp_path: Path):
    checkpoint.save(tmp_path, {"a": BASE, "b": BASE}, 1, keep=1)
    tree, _ = checkpoint.load(tmp_path)
    tree["a"].zero_()
    assert not tree["b"].any()


@pytest.mark.parametrize("keep", [1, 2, 10])
def test_the_newest_remain(tmp_path: Path, keep: int):
    for step in range(0, 60, 5):
        checkpoint.save(tmp_path, {"step": step}, step, keep)
        expected = [f"step_{s:09d}.pt" for s in range(0, step + 5, 5)][-keep:]
        assert sorted(path.name for path in tmp_path.glob("step_*.pt")) == expected
        assert checkpoint.load(tmp_path) == ({"step": step}, step)


def test_saving_before_later_checkpoints_replaces_them(tmp_path: Path):
    for step in (80, 90, 100, 95):
        checkpoint.save(tmp_path, {"step": step}, step, keep=2)
    assert checkpoint.load(tmp_path) == ({"step": 95}, 95)
    assert len(list(tmp_path.glob("step_*.pt"))) == 2


def two_checkpoints(directory: Path) -> tuple[Path, bytes]:
    checkpoint.save(directory, {"weight": BASE, "step": 1}, 1, keep=3)
    newest = checkpoint.save(directory, {"weight": BASE + 1, "step": 2}, 2, keep=3)
    return newest, newest.read_bytes()


def test_any_truncation_falls_back_to_the_previous_one(tmp_path: Path):
    newest, content = two_checkpoints(tmp_path)
    for length in (0, 1, len(content) // 3, len(content) // 2, len(content) - 22, len(content) - 1):
        newest.write_bytes(content[:length])
        with pytest.warns(UserWarning, match=rf"{newest.name} is unusable .*\(\w+: .+\)"):
            tree, step = checkpoint.load(tmp_path)
        assert step == 1
        assert_identical(tree, {"weight": BASE, "step": 1})


def test_a_flipped_bit_is_found_or_harmless(tmp_path: Path):
    newest, content = two_checkpoints(tmp_path)
    found = 0
    for position in random.Random(0).sample(range(len(content)), 150):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        newest.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tree, step = checkpoint.load(tmp_path)
        assert step == (1 if caught else 2)
        assert_identical(tree, {"weight": BASE + (step - 1), "step": step})
        found += len(caught)
    assert found > 20  # the rest fell on padding


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path: Path):
    newest, content = two_checkpoints(tmp_path)
    start = content.index((BASE + 1).numpy().tobytes())
    for offset in range(0, BASE.numel() * 4, 7):
        damaged = bytearray(content)
        damaged[start + offset] ^= 1
        newest.write_bytes(damaged)
        with pytest.warns(UserWarning, match="checksum"):
            assert checkpoint.load(tmp_path)[1] == 1


def test_nothing_loadable_is_an_error_that_says_so(tmp_path: Path):
    with pytest.raises(ValueError, match="not a directory"):
        checkpoint.load(tmp_path / "missing")
    with pytest.raises(ValueError, match="no usable"):
        checkpoint.load(tmp_path)
    two_checkpoints(tmp_path)
    for path in tmp_path.glob("step_*.pt"):
        path.write_bytes(b"PK")
    with (
        pytest.warns(UserWarning, match="is unusable") as caught,
        pytest.raises(ValueError, match="no usable"),
    ):
        checkpoint.load(tmp_path)
    assert ["step_000000002.pt" in str(warning.message) for warning in caught] == [True, False]


def test_a_failed_write_leaves_the_previous_checkpoint_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint.save(tmp_path, {"step": 1}, 1, keep=1)
    before = sorted(path.name for path in tmp_path.iterdir())

    def disk_full(record: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, {"step": 2}, 2, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert checkpoint.load(tmp_path) == ({"step": 1}, 1)


def test_what_a_killed_save_left_is_ignored_and_then_removed(tmp_path: Path):
    checkpoint.save(tmp_path, {"step": 1}, 1, keep=2)
    leftover = tmp_path / ".step_000000002.pt.tmp"
    leftover.write_bytes(b"half a checkpoint")
    assert checkpoint.load(tmp_path) == ({"step": 1}, 1)
    checkpoint.save(tmp_path, {"step": 3}, 3, keep=2)
    assert not leftover.exists()


KILLING = """
import os, signal, sys, time, warnings
import torch
from hyperopt_id import checkpoint
warnings.simplefilter("error")
torch.set_num_threads(1)
directory, step = sys.argv[1], 0
checkpoint.save(directory, {"value": torch.full((300_000,), 0.0)}, 0, keep=2)
for attempt in range(20):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            checkpoint.save(directory, {"value": torch.full((300_000,), float(step))}, step, keep=2)
            os.write(writer, step.to_bytes(8, "big"))
    os.close(writer)
    time.sleep(0.01 + 0.003 * attempt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        acknowledged = pipe.read()[-8:]
    tree, found = checkpoint.load(directory)
    completed = int.from_bytes(acknowledged, "big") if acknowledged else step
    assert found >= completed, "a completed save was lost"
    assert bool((tree["value"] == found).all()), "a mixture of two saves"
    step = found
print("leftovers", sum(name.endswith(".tmp") for name in os.listdir(directory)), "steps", step)
"""


def test_kill_9_in_the_middle_of_saving_loses_nothing(tmp_path: Path):
    asked = subprocess.run(
        [sys.executable, "-c", KILLING, str(tmp_path / "checkpoints")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert asked.returncode == 0, asked.stderr
    assert int(asked.stdout.split()[-1]) > 0, "no save was completed: the test killed too early"


@pytest.mark.parametrize(
    "leaf",
    [np.float64(1.0), namedtuple("Pair", "a b")(1, 2), Path("x"), {1, 2}],
    ids=lambda leaf: type(leaf).__name__,
)
def test_what_could_not_be_read_back_is_refused_with_its_place(tmp_path: Path, leaf: Any):
    with pytest.raises(TypeError, match=rf"run/1/deep is a {type(leaf).__name__}"):
        checkpoint.save(tmp_path, {"run": [0, {"deep": leaf}]}, 1, keep=1)
    with pytest.raises(TypeError, match="key of type float"):
        checkpoint.save(tmp_path, {"run": {1.0: 2}}, 1, keep=1)


def test_keep_must_be_positive(tmp_path: Path):
    with pytest.raises(ValueError, match="at least 1, not 0"):
        checkpoint.save(tmp_path, {}, 1, keep=0)
