"""Hand-written kernels: C++ and CUDA behind a plain C interface, and the `torch.library` operators that call them."""
