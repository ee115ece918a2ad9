#!/usr/bin/env python3
"""Build the speech set from recordings in Debian packages.

    python scripts/speech/build_dataset.py --full full.npz --work speech-work

The full set: voice prompts in five languages and game dialogues in two (4.4 hours). The
packages' licences apply to it (the dialogues are GPL), so keep it out of a repository.

    python scripts/speech/build_dataset.py --extract scripts/speech/extract.npz

The extract that comes with the project: prompts only; EXTRACT-LICENCE.md names their authors.

Needs Debian or Ubuntu with espeak-ng (apt-get install espeak-ng), a package list that is not too
old (apt-get update), and in Python: numpy, scipy, numba, torch and soundfile. The packages
themselves are downloaded and unpacked into the work folder, not installed. The same versions of
these on the same kind of processor give the same bytes.
"""

import argparse
import collections
import hashlib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speech import corpus, features, phones, store

RAREST_PHONE = 25  # occurrences: with fewer, an alignment model is not worth fitting
SHORTEST, LONGEST = 0.25, 20.0  # seconds of one utterance
UNSEEN_SPEAKERS = {"carlo-it", "other-cs", "other-nl"}  # Italian is thereby unseen as well
DEV_PERCENT, TEST_PERCENT = 7, 10
EXTRACT_STEP = 1.5  # nepers of band energy: coarser than needed, finer than the model can tell
EXTRACT_UNSEEN_PERCENT = 45  # of the unseen speaker's utterances: enough to measure an error


def split_of(utterance: corpus.Utterance) -> int:
    """The split an utterance belongs to: by its speaker, else by a hash of its id."""
    if utterance.speaker in UNSEEN_SPEAKERS:
        return store.UNSEEN
    percent = _percentile(utterance.id)
    if percent < TEST_PERCENT:
        return store.TEST
    return store.DEV if percent < TEST_PERCENT + DEV_PERCENT else store.TRAIN


def extract_of(prompts: store.Dataset) -> store.Dataset:
    """The prompts without many of the unseen speaker's, all of which the alignment learned from."""
    sampled = [_percentile(name) < EXTRACT_UNSEEN_PERCENT for name in prompts.ids]
    return prompts.select((prompts.split != store.UNSEEN) | np.array(sampled))


def _percentile(id: str) -> int:
    return int(hashlib.sha256(id.encode()).hexdigest(), 16) % 100


def build(utterances: list[corpus.Utterance], jobs: int) -> store.Dataset:
    """Features and aligned phone labels of every usable utterance.

    Each language has its own phone models in the alignment; in the labels, languages share the
    phones that are written alike, so that an unseen language's can be recognised at all.
    """
    from speech import align

    words = phones.phone_sequences(utterances, jobs)
    counts = collections.Counter(p for sentence in words for word in sentence for p in word)
    names = [phones.SILENCE] + sorted(p for p, count in counts.items() if count >= RAREST_PHONE)
    index = {name: i for i, name in enumerate(names)}
    kept, mels, chains = [], [], []
    for utterance, sentence in zip(utterances, words, strict=True):
        if not sentence or any(p not in index for word in sentence for p in word):
            continue
        samples = features.read_audio(utterance.audio)
        if not SHORTEST <= len(samples) / features.SAMPLE_RATE <= LONGEST:
            continue
        mel = features.log_mel(samples)
        chain = align.make_chain([[index[p] for p in word] for word in sentence])
        if len(mel) >= align.shortest(chain):  # else the text cannot be what was recorded
            kept.append(utterance)
            mels.append(mel)
            chains.append(chain)
    _say(f"{len(kept)} of {len(utterances)} utterances, {_minutes(map(len, mels)):.1f} min, "
         f"{len(names)} phones")
    labels = align.align(mels, [features.cepstra(mel) for mel in mels], chains, len(names),
                         report=_say)
    symbols = [phones.SILENCE] + sorted({phones.symbol(name) for name in names[1:]})
    shared = np.array([symbols.index(phones.symbol(name)) for name in names])
    return store.Dataset(
        features=np.concatenate(mels),
        labels=shared[np.concatenate(labels)],
        offsets=np.cumsum([0] + [len(mel) for mel in mels]),
        split=np.array([split_of(u) for u in kept]),
        ids=np.array([u.id for u in kept]),
        speakers=np.array([u.speaker for u in kept]),
        languages=np.array([u.language for u in kept]),
        phones=np.array(symbols),
    )


def _minutes(frames: Iterable[int]) -> float:
    return sum(frames) / features.FRAMES_PER_SECOND / 60


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def check_tools() -> None:
    """Raise `MissingToolError` now rather than after the download."""
    corpus.require_program("espeak-ng", "install it: apt-get install espeak-ng")
    for module in ("numba", "torch", "soundfile"):
        try:
            importlib.import_module(module)
        except ImportError:
            raise corpus.MissingToolError(f"the Python module '{module}' is missing; "
                                          f"pip install {module}") from None
        except OSError as error:  # soundfile without the C library that decodes WAV and Ogg
            raise corpus.MissingToolError(f"the Python module '{module}' does not load ({error}); "
                                          "for soundfile, apt-get install libsndfile1") from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--full", type=Path, metavar="OUT.npz", help="build the full set")
    target.add_argument("--extract", type=Path, metavar="OUT.npz", help="build the extract")
    parser.add_argument("--work", type=Path, default=Path("speech-work"),
                        help="folder for packages, 600 MB (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="espeak-ng processes at a time")
    arguments = parser.parse_args()
    try:
        check_tools()
        packages = corpus.PROMPT_PACKAGES
        if arguments.full:
            packages += corpus.DIALOGUE_PACKAGES
        unpacked = corpus.unpack_packages(packages, arguments.work)
        utterances = corpus.list_prompts(unpacked)
        if arguments.full:
            utterances += corpus.list_dialogues(unpacked)
        data = build(utterances, arguments.jobs)
    except corpus.MissingToolError as error:
        _say(f"build_dataset.py: {error}")
        return 1
    if arguments.extract:
        data = extract_of(data)
    store.write(arguments.full or arguments.extract, data,
                step=EXTRACT_STEP if arguments.extract else None)
    for number, name in enumerate(store.SPLIT_NAMES):
        frames = np.diff(data.offsets)[data.split == number]
        _say(f"{name}: {len(frames)} utterances, {_minutes(frames):.1f} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())
