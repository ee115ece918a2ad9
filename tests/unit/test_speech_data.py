"""The speech set of the demo: its extract, its sequences and how workers share them; alignment and model."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from speech import data, defaults, model, phones, store
from speech_sets import small_path  # noqa: F401


@pytest.fixture(scope="module")
def extract():
    return store.read(data.EXTRACT)


@pytest.fixture(scope="module")
def speech():
    return data.load()


@pytest.fixture
def one_thread():
    """More threads only wait for each other on layers this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- the extract ----------------------------------------------------------------------------------


def test_splits_share_no_utterance_and_unseen_shares_no_speaker(extract):
    assert len(set(extract.ids)) == len(extract.ids)
    members = [extract.utterances(split) for split in range(4)]
    assert all(len(m) > 50 for m in members)
    assert sorted(np.concatenate(members)) == list(range(len(extract.ids)))
    heard = set(extract.speakers[extract.split == store.TRAIN])
    assert heard.isdisjoint(extract.speakers[extract.split == store.UNSEEN])
    assert heard.issuperset(extract.speakers[extract.split == store.TEST])


def test_extract_holds_prompts_only_and_names_each_source(extract):
    licence = Path(data.EXTRACT).with_name("EXTRACT-LICENCE.md").read_text()
    sources = {name.split("/")[0] for name in extract.ids}
    assert len(sources) == 5
    assert all(f"`{source}/" in licence for source in sources)


def test_extract_labels_are_phones(extract):
    used = np.bincount(extract.labels, minlength=len(extract.phones))
    assert len(used) == len(extract.phones)
    assert extract.phones[0] == phones.SILENCE
    assert 0.02 < used[0] / used.sum() < 0.3
    assert np.isfinite(extract.features).all()


