"""Phone sequences of texts, by espeak-ng."""

import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from .corpus import MissingToolError, Utterance, require_program

SILENCE = "sil"
VOICES = {"en": "en-us", "es": "es-419", "fr": "fr-fr", "it": "it", "ru": "ru", "cs": "cs",
          "nl": "nl"}

_NOT_SPOKEN = re.compile(r"[^\w\s'\-.,?!]")
_LANGUAGE_SWITCH = re.compile(r"\([a-z\-]+\)")
# Stress, length, half-length, syllabicity, palatalisation, nasalisation and tie marks: folding
# them leaves fewer classes with more speech each.
_MARKS = re.compile("[ˈˌːˑ̩ʲ͡\u0303\\-]")
# Symbols of espeak-ng that are not IPA or that double a letter for length.
_RESPELLED = {"ss": "s", 'u"': "ʉ"}


def symbol(name: str) -> str:
    """The IPA symbol in a phone's name, without its language."""
    return name.partition(":")[2] or name


def phone_words(utterance: Utterance) -> list[list[str]]:
    """The words of one utterance, each a list of phones named "language:IPA".

    Raises `MissingToolError` when espeak-ng is missing or does not know the language.
    """
    text = _NOT_SPOKEN.sub(" ", utterance.text)
    # After "--", since a text may begin with a dash.
    command = ["espeak-ng", "-q", "--ipa", "--sep=_", "-v", VOICES[utterance.language], "--", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingToolError(f"espeak-ng failed on voice {VOICES[utterance.language]}: "
                               f"{done.stderr.strip()}; install the package espeak-ng-data")
    return parse_ipa(done.stdout, utterance.language)


def parse_ipa(output: str, language: str) -> list[list[str]]:
    """Words of espeak-ng's `--ipa --sep=_` output, without prosodic marks."""
    words = []
    for word in _LANGUAGE_SWITCH.sub(" ", output).split():
        phones = [_MARKS.sub("", phone) for phone in word.split("_")]
        phones = [f"{language}:{_RESPELLED.get(phone, phone)}" for phone in phones if phone]
        if phones:
            words.append(phones)
    return words


def phone_sequences(utterances: Sequence[Utterance], jobs: int = 1) -> list[list[list[str]]]:
    """`phone_words` of every utterance, in order, by `jobs` espeak-ng processes at a time."""
    require_program("espeak-ng", "install it: apt-get install espeak-ng")
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(phone_words, utterances))
