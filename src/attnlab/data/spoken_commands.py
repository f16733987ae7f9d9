"""Commands as people give them to a house, spoken by the many voices of eSpeak NG.

The engine (GPL-3) is no part of attnlab: it is loaded out of a wheel in the cache, in a process of its own, which makes
the recordings once. Shapes: N samples.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np

from attnlab.data.audio import RATE, Clip, resampled, to_int16
from attnlab.data.cache import DataError, Wheel, cache_root, kept, reading_from
from attnlab.data.source import SPLITS, split_of
from attnlab.data.speech import Speech, SpeechSource
from attnlab.ranges import PositiveInt, check_ranges

EDITION = 1  # of the sentences, the voices and the noise: others with each change of them
ENGINE_RATE = 22_050
INSTEAD = "pass data.path=WHEEL, a copy of it, or use data=speech data.path=FOLDER with recordings of your own"
SHARES = {"train": 0.8, "validation": 0.08, "test": 0.12}  # of the sentences
UTTERANCES = {"train": 1.0, "validation": 0.05, "test": 0.125}  # of each split, for one of the training part
ACCENTS = (
    *("gmw/en", "gmw/en-US", "gmw/en-US-nyc", "gmw/en-029", "gmw/en-GB-scotland", "gmw/en-GB-x-rp"),
    *("gmw/en-GB-x-gbclan", "gmw/en-GB-x-gbcwmd"),
)
SPEEDS, PITCHES, RANGES = (165, 230), (25, 75), (30, 70)  # words a minute; as the engine counts them, 50 being its own
NOISE, LEVEL = (5.0, 40.0), (-20.0, -1.0)  # decibels of speech over noise, and of the peak below full scale
MARGIN = RATE // 20  # of silence on either side

PLACES = ("kitchen", "bedroom", "bathroom", "hallway", "garage", "office", "living room", "dining room", "basement")
THINGS = ("lights", "lamp", "fan", "heater", "radio", "television", "speaker")
COVERS = ("blinds", "curtains", "window", "door", "shutters")
HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
TENS = ("ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DEGREES = ("fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "today", "tomorrow")
MUSIC = ("jazz", "blues", "rock", "opera", "piano music", "the news", "some music", "my favourite song")
CITIES = ("london", "paris", "berlin", "madrid", "oslo", "dublin", "boston", "toronto")
PEOPLE = ("anna", "peter", "maria", "david", "susan", "george", "my mother", "my brother")
GOODS = ("milk", "bread", "apples", "coffee", "rice", "butter", "tomatoes", "paper towels")
PATTERNS: tuple[tuple[str | tuple[str, ...], ...], ...] = (
    ("turn", ("on", "off"), "the", PLACES, THINGS),
    ("turn the", PLACES, THINGS, ("on", "off")),
    ("turn the", PLACES, THINGS, ("on", "off"), "at", HOURS),
    ("switch", ("on", "off"), "the", THINGS, "in the", PLACES),
    (("dim", "brighten"), "the", PLACES, "lights"),
    ("set the", PLACES, "lights to", TENS, "percent"),
    ("set the", PLACES, "heater to", DEGREES, "degrees"),
    (("open", "close"), "the", PLACES, COVERS),
    (("open", "close"), "the", COVERS, "at", HOURS),
    ("play", MUSIC, "in the", PLACES),
    ("set a timer for", (*HOURS, *TENS[1:6]), ("minutes", "hours")),
    ("wake me at", HOURS, ("today", "tomorrow")),
    ("wake me on", DAYS[:7], "at", HOURS),
    ("what is the weather in", CITIES, DAYS[7:]),
    ("will it rain on", DAYS[:7], "in", CITIES),
    (("call", "message"), PEOPLE, ("now", "at once", "tonight")),
    ("remind me to call", PEOPLE, "at", HOURS),
    ("add", GOODS, "to the shopping list"),
    ("take", GOODS, "off the shopping list"),
    ("buy", HOURS[1:], ("bottles of milk", "loaves of bread", "bags of rice", "boxes of apples")),
)


@dataclass(frozen=True)
class Utterance:
    """What is to be said, and how: a voice is an accent and a variant; speed, pitch and its range as the engine has
    them."""

    text: str
    voice: str
    speed: int
    pitch: int
    pitch_range: int


@check_ranges
class SpokenCommands(SpeechSource):
    """Commands of a grammar in the accents and voices of eSpeak NG, at many speeds and pitches, in noise.

    No voice and no sentence of a split is in another one; a voice's relatives (klatt, klatt2, ...) go with it. Of the
    families of voices by name, every sixth is to test and every twelfth to validate on. `path` is a copy of the wheel.
    utterances: of the training part; a twentieth as many validate, an eighth test. Raises DataError.
    """

    name = "spoken_commands"
    what = "commands spoken by eSpeak NG's voices (PyPI wheel espeakng-loader 0.2.4, fetched once; made in minutes)"
    size = "4,000 + 200 + 500 recordings of 1 to 3 seconds"
    licence = "its own sentences; the engine is GPL-3"
    fetched = True
    wheels: ClassVar[dict[tuple[str, str], Wheel]] = {
        ("Linux", "x86_64"): Wheel(
            "espeakng-loader", "0.2.4", "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d"
        ),
    }

    def __init__(self, path: str | Path | None = None, utterances: PositiveInt = 4000) -> None:
        self.path, self.utterances = path, utterances

    @property
    def wheel(self) -> Wheel:
        """The one for this machine. Raises DataError where none was tested."""
        machine = platform.system(), platform.machine()
        if machine not in self.wheels:
            known = ", ".join(" ".join(one) for one in self.wheels)
            raise DataError(
                f"data=spoken_commands is made on {known} alone, and this is {' '.join(machine)}: {INSTEAD}"
            )
        return self.wheels[machine]

    def version(self) -> str:
        said = f"{self.wheel.sha256} {self.utterances} {EDITION}"
        return hashlib.sha256(said.encode()).hexdigest()

    def read(self, cache: str | Path | None = None) -> dict[str, Speech]:
        engine = self._engine(cache)
        plans = {split: self._plan(engine, split) for split in SPLITS}
        spoken = iter(say(engine, [one for plan in plans.values() for one in plan]))
        return {split: _part(split, plan, spoken) for split, plan in plans.items()}

    def _engine(self, cache: str | Path | None) -> Path:
        """The folder with the library and its data, unpacked."""
        wheel = self.wheel.path(cache, self.path, INSTEAD)

        def unpack(folder: Path) -> None:
            with reading_from(wheel), zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)

        folder = cache_root(cache) / "engines" / f"espeak-ng-{self.wheel.sha256[:16]}"
        return kept(folder, unpack, lambda there: there / "espeakng_loader")

    def _plan(self, engine: Path, split: str) -> list[Utterance]:
        """What a split's voices say: every one as often as the others, and every sentence."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([SPLITS.index(split)])))
        said = sorted(text for text in set(sentences()) if split_of(text, SHARES) == split)
        voices = voices_of(engine)[split]
        count = max(1, round(self.utterances * UTTERANCES[split]))
        texts, speakers = _each_alike(said, count, random), _each_alike(voices, count, random)
        return [_drawn(text, voice, random) for text, voice in zip(texts, speakers, strict=True)]


