"""Between `torch.optim` and this package: optimizers of the one inside the other."""
