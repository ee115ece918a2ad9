"""Small PyTorch models, their data, and what training them together must give.

The right-hand side is oracle_training (plain loops) with plain torch for gradients and updates;
nothing of the library. Used by tests/unit and tests/parallel.
"""

import numpy as np
import oracle_training
import torch

torch.set_num_threads(1)


def mlp(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3)).to(
        dtype
    )


class Lstm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(6, 5, num_layers=2, batch_first=True)
        self.out = torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.lstm(x.view(2, -1, 6))[0]).view(-1, 3)


def lstm(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return Lstm().to(dtype)


MODELS = {"mlp": mlp, "lstm": lstm}


def batch(rank, step, dtype=torch.float32):
    """The minibatch of a rank in a step: 8 inputs of 6 and 8 classes of 3."""
    g = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(8, 6, generator=g, dtype=dtype), torch.randint(3, (8,), generator=g)


def loss(model, rank, step):
    x, y = batch(rank, step, next(model.parameters()).dtype)
    return torch.nn.functional.cross_entropy(model(x), y)


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
}


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().copy()


class Replica:
    """One rank's model and optimizer in plain torch, steered by flat vectors."""

    def __init__(self, model, optimizer, period=None):
        self.model = MODELS[model]()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.momentum_resets = optimizer == "sgd"
        self.period = period

    def put(self, vector, gradient=False):
        at = 0
        for p in self.model.parameters():
            part = torch.from_numpy(vector[at : at + p.numel()].copy()).view(p.shape)
            if gradient:
                p.grad = part
            else:
                p.data.copy_(part)
            at += p.numel()

    def gradient(self, rank, step, params):
        self.put(params)
        grads = torch.autograd.grad(loss(self.model, rank, step), list(self.model.parameters()))
        return torch.cat([g.reshape(-1) for g in grads]).numpy().copy()

    def update(self, step, params, gradient):
        if self.period and step % self.period == 0 and self.momentum_resets:
            self.optimizer.state.clear()  # a new block begins
        self.put(params)
        self.put(gradient, gradient=True)
        self.optimizer.step()
        return flat(self.model)


def _callbacks(model, optimizer, ranks, period=None):
    replicas = [Replica(model, optimizer, period) for _ in range(ranks)]

    def gradient(rank, step, params):
        return replicas[rank].gradient(rank, step, params)

    def update(rank, step, params, g):
        return replicas[rank].update(step, params, g)

    return flat(replicas[0].model), gradient, update


def dense(model, optimizer, ranks, steps):
    """Parameters after each step; the mean is computed in float64 in rank order, rounded once."""
    params, gradient, update = _callbacks(model, optimizer, ranks)
    path = []
    for step in range(steps):
        acc = np.zeros(len(params))
        for rank in range(ranks):
            acc = acc + gradient(rank, step, params).astype(np.float64)
        mean = (acc / ranks).astype(np.float32)
        replicas = [update(rank, step, params, mean) for rank in range(ranks)]
        params = replicas[0]
        path.append(params)
    return path


def gtc(model, optimizer, ranks, steps, threshold):
    params, gradient, update = _callbacks(model, optimizer, ranks)
    return oracle_training.gtc_run(
        params, gradient, update, workers=ranks, steps=steps, threshold=threshold
    )


def bmuf(model, optimizer, ranks, steps, period, **settings):
    params, gradient, update = _callbacks(model, optimizer, ranks, period)

    def local_step(rank, step, params):
        return update(rank, step, params, gradient(rank, step, params))

    return oracle_training.bmuf_run(
        params, local_step, workers=ranks, steps=steps, period=period, **settings
    )


def hybrid(model, optimizer, groups, steps, period, threshold, **settings):
    ranks = sum(len(g) for g in groups)
    params, gradient, update = _callbacks(model, optimizer, ranks, period)
    return oracle_training.hybrid_run(
        params, gradient, update, groups=groups, steps=steps, period=period,
        threshold=threshold, **settings,
    )  # fmt: skip


def uneven(make, model, optimizer, counts, period=None, **settings):
    """`make` of oracle_uneven, such as oracle_uneven.gtc, with plain torch in it."""
    params, gradient, update = _callbacks(model, optimizer, len(counts[0]), period)
    if period:
        settings["period"] = period
    return make(params, gradient, update, counts=counts, **settings)
