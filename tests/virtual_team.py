"""Virtual workers that train together in one process, for the tests of policies."""

import numpy as np

from gtcbmuf.policy import Tensor, lockstep
from gtcbmuf.simulate import virtual_world

TENSORS = [Tensor("embed.weight", (40, 5)), Tensor("lstm.weight", (30, 10)),
           Tensor("lstm.bias", (30,)), Tensor("out.weight", (8, 30)), Tensor("out.bias", (8,))]  # fmt: skip


class VectorModel:
    """A model that is one flat vector, with a buffer to be averaged and a counter."""

    rounds = False

    def __init__(self, vector, buffers=(), counters=()):
        self.vector = vector.copy()
        self.buffers = [np.array(b) for b in buffers]
        self.counters = [np.array(c, np.int64) for c in counters]
        self.calls = []

    def read(self, out):
        out[:] = self.vector

    def write(self, vector):
        self.calls.append("write")
        self.vector[:] = vector

    def averaged(self):
        self.lent = [b.copy() for b in self.buffers]
        return self.lent

    def maximum(self):
        self.lent_counters = [c.copy() for c in self.counters]
        return self.lent_counters

    def restore(self):
        self.calls.append("restore")
        self.buffers, self.counters = self.lent, self.lent_counters

    def at_block_boundary(self):
        self.calls.append("boundary")

    def catch_up(self, exchange, root):
        ticket = exchange.post_broadcast(self.vector, root=root)
        yield
        ticket.wait()


class Team:
    """One worker and one model for each rank, driven in lockstep."""

    def __init__(self, strategy, size, *, tensors=TENSORS, group_size=None, start=None, codec=None):
        self.groups = virtual_world(size, group_size, codec)
        self.workers = [strategy.worker(tensors, groups) for groups in self.groups]
        self.layout = self.workers[0].layout
        if start is None:
            start = np.zeros(self.layout.elements, self.layout.vector_dtype)
        self.models = [VectorModel(start) for _ in range(size)]
        self.size = size

    def start(self):
        lockstep([w.start(m) for w, m in zip(self.workers, self.models)])
        return self

    def exchange(self, gradients):
        """Flat gradients of the ranks in, what each rank's optimizer sees out."""
        if not self.workers[0].exchanges_gradients:
            return gradients
        for worker, gradient in zip(self.workers, gradients):
            for bucket in self.layout.buckets:
                worker.post(bucket.index, self.segments(bucket, gradient))
        lockstep([w.finish() for w in self.workers])
        return [self.flat(w.gradient) for w in self.workers]

    def segments(self, bucket, gradient):
        found = []
        for number, tensor in zip(bucket.numbers, bucket.tensors):
            at = self.layout.offsets[number]
            part = gradient[at : at + tensor.elements]
            dtype = "uint16" if bucket.dtype == "bfloat16" else bucket.dtype
            found.append(part.astype(dtype, copy=False))
        return found

    def flat(self, of_bucket):
        """Arrays of buckets as one vector in registration order."""
        out = np.empty(self.layout.elements, np.float32)
        for bucket in self.layout.buckets:
            values = of_bucket(bucket.index)
            for number, offset in zip(bucket.numbers, bucket.offsets):
                n = self.layout.tensors[number].elements
                out[self.layout.offsets[number] :][:n] = values[offset : offset + n]
        return out

    def after_update(self, samples=None):
        samples = samples or [None] * self.size
        lockstep([w.after_update(m, s) for w, m, s in zip(self.workers, self.models, samples)])

    def step(self, gradient, update, step, samples=None):
        """gradient and update as tests/oracle_training.py has them."""
        gradients = [gradient(r, step, m.vector) for r, m in enumerate(self.models)]
        seen = self.exchange(gradients)
        for rank, model in enumerate(self.models):
            model.vector = update(rank, step, model.vector, seen[rank])
        self.after_update(samples)

    def finalize(self):
        lockstep([w.finalize(m) for w, m in zip(self.workers, self.models)])

    def states(self):
        return [w.state_dict() for w in self.workers]

    def residual(self, rank):
        lanes = self.workers[rank].state_dict()["gradients"]["lanes"]
        return self.flat(lambda b: lanes[b]["residual"])

    def second_residual(self):
        """Of all owners, each where its shards are; 0 where nobody owns anything."""
        vectors = [np.zeros(b.elements, np.float32) for b in self.layout.buckets]
        for state in self.states():
            for vector, lane in zip(vectors, state["gradients"]["lanes"]):
                if "second" in lane:
                    first, residual = lane["second"]["first"], lane["second"]["residual"]
                    vector[first : first + len(residual)] = residual
        return self.flat(lambda b: vectors[b])


def same(a, b):
    """Equal to the bit, through dicts, lists and arrays."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return a == b


def noise(size=None, scale=1.0, seed=0):
    """gradient(rank, step, params): reproducible noise about a quadratic's gradient."""

    def gradient(rank, step, params):
        rng = np.random.default_rng([seed, rank, step])
        return (scale * (params + rng.standard_normal(len(params)))).astype(params.dtype)

    return gradient


def sgd(lr=0.1):
    def update(rank, step, params, gradient):
        return params - params.dtype.type(lr) * gradient

    return update
