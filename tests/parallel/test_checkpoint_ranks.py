"""save and restore between real ranks: bits, disks that are full on one rank, damage that one rank sees."""

import contextlib
import os
import resource

import numpy as np
import pytest
import torch
import torch_oracle as oracle
from torch_runs import results, train_rank, train_virtual, virtual, wrapped

import gtcbmuf.torch as hvd
from gtcbmuf.errors import FileError, MismatchError
from gtcbmuf.simulate.virtual import virtual_world
from gtcbmuf.torch import checkpoint

GTC = hvd.GTC(threshold=0.01, dense_below=0)
BLOCK = hvd.BMUF(sync_period=3)


@pytest.fixture(autouse=True, scope="module")
def _init():
    hvd.init()


def strategies(size):
    """name -> (strategy, groups of virtual workers)"""
    members = [list(range(g, size, 2)) for g in range(min(2, size))]
    return {"dense": (hvd.Dense(), [list(range(size))]), "gtc": (GTC, [list(range(size))]),
            "owners": (hvd.GTC(threshold=0.01, dense_below=0, exchange="owners"), [list(range(size))]),
            "bmuf": (BLOCK, [[r] for r in range(size)]),
            "hybrid": (hvd.Hybrid(GTC, BLOCK, groups=members), members)}  # fmt: skip


def new(comm, name, optimizer="sgd", model="mlp"):
    return wrapped(model, optimizer, strategies(comm.size)[name][0])


def all_same(comm, value):
    return len(set(comm.allgather(value))) == 1


@pytest.mark.parametrize("optimizer", oracle.OPTIMIZERS)
@pytest.mark.parametrize("name", strategies(2))
def test_a_resumed_run_has_the_bits_of_one_that_never_saved(comm, shared_tmp_path, name, optimizer):
    net, opt = new(comm, name, optimizer)
    wanted = train_rank(net, opt, comm.rank, 8)
    opt.remove_hooks()
    net, opt = new(comm, name, optimizer)
    path = train_rank(net, opt, comm.rank, 2)
    for step in 2, 4:  # the second in place of the first
        hvd.save(shared_tmp_path / "run", net, opt, step=step, extra={"rank": comm.rank}, rng=True)
        path += train_rank(net, opt, comm.rank, 2, first=step)
    opt.remove_hooks()
    net, opt = new(comm, name, optimizer)
    again = hvd.restore(shared_tmp_path / "run", net, opt)
    assert again == (4, {"rank": comm.rank}, True)
    path[4:] = train_rank(net, opt, comm.rank, 4, first=4)
    assert np.array_equal(path, wanted)
    opt.remove_hooks()


