"""A least-squares problem for simulations, and the same training as plain loops of NumPy arrays."""

import numpy as np

from gtcbmuf.policy import Tensor

F = np.float32
SHAPES = {"first.weight": (12, 10), "first.bias": (12,), "last.weight": (30, 4)}


class LeastSquares:
    """min |A w - b|² over rows drawn anew for each minibatch; any sizes of tensors."""

    def __init__(self, shapes=SHAPES, rows=8, seed=0):
        self.tensors = [Tensor(name, shape) for name, shape in shapes.items()]
        self.elements = sum(tensor.elements for tensor in self.tensors)
        self.rows, self.seed = rows, seed
        self.description = f"least squares of {self.elements}, {rows} rows, seed {seed}"
        self.truth = np.random.default_rng([seed, 1 << 20]).standard_normal(self.elements).astype(F)

    def start(self):
        return np.random.default_rng([self.seed, 1 << 21]).standard_normal(self.elements).astype(F)

    def gradient(self, minibatch, params, out):
        rng = np.random.default_rng([self.seed, minibatch])
        a = rng.standard_normal((self.rows, self.elements)).astype(F)
        error = np.einsum("ij,j->i", a, params - self.truth)  # no BLAS: the same bits everywhere
        out[:] = np.einsum("ij,i->j", a, error) / F(self.rows)
        return float(np.mean(error**2))

    def evaluate(self, params):
        return {"distance": float(np.linalg.norm(params - self.truth))}

    def of_rank(self, workers, clip=None, first=0):
        """gradient(rank, step, params) as tests/oracle_training.py has it."""

        def gradient(rank, step, params):
            out = np.empty_like(params)
            self.gradient(first + step * workers + rank, params, out)
            if clip is not None:
                norm = np.sqrt(np.sum(out.astype(np.float64) ** 2))
                out = out * F(clip / norm) if norm > clip else out
            return out

        return gradient


def rate(progress):
    """A learning rate that is exact in float32 only now and then."""
    return 0.01 + 0.02 * (1 - progress)


def sgd(workers, minibatches, rate=rate, first=0):
    """update(rank, step, params, gradient) as the oracle has it."""

    def update(rank, step, params, gradient):
        return params - F(rate((first + step * workers) / minibatches)) * gradient

    return update
