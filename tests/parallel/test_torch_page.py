"""docs/coming-from-horovod.md is run, and a script in Horovod's style after changing its import."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import gtcbmuf.torch as hvd

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-horovod.md"


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def assert_same_everywhere(comm, values):
    assert all(np.array_equal(other, values) for other in comm.allgather(values))


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


def test_the_page(comm, tmp_path):
    blocks = python_blocks(PAGE.read_text())
    assert len(blocks) == 7
    names = {"folder": str(tmp_path)}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102
        if any(word in block for word in ("count_samples", "clip_grad_norm_", "join()")):
            assert_same_everywhere(comm, flat(names["model"]))
    assert names["mean_loss"] > 0 and names["validation_loss"] > 0
    names["opt"].remove_hooks()


def test_every_name_on_the_page_is_there():
    table = PAGE.read_text().split("## Verbs")[1].split("##")[0]
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| `")]
    taken = [r[1] for r in rows if "not there" not in r[2] and "refused" not in r[2]]
    names = {n for cell in taken for n in re.findall(r"`(\w+)", cell)}
    assert len(names) > 12
    assert all(hasattr(hvd, name) for name in names)
    absent = {n for r in rows if "not there" in r[2] for n in re.findall(r"`(\w+)", r[1])}
    assert absent and not any(hasattr(hvd, name) for name in absent)


SCRIPT = """
import torch
import torch.nn.functional as F
import horovod.torch as hvd

hvd.init()
torch.manual_seed(42)
inputs = torch.randn(240, 5)
targets = (inputs.sum(1) > 0).long()
dataset = torch.utils.data.TensorDataset(inputs, targets)
sampler = torch.utils.data.distributed.DistributedSampler(
    dataset, num_replicas=hvd.size(), rank=hvd.rank())
loader = torch.utils.data.DataLoader(dataset, batch_size=10, sampler=sampler)

torch.manual_seed(hvd.rank())
model = torch.nn.Sequential(torch.nn.Linear(5, 20), torch.nn.ReLU(), torch.nn.Linear(20, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * hvd.size(), momentum=0.5)

hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
first_epoch = hvd.broadcast(torch.tensor(0), root_rank=0, name='epoch').item()
optimizer = hvd.DistributedOptimizer(optimizer,
                                     named_parameters=model.named_parameters(),
                                     compression=hvd.Compression.none,
                                     backward_passes_per_step=2,
                                     op=hvd.Average,
                                     gradient_predivide_factor=1.0)

history = []
for epoch in range(first_epoch, 8):
    sampler.set_epoch(epoch)
    for data, target in loader:
        optimizer.zero_grad()
        for i in range(0, len(data), 5):
            loss = F.cross_entropy(model(data[i:i + 5]), target[i:i + 5])
            loss.div_(2)
            loss.backward()
        optimizer.synchronize()
        with optimizer.skip_synchronize():
            optimizer.step()
    accuracy = (model(inputs).argmax(1) == targets).float().mean()
    history.append(hvd.allreduce(accuracy, name='avg_accuracy').item())
"""


def test_a_script_in_horovods_style(comm):
    if 240 % (10 * comm.size):
        pytest.skip("needs a number of ranks that divides 24")
    names = {}
    changed = SCRIPT.replace("import horovod.torch as hvd", "import gtcbmuf.torch as hvd")
    exec(compile(changed, "script", "exec"), names)  # noqa: S102
    assert_same_everywhere(comm, flat(names["model"]))
    assert names["history"][-1] > 0.85
    names["optimizer"].remove_hooks()
