"""The recordings and their texts: Debian packages fetched, unpacked and listed."""

import glob
import gzip
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROMPT_LANGUAGES = ("en", "es", "fr", "it", "ru")  # asterisk-core-sounds: CC-BY-SA and CC-BY
DIALOGUE_LANGUAGES = ("cs", "nl")  # fillets-ng-data: GPL
PROMPT_PACKAGES = tuple(
    f"asterisk-core-sounds-{language}{kind}" for language in PROMPT_LANGUAGES
    for kind in ("", "-wav")
)
DIALOGUE_PACKAGES = ("fillets-ng-data",) + tuple(
    f"fillets-ng-data-{language}" for language in DIALOGUE_LANGUAGES
)

_PROMPT_LINE = re.compile(r"([\w\-/]+)\s*:\s*(.+)")
_DIALOGUE = re.compile(
    r'dialogId\("(?P<name>[^"]+)",\s*"(?P<font>[^"]*)",\s*"(?:[^"\\]|\\.)*"\)'
    r'\s*dialogStr\("(?P<text>(?:[^"\\]|\\.)*)"\)'
)


class MissingToolError(RuntimeError):
    """A program, a package or a Python module the build needs is not there."""


@dataclass(frozen=True)
class Utterance:
    """One recording: `id` is unique in the set, `text` is what was said, as written."""

    id: str
    language: str
    speaker: str
    audio: Path
    text: str


def require_program(name: str, cure: str) -> None:
    """Raise `MissingToolError` with the cure when `name` is not on PATH."""
    if shutil.which(name) is None:
        raise MissingToolError(f"the program '{name}' is not on PATH; {cure}")


def unpack_packages(packages: tuple[str, ...], work: Path) -> Path:
    """Download and unpack Debian packages below `work`, skipping those already there.

    Nothing is installed, so this needs no root. Returns the folder with one sub-folder a package.
    Raises `MissingToolError` when apt-get or dpkg is missing or a package cannot be downloaded.
    """
    require_program("apt-get", "run this on Debian or Ubuntu (or in such a container)")
    require_program("dpkg", "run this on Debian or Ubuntu (or in such a container)")
    unpacked = work / "unpacked"
    unpacked.mkdir(parents=True, exist_ok=True)
    for package in packages:
        target = unpacked / package
        if target.exists():
            continue
        if not list(work.glob(f"{package}_*.deb")):
            _run(["apt-get", "download", "-q", package], work,
                 f"cannot download the package '{package}'; run 'apt-get update' as root, and "
                 "check that the package lists include Debian's main section")
        (archive,) = sorted(work.glob(f"{package}_*.deb"))[-1:]
        # Unpacked beside the target and renamed, so that an interrupted run leaves no half folder.
        partial = unpacked / f"{package}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _run(["dpkg", "-x", str(archive.resolve()), str(partial.resolve())], work,
             f"cannot unpack {archive}; delete it and run again")
        partial.rename(target)
    return unpacked


def _run(command: list[str], folder: Path, cure: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingToolError(f"{cure}\n{done.stderr.strip()}")


def list_prompts(unpacked: Path) -> list[Utterance]:
    """The asterisk prompts with speech and a text, in a fixed order."""
    found = []
    for language in PROMPT_LANGUAGES:
        texts = _only(f"{unpacked}/asterisk-core-sounds-{language}/usr/share/doc/*/"
                      f"core-sounds-{language}.txt.gz")
        folder = _only(f"{unpacked}/asterisk-core-sounds-{language}-wav/usr/share/asterisk/"
                       f"sounds/{language}_*")
        speaker = "-".join((folder.name.split("_")[-1].lower(), language))
        with gzip.open(texts, "rt", encoding="utf-8-sig") as lines:
            for line in lines:
                entry = _PROMPT_LINE.fullmatch(line.strip())
                # Brackets and parentheses stand for sounds without speech, as "[ascending tones]".
                if entry is None or entry[2][0] in "[(":
                    continue
                audio = folder / f"{entry[1]}.wav"
                if audio.exists() and "[" not in entry[2]:
                    found.append(Utterance(f"asterisk-{language}/{entry[1]}", language, speaker,
                                           audio, entry[2]))
    return _unique(found)


def list_dialogues(unpacked: Path) -> list[Utterance]:
    """The fillets dialogues with a recording and a text, in a fixed order.

    The two fish speak most of them; every other voice is put together as speaker "other".
    """
    found = []
    scripts = f"{unpacked}/fillets-ng-data/usr/share/games/fillets-ng/script"
    for language in DIALOGUE_LANGUAGES:
        sounds = Path(f"{unpacked}/fillets-ng-data-{language}/usr/share/games/fillets-ng/sound")
        for script in sorted(glob.glob(f"{scripts}/*/*dialogs_{language}.lua")):
            level = Path(script).parent.name
            for entry in _DIALOGUE.finditer(Path(script).read_text(encoding="utf-8")):
                audio = sounds / level / language / f"{entry['name']}.ogg"
                text = entry["text"].replace("\\n", " ").replace('\\"', "")
                if not audio.exists() or len(text) < 2 or "%" in text:
                    continue
                fish = next((f for f in ("small", "big") if f in entry["font"]), "other")
                found.append(Utterance(f"fillets-{language}/{level}/{entry['name']}", language,
                                       f"{fish}-{language}", audio, text))
    return _unique(found)


def _unique(utterances: list[Utterance]) -> list[Utterance]:
    """Each id once, at its first place."""
    return list({u.id: u for u in reversed(utterances)}.values())[::-1]


def _only(pattern: str) -> Path:
    found = sorted(glob.glob(pattern))
    if len(found) != 1:
        raise MissingToolError(
            f"expected one match of {pattern}, found {len(found)}: the package was unpacked only "
            "partly or has another layout; delete the work folder and run again"
        )
    return Path(found[0])
