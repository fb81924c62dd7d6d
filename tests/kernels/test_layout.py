"""How kernels see tensors: merged axes give every element the place in memory that the tensor gives it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mulo_cases import in_memory_order

from hyperopt_id.kernels import layout
from hyperopt_id.kernels.layout import Geometry, geometry


def seen(tensor):
    found = geometry(tuple(tensor.shape), tensor.stride())
    assert found is not None
    return found


@given(st.lists(st.integers(1, 5), max_size=5), st.data())
def test_merged_axes_are_the_tensor(shape, data):
    """Means over x and y of [A, X, B, Y, C], as memory has it, are those over the two factored axes."""
    tensor = in_memory_order(shape, data.draw(st.permutations(range(len(shape)))))
    tensor.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    form, axes = seen(tensor), layout.factored_axes(shape)
    merged = torch.as_strided(tensor, (tensor.numel(),), (1,)).reshape(form[:5])
    if axes is None:
        assert form == Geometry(1, 1, 1, tensor.numel(), 1, 0)
        return
    lines, places = merged.mean(3), merged.mean(1)
    rows, columns = (lines, places) if form.rows_are_lines else (places, lines)
    for ours, axis in ((rows, axes[1]), (columns, axes[0])):
        expected = tensor.mean(axis, keepdim=True)
        order = layout.order_of_memory(tensor.shape, tensor.stride())
        assert order is not None
        torch.testing.assert_close(ours.flatten(), expected.permute(order).flatten())


@given(st.lists(st.integers(0, 9), max_size=6))
def test_factored_axes_are_the_last_of_a_stable_sort(shape):
    order = np.argsort(shape, kind="stable").tolist()
    assert layout.factored_axes(shape) == (tuple(order[-2:]) if len(shape) > 1 else None)


TABLE = [  # tensor, [A, X, B, Y, C], whether rows are lines
    (torch.empty(768, 300), (1, 768, 1, 300, 1), 0),
    (torch.empty(300, 768), (1, 300, 1, 768, 1), 1),
    (torch.empty(300, 768).T, (1, 300, 1, 768, 1), 1),
    (torch.empty(64, 32, 3, 3), (1, 64, 1, 32, 9), 0),
    (torch.empty(64, 32, 3, 3).to(memory_format=torch.channels_last), (1, 64, 9, 32, 1), 0),
    (torch.empty(8, 512, 64), (8, 512, 1, 64, 1), 0),
    (torch.empty(5), (1, 1, 1, 5, 1), 0),
    (torch.empty(()), (1, 1, 1, 1, 1), 0),
    (torch.empty(5, 0), (1, 1, 1, 0, 1), 0),
    (torch.empty(4, 1), (1, 4, 1, 1, 1), 0),
]


@pytest.mark.parametrize(("tensor", "lengths", "rows_are_lines"), TABLE)
def test_the_form_of(tensor, lengths, rows_are_lines):
    assert seen(tensor) == (*lengths, rows_are_lines)


@pytest.mark.parametrize(
    "tensor",
    [torch.empty(6, 4)[:, :3], torch.empty(6, 4)[::2], torch.empty(1, 4).expand(6, 4), torch.empty(8)[::2]],
)
def test_holes_and_overlaps_have_no_form(tensor):
    assert geometry(tuple(tensor.shape), tensor.stride()) is None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_zeros_are_dense_in_the_order_of_the_parameter(order):
    param = in_memory_order((3, 4, 5), order)
    found = layout.zeros(param, (2,), (3, 1, 5), torch.float64)
    assert found.shape == (2, 3, 1, 5)
    assert found.dtype == torch.float64
    assert layout.order_of_memory((2, *param.shape), (found.stride(0) * 4, *param.stride())) is not None
    kept = [axis for axis in order if axis != 1]
    assert found.stride(kept[1] + 1) == 1
    assert found.stride(kept[0] + 1) == param.shape[kept[1]]
    assert found.stride(0) == 15


def test_alike_ignores_axes_of_length_1():
    images = torch.empty(8, 1, 3, 3)
    assert layout.alike(images, images.to(memory_format=torch.channels_last))
    assert not layout.alike(torch.empty(8, 2, 3, 3), torch.empty(8, 2, 3, 3).to(memory_format=torch.channels_last))
    assert not layout.alike(torch.empty(4, 4), torch.empty(4, 4).T)
