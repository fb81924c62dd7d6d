"""Where tests of the CUDA kernel run, and with which operands."""

import pytest

from hyperopt_id.kernels import mulo_cuda


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Of the tensors; on a CPU the kernel is emulated."""
    return request.param


@pytest.fixture(params=["float16", "split_float16"])
def precision(request, monkeypatch):
    """Of the products of all tensors."""
    monkeypatch.setattr(mulo_cuda, "PRECISION", request.param)
    monkeypatch.setattr(mulo_cuda, "SMALL", 0)
    return request.param


@pytest.fixture(autouse=True)
def no_plans():
    """Memory of earlier tests may be that of this one, whose plans are other ones."""
    mulo_cuda._plans.clear()
    mulo_cuda._pointers.clear()
