"""gtcbmuf checkpoint inspect."""

import pytest
from test_checkpoint import STRATEGIES, save
from test_checkpoint_refusals import rewritten
from torch_runs import train_virtual, virtual

from gtcbmuf.cli import main


@pytest.fixture
def saved(tmp_path):
    nets = virtual("mlp", "sgd", *STRATEGIES["hybrid"])
    train_virtual(nets, 4)
    save(tmp_path / "run", nets, step=4)
    return tmp_path / "run"


def inspect(path, capsys):
    status = main(["checkpoint", "inspect", str(path)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_a_sound_checkpoint(saved, capsys):
    status, out, err = inspect(saved, capsys)
    assert (status, err) == (0, "")
    lines = {line.split()[0]: " ".join(line.split()) for line in out.splitlines()}
    assert lines["step"] == "step 4"
    assert lines["ranks"] == "ranks 4 in 2 groups: [0 1] [2 3]"
    assert lines["optimizer"] == "optimizer SGD"
    assert "Hybrid(gtc=GTC(threshold=0.01, " in lines["strategy"]
    assert "bmuf=BMUF(sync_period=3, " in lines["strategy"]
    assert lines["rank-00003.safetensors"].endswith("bytes sound")
    worker = "optimizer/gtcbmuf/worker"
    assert lines[f"{worker}/blocks/global_params"].endswith("F32 [103] all ranks")
    assert lines[f"{worker}/gradients/lanes/0/residual"].endswith("F32 [103] 4 ranks, each its own")
    assert "tree" not in lines


def test_a_damaged_file(saved, capsys):
    (file,) = saved.glob("data-*/rank-00001*")
    file.write_bytes(file.read_bytes()[:-1])
    status, out, err = inspect(saved, capsys)
    assert status == 2
    assert f"{file} is damaged: it has" in err and "damaged" in out
    file.unlink()
    status, _, err = inspect(saved, capsys)
    assert status == 2 and f"{file} cannot be read: No such file or directory" in err


def test_a_newer_one_and_none(saved, tmp_path, capsys):
    rewritten(saved, version=9)
    status, _, err = inspect(saved, capsys)
    assert status == 2 and "has version 9, this library reads 1" in err
    status, out, err = inspect(tmp_path / "nothing", capsys)
    assert (status, out) == (2, "")
    assert err == f"gtcbmuf checkpoint: {tmp_path}/nothing is no checkpoint: it has no manifest.json.\n"
