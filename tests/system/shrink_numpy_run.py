"""As shrink_run.py, with a training loop of NumPy arrays, whose momentum is the program's own: the same oracle."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from shrink_run import buffers_after, die, ending, fall_behind, gradients, initial, initial_buffers, log_recoveries, strategy_of

import gtcbmuf.numpy


def main():
    folder, how = Path(sys.argv[1]), json.loads(sys.argv[2])
    gtcbmuf.init(on_failure="shrink")
    born = gtcbmuf.rank()
    where, at = how["deaths"].get(str(born), (None, None))
    parameters = {f"p{i}": p.numpy().copy() for i, p in enumerate(initial())}
    momentum = {name: np.zeros_like(p) for name, p in parameters.items()}
    averaged, _ = initial_buffers()
    optimizer = gtcbmuf.numpy.bind(strategy_of(how), parameters, averaged=[averaged], optimizer_state=list(momentum.values()))
    log_recoveries(folder / f"recovered-{born}", at if where == "recovery" else None)
    for step in range(how["steps"]):
        if step == at and where == "before":
            die(folder, born, step)
        if step == how.get("behind", {}).get(str(born)):
            fall_behind(optimizer)
        averaged[...], _ = buffers_after([averaged, 0], born, step)
        grads = {f"p{i}": g.numpy() for i, g in enumerate(gradients(born, step))}
        if optimizer.reduce_(grads) or how.get("careless"):
            for name, p in parameters.items():
                momentum[name][...] = np.float32(0.5) * momentum[name] + grads[name]
                p -= np.float32(0.125) * momentum[name]
        if optimizer.after_update():
            for array in momentum.values():
                array[...] = 0
        if step == at and where == "after":
            die(folder, born, step)
    end = ending(optimizer._worker, [torch.from_numpy(p) for p in parameters.values()])
    torch.save({**end, "averaged": torch.from_numpy(averaged)}, folder / f"end-{born}.pt")


if __name__ == "__main__":
    main()
