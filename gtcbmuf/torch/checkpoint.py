"""save and restore: all that a run's next step depends on, in one folder (docs/checkpoints.md)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from gtcbmuf import agreement, checkpoint, runtime
from gtcbmuf.checkpoint import TREE, Manifest, rank_file, together
from gtcbmuf.errors import FileError, GtcbmufError, MismatchError
from gtcbmuf.policy.resize import held_back, resized
from gtcbmuf.policy.strategy import describe
from gtcbmuf.policy.worker import wait_all
from gtcbmuf.torch import state as states
from gtcbmuf.torch.compare import check_model, check_optimizer, check_strategy
from gtcbmuf.torch.optimizer import DistributedOptimizer
from gtcbmuf.torch.tree import flatten, unflatten
from gtcbmuf.torch.verbs import _bytes, _run


class Restored(NamedTuple):
    """step, extra: as they were saved (of other ranks or groups: rank 0's extra).

    exact: ranks and groups are those that saved; the run then goes on with the same bits.
    """

    step: int
    extra: Any
    exact: bool


def save(path, model: torch.nn.Module, opt: DistributedOptimizer, *, step: int, extra: Any = None,
         rng: bool = False) -> None:  # fmt: skip
    """Save the whole run in the folder `path`, in place of the checkpoint that may be there.

    On all ranks, between step() and the next backward(); `path` on a file system that all share.
    step: of the run, the same on all ranks. extra: this rank's own: tensors, NumPy arrays, numbers, texts,
    None, and dicts, lists and tuples of them. rng: save the states of the generators of torch
    (the CPU's, and that of the current GPU where one is in use), numpy.random and random as well.

    Raises the same error on all ranks, naming the rank that met it: FileError (no space, not a
    checkpoint's folder), MismatchError (another path, step or model), TypeError or RuntimeError (what
    cannot be saved, or not now). The checkpoint that was there is then untouched.
    """
    _run(_save(runtime.beside(), path, model, opt, step, extra, rng))
    runtime.note_checkpoint(path, step)


def restore(path, model: torch.nn.Module, opt: DistributedOptimizer, *, missing_ok: bool = False):
    """Load a checkpoint into model, optimizer and, if it has them, random generators: a Restored.

    On all ranks, after broadcast_parameters. With missing_ok, None where no rank finds one at `path`.

    Raises, the same on all ranks and before anything is changed: FileError for a file that is damaged,
    foreign or of a newer version; MismatchError, naming the first difference, for another model,
    strategy or optimizer. Other ranks or groups are no error: see Restored.exact.
    """
    restored = _run(_restore(runtime.beside(), path, model, opt, missing_ok))
    if restored is not None:
        runtime.note_checkpoint(path, restored.step)
    return restored


# -- save ----------------------------------------------------------------------------------------------


def _save(exchange, path, model, opt, step, extra, rng) -> Iterator[None]:
    path = Path(path)
    (tree, tensors), told = yield from together(
        exchange, lambda: _snapshot(model, opt, extra, rng), lambda s: _facts(path, step, *s)
    )
    facts, digests = [t["facts"] for t in told], [t["digests"] for t in told]
    if any(other != facts[0] for other in facts):
        raise MismatchError(f"save: {agreement.difference(facts)}")
    shared = {name for name, digest in digests[0].items() if all(d.get(name) == digest for d in digests)}
    leads = exchange.rank == 0
    _, told = yield from together(
        exchange, lambda: checkpoint.begin(path) if leads else None, lambda name: name
    )
    folder = told[0]
    try:
        _, told = yield from together(
            exchange, lambda: _write(path / folder, exchange.rank, tree, tensors, shared), dict
        )
        files = dict(sorted(item for entries in told for item in entries.items()))
        manifest = _manifest(opt, step, folder, files)
        yield from together(exchange, lambda: checkpoint.publish(path, manifest) if leads else None)
    except Exception:
        _sweep(exchange, path)
        raise
    _sweep(exchange, path)


def _sweep(exchange, path: Path) -> None:
    """What has failed now, or has been replaced; where this fails, the next save will do it."""
    if exchange.rank == 0:
        with contextlib.suppress(GtcbmufError, OSError):
            checkpoint.sweep(path)


def _snapshot(model, opt, extra, rng) -> tuple[Any, dict[str, torch.Tensor]]:
    _check_wrapped(opt)
    return flatten({
        "model": dict(model.state_dict()),
        "optimizer": opt.state_dict(),
        "rng": _generators() if rng else None,
        "extra": extra,
    })  # fmt: skip


def _facts(path: Path, step: int, tree, tensors) -> dict[str, Any]:
    """What must be the same on all ranks; and a digest of each tensor, to find those that are."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"step={step!r}: give the number of steps done, at least 0")
    facts = [("path", str(path)), ("step", step)]
    facts += [(name, "is there") for name in tensors if name.startswith("model/")]
    return {"facts": facts, "digests": {name: _digest(tensor) for name, tensor in tensors.items()}}


def _digest(tensor: torch.Tensor) -> str:
    digest = hashlib.blake2b(f"{tensor.dtype} {list(tensor.shape)}".encode(), digest_size=16)
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def _write(folder: Path, rank: int, tree, tensors, shared: set[str]) -> dict[str, dict]:
    """This rank's file, and on rank 0 that of all; what the manifest says of them."""
    text = torch.frombuffer(bytearray(json.dumps(tree).encode()), dtype=torch.uint8)
    own = {name: tensor for name, tensor in tensors.items() if name not in shared}
    files = {rank_file(rank): checkpoint.write(folder / rank_file(rank), _file({TREE: text, **own}))}
    if rank == 0:
        common = {name: tensors[name] for name in tensors if name in shared}
        files[checkpoint.SHARED] = checkpoint.write(folder / checkpoint.SHARED, _file(common))
    return files


def _file(tensors: dict[str, torch.Tensor]) -> bytes:
    """safetensors takes no two tensors of one storage (tied parameters, NumPy views)."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen:
            tensors[name] = tensor.clone()
        seen.add(storage)
    return safetensors.torch.save(tensors)


def _manifest(opt, step: int, folder: str, files: dict) -> Manifest:
    groups = opt._groups
    return Manifest(
        step=step, world_size=groups.world.size, groups=[list(g) for g in groups.members],
        strategy=json.loads(describe(opt.strategy)), optimizer=type(opt.inner).__name__,
        folder=folder, files=files,
    )  # fmt: skip


# -- restore -------------------------------------------------------------------------------------------


def _restore(exchange, path, model, opt, missing_ok: bool) -> Iterator[None]:
    path = Path(path)
    manifest, seen = yield from together(
        exchange, lambda: _find(path, opt, missing_ok), lambda m: m and m.folder
    )
    if len(set(seen)) > 1:
        ranks = "; ".join(f"rank {r}: {folder or 'none'}" for r, folder in enumerate(seen))
        raise FileError(f"{path}: the ranks see different checkpoints there ({ranks}).")
    if manifest is None:
        return None
    exact = _same_place(manifest, opt._groups)
    saved, _ = yield from together(
        exchange, lambda: _load(path, manifest, exchange.rank if exact else 0, model, opt)
    )
    if not exact:
        yield from _resize(path, manifest, exchange, saved, opt)
    yield from together(exchange, lambda: opt._check_state_dict(saved["optimizer"]))
    _apply(saved, model, opt, exact)
    return Restored(manifest.step, saved["extra"], exact)


def _find(path: Path, opt, missing_ok: bool) -> Manifest | None:
    _check_wrapped(opt)
    return None if missing_ok and not checkpoint.exists(path) else checkpoint.load(path)


def _same_place(manifest: Manifest, groups) -> bool:
    return (manifest.world_size, manifest.groups) == (groups.world.size, [list(g) for g in groups.members])


def _load(path: Path, manifest: Manifest, rank: int, model, opt) -> dict[str, Any]:
    """All that a rank saved, sound and of this model, strategy and optimizer; else the error."""
    check_strategy(manifest.strategy, json.loads(describe(opt.strategy)))
    saved = _Files(path, manifest).tree(rank)
    check_model(saved["model"], model.state_dict())
    check_optimizer(manifest.optimizer, saved["optimizer"]["param_groups"], opt.inner)
    worker = saved["optimizer"]["gtcbmuf"]["worker"]
    worker["strategy"] = opt._worker.identity()["strategy"]  # compared above; groups may be put otherwise
    return saved


class _Files:
    """The trees of several ranks; the shared file is read once."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path, self.manifest = path, manifest
        self.shared = self._tensors(checkpoint.SHARED)

    def tree(self, rank: int) -> dict[str, Any]:
        own = self._tensors(rank_file(rank))
        try:
            packed = json.loads(own.pop(TREE).numpy().tobytes())
            return unflatten(packed, lambda name: own[name] if name in own else self.shared[name])
        except (KeyError, ValueError, TypeError) as error:
            raise FileError(f"{self.path}: rank {rank}'s file is not of this library ({error!r}).") from error

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        return safetensors.torch.load(checkpoint.read(self.path, self.manifest, name))


def _resize(path: Path, manifest: Manifest, exchange, saved, opt) -> Iterator[None]:
    """`saved`, rank 0's of another world, becomes this rank's: see gtcbmuf/policy/resize.py.

    Each rank reads what every M-th saved one held back, and adds it up; all ranks' sums are then added.
    """
    own = saved["optimizer"]["gtcbmuf"]
    sums, _ = yield from together(exchange, lambda: _partial_sums(path, manifest, exchange, own))
    tickets = [exchange.post_allreduce(s, mean=False, bucket=i) for i, s in enumerate(sums) if s is not None]
    yield
    wait_all(tickets)
    worker = resized(states.to_numpy(own["worker"]), opt._worker.state(), sums, opt._worker.shard)
    own["worker"] = states.to_torch(worker)


def _partial_sums(path: Path, manifest: Manifest, exchange, own) -> list[np.ndarray | None]:
    held = lambda of_rank: held_back(states.to_numpy(of_rank["worker"]))
    sums = [None if rest is None else np.zeros(len(rest)) for rest in held(own)]
    if any(total is not None for total in sums):
        files = _Files(path, manifest)
        for rank in range(exchange.rank, manifest.world_size, exchange.size):
            for total, rest in zip(sums, held(files.tree(rank)["optimizer"]["gtcbmuf"]), strict=True):
                if total is not None and rest is not None:
                    total += rest
    return sums


def _apply(saved, model, opt, exact: bool) -> None:
    template = model.state_dict()  # its _metadata is that of the same model
    template.update(saved["model"])
    model.load_state_dict(template)
    opt.load_state_dict(saved["optimizer"])
    if not exact:
        opt._worker.restart_block(opt._model)
    elif saved["rng"] is not None:
        _set_generators(saved["rng"])


# -- random generators -----------------------------------------------------------------------------------


def _generators() -> dict[str, Any]:
    of_numpy = np.random.get_state(legacy=False)
    of_numpy["state"]["key"] = of_numpy["state"]["key"].astype(np.int64)  # torch < 2.3 has no uint32
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": of_numpy,
        "python": random.getstate(),
    }


def _set_generators(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"])
    np.random.set_state(saved["numpy"])
    random.setstate(saved["python"])


def _check_wrapped(opt) -> None:
    if not isinstance(opt, DistributedOptimizer):
        raise TypeError(f"opt is a {type(opt).__name__}: give the DistributedOptimizer")
