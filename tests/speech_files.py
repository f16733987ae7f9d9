"""Small recordings that tests make for themselves: each word is a tone of its own."""

from pathlib import Path

import numpy as np
import soundfile

from attnlab.data.audio import RATE

TONES = {"one": 300, "two": 600, "three": 1100, "four": 1900, "five": 3100}
EACH = 0.16  # seconds a word


def tones(text: str, rate: int = RATE) -> np.ndarray:
    """Samples that say the words, in a little noise."""
    times = np.arange(round(EACH * rate)) / rate
    words = [0.4 * np.sin(2 * np.pi * TONES[word] * times) * np.hanning(len(times)) for word in text.split()]
    return np.concatenate(words) + 0.001 * np.random.default_rng(len(text)).standard_normal(len(words) * len(times))


def sentence(number: int, words: int) -> str:
    """One of many sentences of so many words."""
    random = np.random.default_rng(number)
    return " ".join(random.choice(list(TONES), words).tolist())


def write_recording(path: Path, text: str, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tones(text, rate), rate, subtype="PCM_16")
    return path


def write_folder(folder: Path, counts: dict[str, int], words: int = 3) -> Path:
    """A folder with so many recordings in each part, and a .txt file beside each."""
    number = 0
    for part, count in counts.items():
        for _ in range(count):
            file = write_recording(folder / part / f"{number:04}.wav", sentence(number, 1 + number % words))
            file.with_suffix(".txt").write_text(sentence(number, 1 + number % words) + "\n")
            number += 1
    return folder