def _each_alike(choices: Sequence[str], count: int, random: np.random.Generator) -> list[str]:
    """So many draws, each choice once before any comes again."""
    rounds = [random.permutation(len(choices)) for _ in range(-(-count // len(choices)))]
    return [choices[place] for place in np.concatenate(rounds)[:count]]


def _drawn(text: str, voice: str, random: np.random.Generator) -> Utterance:
    accent = ACCENTS[random.integers(len(ACCENTS))]
    speed, pitch, pitch_range = (int(random.integers(low, high + 1)) for low, high in (SPEEDS, PITCHES, RANGES))
    return Utterance(text, f"{accent}+{voice}", speed, pitch, pitch_range)


def sentences() -> Iterator[str]:
    """All that the grammar gives."""
    for pattern in PATTERNS:
        for words in product(*((slot,) if isinstance(slot, str) else slot for slot in pattern)):
            yield " ".join(words)


def voices_of(engine: Path) -> dict[str, list[str]]:
    """The variants that change the voice of any accent, by the split that they speak in."""
    variants = sorted(file.name for file in (engine / "espeak-ng-data" / "voices" / "!v").iterdir())
    places = {family: place for place, family in enumerate(sorted(set(map(family_of, variants))))}
    splits = ("test", "train", "train", "validation", *["train"] * 2, "test", *["train"] * 5)
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for variant in variants:
        found[splits[places[family_of(variant)] % len(splits)]].append(variant)
    return found


def family_of(voice: str) -> str:
    """What tells a voice from others but not from its variations: edward of edward2, anika of anikaRobot."""
    return re.sub(r"^anxious|robot$|[^a-z]", "", voice.lower()) or voice


def _part(split: str, plan: Sequence[Utterance], spoken: Iterator[np.ndarray]) -> Speech:
    """The utterances of a split in the order of its plan, each in noise of its own."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([len(SPLITS) + SPLITS.index(split)])))
    clips = []
    for number, one in enumerate(plan):
        heard_N = to_int16(in_noise(resampled(next(spoken), ENGINE_RATE), random))
        clips.append(Clip.of_samples(f"utterance {number + 1:,} of {split} ({one.voice}: {one.text})", heard_N))
    return Speech(clips, [one.text for one in plan], [one.voice.partition("+")[2] for one in plan])


def in_noise(speech_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Speech at a level of its own in noise, white or brown, from a margin before it to one behind it."""
    speech_N = np.pad(speech_N.astype(np.float64), MARGIN)
    noise_N = random.standard_normal(len(speech_N))
    if random.random() < 0.5:
        noise_N = np.cumsum(noise_N)
        noise_N -= np.linspace(noise_N[0], noise_N[-1], len(noise_N))  # no step at the ends
        noise_N -= noise_N.mean()
    decibels, level = random.uniform(*NOISE), random.uniform(*LEVEL)
    power, own = np.mean(speech_N**2), np.mean(noise_N**2)
    heard_N: np.ndarray = speech_N + noise_N * np.sqrt(power / own / 10 ** (decibels / 10))
    return heard_N * (10 ** (level / 20) / max(float(np.abs(heard_N).max()), 1e-9))


# --- the engine


def say(engine: Path, utterances: Sequence[Utterance]) -> list[np.ndarray]:
    """What the engine says, (N,) of 22,050 Hz each, full scale at 1. Raises DataError where it cannot be used.

    In a process of its own: what it says depends on what it has said before, and others may have used its generator.
    """
    order = sorted(range(len(utterances)), key=lambda place: utterances[place].voice)
    asked = json.dumps([asdict(utterances[place]) for place in order]).encode()
    program = f"from {__name__} import speak; speak()"
    result = subprocess.run([sys.executable, "-c", program, str(engine)], input=asked, capture_output=True, check=False)
    if result.returncode:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {result.returncode}"]
        raise DataError(f"the speech engine in {engine} does not work here ({lines[-1]}); {INSTEAD}")
    heard, rest = {}, memoryview(result.stdout)
    for place in order:
        count, rest = int.from_bytes(rest[:4], "little"), rest[4:]
        heard[place] = np.frombuffer(rest[: 2 * count], dtype="<i2").astype(np.float32) / 32768
        rest = rest[2 * count :]
    return [heard[place] for place in range(len(utterances))]


def speak() -> None:
    """The engine's own process: utterances in JSON come in, of each its number of samples and the samples go out."""
    engine = sys.argv[1]
    library = ctypes.CDLL(f"{engine}/libespeak-ng.so")
    heard: list[bytes] = []

    def take(samples: ctypes._Pointer[ctypes.c_short], count: int, events: object) -> int:
        heard.append(ctypes.string_at(samples, 2 * count) if samples and count > 0 else b"")
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(take)
    SYNCHRONOUS, NO_EXIT, UTF8 = 2, 0x8000, 1
    if library.espeak_Initialize(SYNCHRONOUS, 0, f"{engine}/espeak-ng-data".encode(), NO_EXIT) != ENGINE_RATE:
        sys.exit("it does not start")
    library.espeak_SetSynthCallback(callback)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    for one in json.load(sys.stdin.buffer):
        if library.espeak_SetVoiceByName(one["voice"].encode()):
            sys.exit(f"it has no voice {one['voice']}")
        for parameter, name in ((1, "speed"), (3, "pitch"), (4, "pitch_range")):
            library.espeak_SetParameter(parameter, one[name], 0)
        heard.clear()
        text = one["text"].encode()
        library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, UTF8, None, None)
        samples = b"".join(heard)
        sys.stdout.buffer.write((len(samples) // 2).to_bytes(4, "little") + samples)
