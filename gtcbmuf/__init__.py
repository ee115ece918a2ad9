"""Data-parallel training over MPI: thresholded gradients (GTC), block model averaging (BMUF), both.

For PyTorch import gtcbmuf.torch, for NumPy gtcbmuf.numpy. What is here needs neither.
"""

__version__ = "0.1.0"
