"""What runs hear: recordings longer than a window in pieces, a published vocabulary by its timestamps, bad input in one message."""

import json
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.huggingface import save_whisper
from tests.speech_files import tones, write_folder, write_recording
from transformers import (
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    pipeline,
)
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from attnlab.cli.main import main
from attnlab.config import UsageError
from attnlab.data import BPE, Character, LogMel, PretrainedTokenizer
from attnlab.data.audio import RATE
from attnlab.data.special_tokens import END, START
from attnlab.data.speech_data import whisper_tokens
from attnlab.data.vocabulary import Vocabulary
from attnlab.generation.transcription import TranscriptionOptions, transcribe
from attnlab.models import Whisper
from attnlab.runs import transcribed
from attnlab.runs.trained import load_run
from attnlab.runs.transcribed import Transcriber, pieces

LETTERS = Character().train("one two three four five ")


def published():
    """A tokenizer with Whisper's special tokens behind those of text."""
    from tokenizers import AddedToken, Tokenizer

    library = Tokenizer.from_str(BPE(256).train("one two three").rules)
    texts = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|nospeech|>"]
    texts += ["<|notimestamps|>", *(f"<|{number / 50:.2f}|>" for number in range(31))]
    library.add_special_tokens([AddedToken(text, special=True) for text in texts])
    told = {"suppress_tokens": [3, 4], "begin_suppress_tokens": [5]}
    special = {"eos_token": "<|endoftext|>", "bos_token": "<|startoftranscript|>"}
    return PretrainedTokenizer(library.get_vocab_size(), library.to_str(), special, generation=told)


