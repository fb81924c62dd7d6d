"""Data parallelism: processes that average their gradients train as one does on the whole batch."""

import os

import torch
from laws import assert_identical
from mulo_training import IMPLEMENTATIONS, THETA
from torch import distributed, multiprocessing, nn

from hyperopt_id.optim.mulo import MuLO

PROCESSES, STEPS = 2, 3
BATCH = torch.randn(4 * PROCESSES, 6, generator=torch.Generator().manual_seed(0))


def trained(impl, inputs, wrap=lambda module: module):
    torch.manual_seed(1)
    model = wrap(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)))
    optimizer = MuLO(model.parameters(), THETA, impl)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    return [param.detach() for param in model.parameters()]


def take_part(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the name of the machine resolves to
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    for impl in IMPLEMENTATIONS:
        found = trained(impl, BATCH.chunk(PROCESSES)[rank], nn.parallel.DistributedDataParallel)
        torch.save(found, f"{folder}/{impl}_{rank}.pt")
    distributed.destroy_process_group()


def test_processes_take_the_steps_of_one(tmp_path):
    multiprocessing.spawn(take_part, (str(tmp_path),), PROCESSES)
    for impl in IMPLEMENTATIONS:
        first, *others = (torch.load(tmp_path / f"{impl}_{rank}.pt") for rank in range(PROCESSES))
        for other in others:
            assert_identical(first, other)
        for p, q in zip(first, trained(impl, BATCH), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
