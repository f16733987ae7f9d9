"""Sources of speech: folders, tables and the hub's format, and what may be wrong with each."""

import json

import numpy as np
import pytest
from tests.speech_files import sentence, tones, write_folder, write_recording

from attnlab.data import DataError, HubSpeech, SpeechFiles
from attnlab.data.source import split_of
from attnlab.data.spoken_commands import SHARES, family_of, in_noise, sentences


def said(parts):
    return {split: part.transcripts for split, part in parts.items()}


def write_table(folder, name, rows):
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        delimiter = "," if path.suffix == ".csv" else "\t"
        lines = [list(rows[0]), *(row.values() for row in rows)]
        path.write_text("".join(delimiter.join(line) + "\n" for line in lines))
    return path


def test_a_folder_with_parts(tmp_path):
    source = SpeechFiles(write_folder(tmp_path, {"train": 4, "val": 2, "test": 3}))
    parts = source.read()
    assert {split: len(part) for split, part in parts.items()} == {"train": 4, "validation": 2, "test": 3}
    assert parts["test"].transcripts == [sentence(number, 1 + number % 3) for number in (6, 7, 8)]
    np.testing.assert_allclose(parts["test"].clips[0].read(), tones(sentence(6, 1)), atol=1e-4)


def test_a_folder_without_parts_is_split_by_what_is_said(tmp_path):
    write_folder(tmp_path, {"a": 30, "b": 30}, words=2)
    parts = SpeechFiles(tmp_path, split=(0.5, 0.25, 0.25)).read()
    assert sum(map(len, parts.values())) == 60
    train, validation, test = (set(texts) for texts in said(parts).values())
    assert not train & validation
    assert not (train | validation) & test


def test_recordings_without_a_transcript_are_left_out_and_counted(tmp_path):
    write_folder(tmp_path, {"train": 3, "test": 2, "validation": 2})
    (tmp_path / "train" / "0000.txt").unlink()
    (tmp_path / "train" / "0001.txt").write_text(" \n")
    train = SpeechFiles(tmp_path).read()["train"]
    assert (len(train), train.dropped) == (1, 1)
    assert train.remarks == ("recordings without a .txt file in train, left out: 1",)


def test_two_folders_for_one_part_are_refused(tmp_path):
    write_folder(tmp_path, {"train": 2, "dev": 1, "val": 1})
    with pytest.raises(DataError, match=r"holds dev and val, and both are the validation part .*: rename the other"):
        SpeechFiles(tmp_path).read()


@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "table.jsonl"])
def test_a_table_with_speakers_keeps_each_in_one_split(tmp_path, name):
    rows = []
    for number in range(40):
        text = sentence(number, 2)
        write_recording(tmp_path / "clips" / f"{number}.flac", text)
        rows.append({"audio": f"clips/{number}.flac", "transcript": text, "speaker": f"s{number % 8}"})
    parts = SpeechFiles(write_table(tmp_path, name, rows), split=(0.5, 0.25, 0.25)).read()
    assert sorted(text for part in parts.values() for text in part.transcripts) == sorted(r["transcript"] for r in rows)
    speakers = [set(part.speakers) for part in parts.values()]
    assert sum(map(len, speakers)) == 8 == len(set.union(*speakers))


def test_a_table_that_says_the_split(tmp_path):
    splits = ["train"] * 6 + ["dev", "test"]
    rows = [{"path": f"{n}.wav", "sentence": sentence(n, 2), "split": split} for n, split in enumerate(splits)]
    for row in rows:
        write_recording(tmp_path / row["path"], row["sentence"])
    parts = SpeechFiles(write_table(tmp_path, "t.tsv", rows)).read()
    assert {split: len(part) for split, part in parts.items()} == {"train": 6, "validation": 1, "test": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "gone.wav", "transcript": "one"}, r"line 2 of .*t\.csv names .*gone\.wav, which is not there"),
        (
            {"audio": "a.wav", "words": "one"},
            r"has no column transcript or .*; it has audio, words.*source\.transcript",
        ),
        ({"audio": "a.wav", "transcript": "one", "split": "half"}, r"is in the split 'half'; accepted: train"),
    ],
)
def test_a_table_that_cannot_be_meant_is_one_message(tmp_path, row, message):
    write_recording(tmp_path / "a.wav", "one")
    with pytest.raises(DataError, match=message):
        SpeechFiles(write_table(tmp_path, "t.csv", [row])).read()


