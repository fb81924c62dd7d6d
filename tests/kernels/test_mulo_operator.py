"""The operator `mulo_step`: what torch asks of one, and populations. On a CPU, and on a GPU where there is one."""

import pytest
import torch
from cuda_steps import placed
from mulo_cases import HALF, arguments, case, random_theta

from hyperopt_id.kernels import compiler
from hyperopt_id.kernels import mulo as kernels
from hyperopt_id.kernels.mulo import mulo_step

try:
    kernels.prepare("cpu")
except compiler.NoCompiler as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("shapes", [[(4, 5)], [(7,), ()], [(3, 40), (2, 3, 4), (9,)]], ids=str)
def test_opcheck(device, shapes, dtype):
    cases = [case(torch.empty(shape, dtype=dtype), seed) for seed, shape in enumerate(shapes)]
    found = torch.library.opcheck(mulo_step, arguments(placed(cases, device), random_theta()))
    assert set(found.values()) == {"SUCCESS"}


def stacked(members, dim=0):
    return [torch.stack(same).movedim(0, dim) for same in zip(*members, strict=True)]


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("own", ["nothing", "rates", "theta", "steps", "all"])
def test_vmap_is_the_loop(device, own, dim):
    runs, shapes = 3, [(5, 6), (7,), (), (2, 33, 40)]
    cases = [placed([case(torch.empty(s), 10 * r + i) for i, s in enumerate(shapes)], device) for r in range(runs)]
    members = [arguments(own_cases, random_theta(r), r) for r, own_cases in enumerate(cases)]
    shared = members[0][6:9]
    members = [
        (
            *m[:6],
            *(m[6 + i] if own in (name, "all") else shared[i] for i, name in enumerate(("theta", "rates", "steps"))),
            m[9],
        )
        for m in members
    ]
    lists = [stacked([m[i] for m in members], dim) for i in range(6)]
    in_dims = [[dim if leaf.numel() else 0 for leaf in leaves] for leaves in lists]
    lists[5] = [leaf if leaf.numel() else leaf.reshape(runs, 0) for leaf in lists[5]]
    common = [
        stacked([[m[6 + i]] for m in members])[0] if own in (n, "all") else shared[i]
        for i, n in enumerate(("theta", "rates", "steps"))
    ]
    dims = [0 if own in (name, "all") else None for name in ("theta", "rates", "steps")]

    def step(*tensors):
        mulo_step(*tensors, 0.01)
        return tensors[0][0]

    torch.vmap(step, (*in_dims, *dims))(*lists, *common)
    for m in members:
        mulo_step(*m)
    for i in (0, 2, 3, 4, 5):
        for ours, theirs in zip(lists[i], stacked([m[i] for m in members], dim), strict=True):
            assert torch.equal(ours.flatten(), theirs.flatten())


def test_vmap_over_gradients_alone_is_refused():
    one = case(torch.empty(4, 5))
    lists = arguments([one], random_theta())
    with pytest.raises(ValueError, match="needs an axis of runs"):
        torch.vmap(lambda g: mulo_step(lists[0], [g], *lists[2:]) or g)(torch.randn(3, 4, 5))