@pytest.fixture
def hearing(monkeypatch):
    """Makes what hears with a tokenizer and a random model of windows of 0.6 s."""

    def build(tokenizer, model=None):
        torch.manual_seed(0)
        size = Vocabulary(tokenizer).size
        model = model or Whisper(size, 20, 60, 16, d_model=16, num_heads=2, num_layers=1)
        monkeypatch.setattr(transcribed, "load_model", lambda directory, checkpoint: (model, tokenizer))
        return Transcriber("run")

    return build


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60_000), st.integers(4000, 20_000))
def test_pieces_follow_each_other_and_fit_into_the_window(count, window):
    samples = np.random.default_rng(count).standard_normal(count)
    found = pieces(samples, window)
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == count
    assert all(0 < end - start <= window for start, end in found)
    assert all(end - start >= window // 2 for start, end in found[:-1])


def test_a_long_recording_is_cut_between_words(hearing):
    words = ["one", "two", "three", "four", "five", "one"]
    samples = np.concatenate([np.concatenate([tones(word), np.zeros(RATE // 5)]) for word in words])
    found = hearing(LETTERS).hear(samples)
    assert (found[0].start, found[-1].end) == (0.0, len(samples) / RATE)
    each = 0.36  # a word and the silence behind it
    for one in found[:-1]:
        assert 0.16 <= one.end % each <= each  # within a silence


def test_what_is_heard_in_pieces_is_what_is_heard_in_each_alone(hearing):
    run, samples = hearing(LETTERS), tones("one two three four five one two three")
    together = run.hear(samples)
    assert len(together) > 1
    for one in together:
        alone = run.hear(samples[round(one.start * RATE) : round(one.end * RATE)])
        assert [found.text for found in alone] == [one.text]


def test_own_tokens_are_a_start_and_an_end(hearing):
    tokens = hearing(LETTERS).tokens
    assert (tokens.start, tokens.end, tokens.first_timestamp) == (START, END, None)
    assert tokens.prompt(timestamps=False) == [START]


def test_a_published_vocabulary_is_decoded_by_its_rules(hearing):
    tokenizer = published()
    run, samples = hearing(tokenizer), tones("one two three four five one two")
    tokens = run.tokens
    assert tokens == whisper_tokens(tokenizer, tokenizer.vocabulary_size)
    assert (tokens.suppressed, tokens.suppressed_first) == ((3, 4), (5,))
    assert tokens.first_timestamp == tokenizer._library.token_to_id("<|0.00|>")
    found = run.hear(samples)
    expected = transcribe(run.model, run.log_mel.of_recording(samples), tokens, TranscriptionOptions())
    assert [(one.start, one.end) for one in found] == [(one.start, one.end) for one in expected]
    assert all("<|" not in one.text for one in found)


def test_what_hears_nothing_is_refused(hearing):
    with pytest.raises(UsageError, match=r"a run of Linear hears nothing; give one of task=transcription"):
        hearing(LETTERS, torch.nn.Linear(1, 1))
    run = hearing(LETTERS)
    with pytest.raises(ValueError, match=r"this model knows one language"):
        run.hear(tones("one"), TranscriptionOptions(language="de"))


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_transcribes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "speech", {"train": 12, "validation": 3, "test": 4})
    words = ["model=whisper", "data=speech", f"data.path={folder}", "data.seconds=0.6", "data.num_mels=20"]
    words += ["data.batch_size=4", "model.d_model=16", "model.num_heads=2", "model.num_layers=1", "trainer.max_steps=3"]
    assert main(["train", *words, "progress=off", "trainer.threads=1", f"run_dir={tmp_path / 'run'}"]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["recordings"] == {"train": 12, "validation": 3, "test": 4}
    file = write_recording(tmp_path / "a.wav", "one two three four five one", rate=8000)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    (tmp_path / "text.wav").write_text("no sound")
    capsys.readouterr()
    transcribe_with = partial(lambda *given: main(["transcribe", str(tmp_path / "run"), *given]))
    assert transcribe_with(str(file), "--timestamps") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert lines[0].startswith("[0.00 -> 0.")
    assert transcribe_with(str(file), str(file)) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [str(file)] * 2
    for words, message in {
        "0,warm": "--temperatures must be numbers with commas between them, such as 0,0.2, got '0,warm'",
        "-1": "temperatures",
    }.items():
        assert transcribe_with(str(file), f"--temperatures={words}") in (1, 2)
        assert message in capsys.readouterr().err
    for name, message in {
        "none.wav": "has no sound",
        "text.wav": "cannot be read as audio",
        "x.wav": "does not exist",
    }.items():
        assert transcribe_with(str(tmp_path / name)) in (1, 2)
        assert message in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert {"test/wer", "test/cer", "test/loss"} <= json.loads(capsys.readouterr().out).keys()


# --- published models on data of one's own

SMALL = ("data.seconds=1", "data.num_mels=20", "data.batch_size=4", "data.max_length=40")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The folder of a tiny multilingual Whisper of transformers, and one of recordings."""
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "speech", {"train": 8, "validation": 3, "test": 4})
    return save_whisper(tmp_path / "published"), folder


def imported(there, *more):
    published, folder = there
    words = ["data=speech", f"data.path={folder}", *SMALL, *more]
    run = published.parent / "run"
    assert main(["import", str(published), *words, f"run_dir={run}"]) == 0
    return run


def test_a_published_model_learns_and_is_evaluated_behind_its_own_prompt(there, capsys):
    """Labels of transformers' tokenizer, and the loss of its model on them."""
    parts, task = load_run(imported(there, "data.language=de"), "last")
    (batch,) = parts.data.evaluation_loader("test")
    model = WhisperForConditionalGeneration.from_pretrained(there[0]).eval()
    tokenizer = WhisperTokenizer.from_pretrained(there[0], language="de", task="transcribe")
    said = [parts.data.references("test")[row] for row in batch["ids"].tolist()]
    labels = [tokenizer(text).input_ids[1:] for text in said]  # a collator takes the start off
    padded = torch.tensor([row + [-100] * (max(map(len, labels)) - len(row)) for row in labels])
    assert torch.equal(batch["targets"], padded)
    start, end = model.config.decoder_start_token_id, model.config.pad_token_id
    assert torch.equal(batch["tokens_in"], shift_tokens_right(padded, end, start))
    assert tokenizer.convert_ids_to_tokens(batch["tokens_in"][0, :4].tolist()) == [
        *("<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>")
    ]
    extract = WhisperFeatureExtractor.from_pretrained(there[0])
    part = parts.data.split("test")
    clips = [part.clip(row) for row in batch["ids"].tolist()]
    features = extract(clips, sampling_rate=RATE, return_tensors="pt").input_features
    torch.testing.assert_close(batch["features"], features, rtol=0, atol=1e-4)
    with torch.no_grad():
        _, tokens, beside = task.loss_sums(batch)
        expected = model(features, labels=padded).loss
        heard = task.transcribe_features(batch["features"])
        found = model.generate(
            features, language="de", task="transcribe", begin_suppress_tokens=None, max_new_tokens=36
        )
    assert float(beside["loss"] / tokens) == pytest.approx(float(expected), rel=1e-4)
    assert heard == [[token for token in row if token != end] for row in found.tolist()]


def test_a_multilingual_model_is_told_which_language_is_spoken(there, capsys):
    published, folder = there
    for more, message in {
        (): "data.language=None: there is no such language; accepted: en, zh, de",
        ("data.language=fr",): "data.language=fr: there is no such language; accepted: en, zh, de",
        ("data.language=de", "data.max_length=4"): "data.max_length must be at least 5",
    }.items():
        words = ["data=speech", f"data.path={folder}", *SMALL, *more]
        assert main(["import", str(published), *words, f"run_dir={published.parent / 'run'}"]) in (1, 2)
        assert message in capsys.readouterr().err


def exported(run, capsys):
    """The folder of a run's export, and what was said."""
    assert main(["export", str(run), "--to", str(run.parent / "out")]) == 0
    return run.parent / "out", capsys.readouterr()


def test_a_published_model_is_exported_whole(there, capsys):
    """transformers' pipeline loads the folder and hears what it hears with the published one."""
    out, said = exported(imported(there, "data.language=de"), capsys)
    assert "note: " not in said.err
    first, second = (pipeline("automatic-speech-recognition", model=str(folder)) for folder in (there[0], out))
    samples = tones("one two three four five")
    asked = {"language": "de", "num_beams": 1, "max_new_tokens": 20}
    assert first(samples, generate_kwargs=asked) == second(samples, generate_kwargs=asked)
    with_times = [each(samples, return_timestamps=True, generate_kwargs=asked) for each in (first, second)]
    assert with_times[0] == with_times[1]
    assert type(second.tokenizer).__name__ == "WhisperTokenizer"
    features = second.feature_extractor([samples], sampling_rate=RATE, return_tensors="pt").input_features
    torch.testing.assert_close(LogMel(20, 1.0)([samples]), features, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "tokenizer"), [(1, "bpe"), (0.6, "byte")])
def test_a_trained_run_hears_the_same_after_export_and_import(seconds, tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "speech", {"train": 12, "validation": 3, "test": 4})
    data = ["data=speech", f"data.path={folder}", f"data.seconds={seconds}", "data.num_mels=20", "data.max_length=24"]
    words = ["model=whisper", *data, f"tokenizer={tokenizer}", "model.d_model=16", "model.num_heads=2"]
    words += [
        "model.num_layers=1",
        "trainer.max_steps=60",
        "data.batch_size=4",
        "optimizer.lr=0.005",
        "schedule=constant",
    ]
    run, again = tmp_path / "run", tmp_path / "again"
    assert main(["train", *words, "progress=off", "trainer.threads=1", f"run_dir={run}"]) == 0
    out, said = exported(run, capsys)
    assert "speech pipeline decodes by the special tokens of a published Whisper" in said.err
    assert ("no preprocessor_config.json; train with" in said.err) == (seconds == 0.6)
    assert main(["import", str(out), *data, f"run_dir={again}"]) == 0
    first, second = (Transcriber(place).hear(tones("one two three four five one two")) for place in (run, again))
    assert first == second
    assert any(one.text for one in first)
    capsys.readouterr()
    figures = []
    for place in (run, again):
        assert main(["evaluate", str(place)]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[0]["test/loss"] == pytest.approx(figures[1]["test/loss"], rel=1e-5)
    assert figures[0]["test/wer"] == figures[1]["test/wer"]
    if seconds == 1:
        features = WhisperFeatureExtractor.from_pretrained(out)(tones("one"), sampling_rate=RATE, return_tensors="pt")
        model, written = WhisperForConditionalGeneration.from_pretrained(out), AutoTokenizer.from_pretrained(out)
        heard = written.decode(model.generate(**features, num_beams=1)[0], skip_special_tokens=True)
        assert heard.split() == " ".join(one.text for one in Transcriber(run).hear(tones("one"))).split()
