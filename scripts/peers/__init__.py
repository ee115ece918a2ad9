"""This library's optimizers beside those of PyTorch and Horovod: what every rank runs, and the results."""