@contextlib.contextmanager
def short_files(limit):
    """A disk on which no file may be longer: write fails in the system, as it does on a full one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_on_one_rank(comm, shared_tmp_path):
    net, opt = new(comm, "gtc")
    train_rank(net, opt, comm.rank, 3)
    hvd.save(shared_tmp_path, net, opt, step=3)
    before = sorted(os.listdir(shared_tmp_path))
    wanted = oracle.flat(net)
    train_rank(net, opt, comm.rank, 1, first=3)
    odd = comm.size - 1
    full = short_files(200) if comm.rank == odd else contextlib.nullcontext()
    with full, pytest.raises(FileError, match="File too large") as caught:
        hvd.save(shared_tmp_path, net, opt, step=4)
    assert all_same(comm, str(caught.value))
    assert comm.size == 1 or str(caught.value).startswith(f"rank {odd} of {comm.size}: ")
    assert sorted(os.listdir(shared_tmp_path)) == before
    assert hvd.restore(shared_tmp_path, net, opt).step == 3
    assert np.array_equal(oracle.flat(net), wanted)
    comm.barrier()
    hvd.save(shared_tmp_path, net, opt, step=3)  # and the exchange is still there
    opt.remove_hooks()


def test_a_damaged_file_of_one_rank_is_refused_by_all(comm, shared_tmp_path):
    net, opt = new(comm, "hybrid")
    train_rank(net, opt, comm.rank, 4)
    hvd.save(shared_tmp_path, net, opt, step=4)
    odd = comm.size - 1
    if comm.rank == odd:
        (file,) = shared_tmp_path.glob(f"data-*/rank-{odd:05d}.safetensors")
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    comm.barrier()
    opt.remove_hooks()
    net, opt = new(comm, "hybrid")
    before = oracle.flat(net), str(opt.state_dict())
    with pytest.raises(FileError, match=f"rank-{odd:05d}.safetensors is damaged") as caught:
        hvd.restore(shared_tmp_path, net, opt)
    assert all_same(comm, str(caught.value))
    assert np.array_equal(oracle.flat(net), before[0]) and str(opt.state_dict()) == before[1]
    opt.remove_hooks()


def test_another_model_on_one_rank(comm, shared_tmp_path):
    net, opt = new(comm, "dense")
    hvd.save(shared_tmp_path, net, opt, step=0)
    opt.remove_hooks()
    odd = comm.rank == comm.size - 1
    net, opt = new(comm, "dense", model="lstm" if odd else "mlp")
    before = oracle.flat(net)
    with pytest.raises(MismatchError, match="another model: it has no 'lstm.weight_ih_l0'") as caught:
        hvd.restore(shared_tmp_path, net, opt)
    assert all_same(comm, str(caught.value))
    assert np.array_equal(oracle.flat(net), before)
    opt.remove_hooks()


def test_ranks_that_do_not_share_a_disk(comm, tmp_path, shared_tmp_path):
    net, opt = new(comm, "dense")
    if comm.size == 1:
        pytest.skip("needs at least 2 ranks")
    with pytest.raises(MismatchError, match=r"save: .*path is") as caught:
        hvd.save(tmp_path / str(comm.rank), net, opt, step=0)
    assert all_same(comm, str(caught.value))
    os.chdir(tmp_path)  # of each rank its own: the same name, another place
    with pytest.raises(FileError, match="No such file|must be on a file system") as caught:
        hvd.save("run", net, opt, step=0)
    assert all_same(comm, str(caught.value))
    opt.remove_hooks()


@pytest.mark.parametrize("name", ["gtc", "bmuf", "hybrid"])
def test_a_checkpoint_of_another_number_of_ranks(comm, shared_tmp_path, name):
    """Saved by virtual ranks, one more than are here."""
    strategy, members = strategies(comm.size + 1)[name]
    nets = virtual("mlp", "sgd", strategy, members)
    train_virtual(nets, 4)
    if comm.rank == 0:
        exchanges = [groups.world for groups in virtual_world(len(nets))]
        results([checkpoint._save(e, shared_tmp_path, net, opt, 4, None, False)
                 for e, (net, opt) in zip(exchanges, nets)])  # fmt: skip
    comm.barrier()
    net, opt = new(comm, name)
    assert hvd.restore(shared_tmp_path, net, opt) == (4, None, False)
    saved, here = ([o._worker.state() for _, o in n] for n in (nets, [(net, opt)]))
    if name != "bmuf":
        old = sum(s["gradients"]["lanes"][0]["residual"].astype(np.float64) for s in saved)
        own = here[0]["gradients"]["lanes"][0]["residual"].astype(np.float64)
        np.testing.assert_allclose(sum(comm.allgather(own)), old, rtol=1e-6, atol=1e-12)
    if name != "gtc":
        for vector in "global_params", "block_update":
            assert np.array_equal(here[0]["blocks"][vector], saved[0]["blocks"][vector])
    train_rank(net, opt, comm.rank, 4, first=4)
    opt.finalize()
    assert all_same(comm, oracle.flat(net).tobytes())
    opt.remove_hooks()


def test_no_checkpoint_yet(comm, shared_tmp_path):
    net, opt = new(comm, "dense")
    assert hvd.restore(shared_tmp_path / "run", net, opt, missing_ok=True) is None
    with pytest.raises(FileError, match="run is no checkpoint"):
        hvd.restore(shared_tmp_path / "run", net, opt)
    assert torch.equal(torch.cat([p.flatten() for p in net.parameters()]), torch.from_numpy(oracle.flat(net)))
    opt.remove_hooks()