def test_split_is_reported_in_full_by_the_evaluation_batches(speech):
    for split in ("dev", "test", "unseen"):
        chosen = speech.split == store.SPLIT_NAMES.index(split)
        expected = (np.diff(speech.offsets)[chosen] // data.STACK).sum()
        found = sum(int((y != data.IGNORE).sum()) for _, y in speech.evaluation(split))
        assert found == expected


def test_normalisation_uses_training_only(speech):
    train = np.repeat(speech.split == store.TRAIN, np.diff(speech.offsets))
    features = speech.features.numpy()
    np.testing.assert_allclose(features[train].std(0), 1, atol=1e-3)
    means = np.add.reduceat(features, speech.offsets[:-1]) / np.diff(speech.offsets)[:, None]
    np.testing.assert_allclose(means, 0, atol=1e-3)


# -- sequences ------------------------------------------------------------------------------------


def plain_copies(speech: data.Speech, utterance: int, shift: int):
    """Stacked inputs and labels of one shifted copy, by loops."""
    start, stop = speech.offsets[utterance] + shift, speech.offsets[utterance + 1]
    inputs, labels = [], []
    for t in range(start, stop - 2, 3):
        rows = [speech.features[t].numpy(), speech.features[t + 1].numpy(),
                speech.features[t + 2].numpy()]
        inputs.append(np.concatenate(rows))
        labels.append(int(speech.labels[t + 1]))
    return inputs, labels


def plain_sequences(speech: data.Speech):
    """All training sequences as (inputs (20, 120), targets (20,)), by loops."""
    for utterance in np.flatnonzero(speech.split == store.TRAIN):
        for shift in range(3):
            inputs, labels = plain_copies(speech, utterance, shift)
            for begin in range(0, len(inputs), 18):
                steps = range(begin, begin + 20)
                x = [inputs[min(t, len(inputs) - 1)] for t in steps]
                y = [data.IGNORE] * 2 + [
                    labels[t - 2] if t - 2 < len(labels) else data.IGNORE for t in steps[2:]
                ]
                yield np.array(x), np.array(y)


def test_sequences_equal_a_plain_construction(small_path):
    speech = data.load(small_path)
    expected = list(plain_sequences(speech))
    assert len(speech) == len(expected)
    inputs, targets = speech.batch(np.arange(len(speech)))
    assert inputs.shape == (20, len(speech), 120) and inputs.dtype == torch.float32
    assert targets.shape == (20, len(speech)) and targets.dtype == torch.int64
    for s, (x, y) in enumerate(expected):
        np.testing.assert_array_equal(inputs[:, s], x)
        np.testing.assert_array_equal(targets[:, s], y)


def test_each_low_rate_frame_is_a_target_once(small_path):
    speech = data.load(small_path)
    _, targets = speech.batch(np.arange(len(speech)))
    lengths = np.diff(speech.offsets)[speech.split == store.TRAIN]
    expected = sum((length - shift) // 3 for length in lengths for shift in range(3))
    assert int((targets != data.IGNORE).sum()) == expected


def test_batch_takes_the_asked_sequences_in_order(speech):
    index = np.array([5, 0, len(speech) - 1, 5])
    inputs, targets = speech.batch(index)
    for place, one in enumerate(index):
        x, y = speech.batch([one])
        assert torch.equal(inputs[:, place], x[:, 0]) and torch.equal(targets[:, place], y[:, 0])
    with pytest.raises(IndexError):
        speech.batch([len(speech)])


def test_evaluation_is_the_unshifted_copy_delayed(small_path):
    speech = data.load(small_path)
    for split in ("dev", "test", "unseen"):
        (utterance,) = np.flatnonzero(speech.split == store.SPLIT_NAMES.index(split))
        x, y = plain_copies(speech, utterance, 0)
        ((inputs, targets),) = speech.evaluation(split)
        np.testing.assert_array_equal(inputs[:, 0], x + x[-1:] * 2)
        assert targets[:, 0].tolist() == [data.IGNORE] * 2 + y


# -- order and shards -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 6))
def test_shards_partition_the_order(size):
    order = data.epoch_order(1000, seed=3, epoch=1)
    parts = [data.shard(order, rank, size) for rank in range(size)]
    together = np.concatenate(parts)
    assert len(together) == len(order)
    np.testing.assert_array_equal(np.sort(together), np.arange(1000))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_workers_together_take_consecutive_pieces(size):
    batch = 8
    order = data.epoch_order(1000, seed=0, epoch=0, multiple=4 * batch)
    assert len(order) == 992
    parts = [data.shard(order, rank, size) for rank in range(size)]
    for step in range(len(order) // (batch * size)):
        taken = np.concatenate([part[step * batch:(step + 1) * batch] for part in parts])
        piece = order[step * batch * size:(step + 1) * batch * size]
        assert sorted(taken) == sorted(piece)


def test_every_strategy_sees_the_same_samples():
    for strategy in defaults.STRATEGIES.values():
        assert defaults.MULTIPLE % (defaults.BATCH * strategy.workers) == 0
        assert strategy.workers % strategy.group_size == 0


def test_learning_rate_rises_to_its_peak_and_decays():
    rates = [defaults.learning_rate(2.0, progress / 100) for progress in range(101)]
    assert rates[0] == 0 and rates[-1] == pytest.approx(2.0 * defaults.FINAL)
    assert max(rates) == pytest.approx(2.0)
    peak = rates.index(max(rates))
    assert peak == round(100 * defaults.WARM_UP)
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_order_depends_on_seed_and_epoch_only():
    orders = [data.epoch_order(500, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4
    np.testing.assert_array_equal(orders[0], data.epoch_order(500, 0, 0))


def test_shard_refuses_a_rank_outside():
    with pytest.raises(ValueError, match="rank 2"):
        data.shard(np.arange(4), 2, 2)


# -- alignment ------------------------------------------------------------------------------------


def plain_best(scores, phones_in_order, optional) -> float:
    """Score of the best path, by trying every way to leave out silences and divide the frames."""
    frames, best = len(scores), -np.inf
    choices = [(True, False) if o else (True,) for o in optional]
    for kept in itertools.product(*choices):
        positions = [3 * p + k for p in range(len(phones_in_order)) if kept[p] for k in range(3)]
        for cuts in itertools.combinations(range(1, frames), len(positions) - 1):
            borders = (0, *cuts, frames)
            spans = zip(positions, itertools.pairwise(borders), strict=True)
            best = max(best, sum(scores[a:b, s].sum() for s, (a, b) in spans))
    return best


def test_viterbi_finds_the_best_of_all_paths():
    align = pytest.importorskip("speech.align")
    chain = align.make_chain([[4], [2]])
    assert chain.states.tolist() == [0, 1, 2, 12, 13, 14, 0, 1, 2, 6, 7, 8, 0, 1, 2]
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.normal(size=(10, len(chain.states)))
        path, score = align.viterbi(scores, chain.skips)
        # All silences may be left out: those at the ends by starting and stopping beside them.
        assert score == pytest.approx(plain_best(scores, range(5), [True, False] * 2 + [True]))
        assert score == pytest.approx(scores[np.arange(10), path].sum())


# -- model and phones -----------------------------------------------------------------------------


def test_model_learns_and_its_error_is_counted_by_frame(small_path, one_thread):
    speech = data.load(small_path)
    torch.manual_seed(0)
    network = model.AcousticModel(speech.inputs, speech.classes, hidden=16)
    batches = [speech.batch(np.arange(len(speech)))]
    before = model.frame_error_rate(network, batches)
    wrong = total = 0
    logits = network(batches[0][0])
    for guess, target in zip(logits.argmax(-1).flatten(), batches[0][1].flatten(), strict=True):
        if target != data.IGNORE:
            total += 1
            wrong += int(guess != target)
    assert before == wrong / total
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(30):
        optimizer.zero_grad()
        model.cross_entropy(network(batches[0][0]), batches[0][1]).backward()
        optimizer.step()
    assert model.frame_error_rate(network, batches) < before - 0.2
    with pytest.raises(ValueError, match="empty"):
        model.frame_error_rate(network, [])


def test_ipa_is_parsed_without_marks_and_language_switches():
    parsed = phones.parse_ipa("(en)_l_ˈɛ_t_s_(fr) ɡ_ˈo_ː ʁ_ɑ̃\n", "fr")
    assert parsed == [["fr:l", "fr:ɛ", "fr:t", "fr:s"], ["fr:ɡ", "fr:o"], ["fr:ʁ", "fr:ɑ"]]