def test_what_is_no_speech_is_one_message(tmp_path):
    (tmp_path / "t.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match=r"line 1 of .* is no object of JSON"):
        SpeechFiles(tmp_path / "t.jsonl").read()
    (tmp_path / "t.doc").write_text("")
    with pytest.raises(DataError, match=r"is no table that its ending tells; accepted: \.csv"):
        SpeechFiles(tmp_path / "t.doc").read()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no recording; accepted: a folder of recordings"):
        SpeechFiles(tmp_path / "empty").read()
    write_folder(tmp_path / "tests", {"test": 1, "train": 0})
    with pytest.raises(DataError, match=r"does not exist"):
        SpeechFiles(tmp_path / "nowhere")


def test_the_fingerprint_is_that_of_sounds_and_texts(tmp_path):
    source = SpeechFiles(write_folder(tmp_path, {"train": 3, "test": 2, "validation": 2}))
    before = source.fingerprint(source.read())
    assert source.fingerprint(source.read()) == before
    write_recording(tmp_path / "train" / "0000.wav", "five five five five")
    assert source.fingerprint(source.read()) != before


@pytest.mark.slow
def test_the_hubs_format_is_read_without_its_decoder(tmp_path):
    datasets = pytest.importorskip("datasets")
    for split, count in (("train", 4), ("test", 2)):
        rows = [
            {"path": None, "bytes": write_recording(tmp_path / "x.wav", sentence(n, 2)).read_bytes()}
            for n in range(count)
        ]
        table = datasets.Dataset.from_dict({"audio": rows, "text": [sentence(n, 2) for n in range(count)]})
        table.cast_column("audio", datasets.Audio(decode=False)).to_parquet(tmp_path / "set" / f"{split}.parquet")
    parts = HubSpeech(str(tmp_path / "set"), validation=None).read(tmp_path / "cache")
    assert len(parts["test"]) == 2
    assert len(parts["train"]) + len(parts["validation"]) == 4
    np.testing.assert_allclose(parts["test"].clips[1].read(), tones(sentence(1, 2)), atol=1e-4)


def test_the_grammar_gives_each_sentence_once_and_few_words():
    found = list(sentences())
    assert len(found) == len(set(found)) > 2000
    assert len({word for text in found for word in text.split()}) < 200
    shares = {split: sum(split_of(text, SHARES) == split for text in found) / len(found) for split in SHARES}
    assert shares == pytest.approx(SHARES, abs=0.03)


def test_relatives_are_of_one_family():
    assert {family_of(voice) for voice in ("edward", "edward2")} == {"edward"}
    assert family_of("anikaRobot") == family_of("anika")
    assert family_of("AnxiousAndy") == family_of("Andy") != family_of("Annie")


def test_noise_is_as_loud_as_drawn():
    class Drawn:
        def __init__(self, brown):
            self.draws, self.normal = [0.1 if brown else 0.9], np.random.default_rng(0).standard_normal

        def random(self):
            return self.draws.pop()

        def standard_normal(self, count):
            return self.normal(count)

        def uniform(self, low, high):
            return {5.0: 10.0, -20.0: -6.0}[low]

    speech = tones("one two three").astype(np.float64)
    for brown in (False, True):
        heard = in_noise(speech, Drawn(brown))
        assert np.abs(heard).max() == pytest.approx(10 ** (-6 / 20))
        padded = np.pad(speech, (len(heard) - len(speech)) // 2)
        scale = (heard @ padded) / (padded @ padded)
        noise = heard - scale * padded
        assert 10 * np.log10(np.mean((scale * padded) ** 2) / np.mean(noise**2)) == pytest.approx(10, abs=0.5)
