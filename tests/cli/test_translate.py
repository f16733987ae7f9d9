"""`attnlab translate` and `attnlab evaluate` on a run that translates, and what they say where they cannot."""

import io
import json
import shutil
from types import SimpleNamespace

import pytest

from attnlab.cli.main import main
from attnlab.generation import BeamSearch
from attnlab.runs.trained import load_run
from attnlab.training.run_directory import read_json

GERMAN = ["ein", "kleiner", "Hund", "läuft", "über", "die", "Wiese", "und", "bellt"]
ENGLISH = ["a", "small", "dog", "runs", "across", "the", "meadow", "and", "barks"]
LINES = ["ein Hund bellt", "", "die kleiner Wiese läuft", "Hund"]


@pytest.fixture(scope="module")
def trained(library, tmp_path_factory):
    """A run on two aligned files, a source of at most 6 words."""
    folder = tmp_path_factory.mktemp("translated")
    rows = [[(i + 2 * k) % 9 for k in range(1 + i % 6)] for i in range(90)]
    for language, words in {"de": GERMAN, "en": ENGLISH}.items():
        text = "".join(f"{' '.join(words[k] for k in row)} {number}\n" for number, row in enumerate(rows))
        (folder / f"corpus.{language}").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNLAB_CACHE", str(library / "cache"))
        words = [
            "model=encoder_decoder",
            "data=parallel_text",
            f"data.path={folder / 'corpus'}",
            "data.language_pair=de-en",
        ]
        words += ["tokenizer=character", "data.batch_tokens=800", "data.source.split=[0.6,0.2,0.2]"]
        words += ["model.d_model=16", "model.num_heads=2", "model.num_layers=1", "model.dropout=0", "optimizer.lr=1e-2"]
        words += [
            "schedule.warmup_steps=0",
            "trainer.max_steps=30",
            "trainer.val_check_interval=15",
            "trainer.threads=1",
        ]
        words += ["task.num_beams=2", "task.max_extra_length=4", "progress=off", f"run_dir={folder / 'run'}"]
        assert main(["train", *words]) == 0
    return folder / "run"


@pytest.fixture
def expected(trained, here):
    """Computes translations without the command."""
    parts, task = load_run(trained, "last")

    def compute(**search):
        return task.translate(parts.data, LINES, BeamSearch(**{"num_beams": 2, "max_extra_length": 4} | search))

    return compute


@pytest.fixture
def standard_input(monkeypatch):
    """Sets what the command reads from standard input."""
    return lambda content: monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_lines_come_from_a_file_or_standard_input(attnlab, trained, expected, here, standard_input):
    best = "".join(f"{found[0][0]}\n" for found in expected())
    assert best.split("\n")[1] == ""
    (here / "lines.txt").write_bytes("\ufeff".encode() + "\r\n".join(LINES).encode())
    said = attnlab("translate", str(trained), "--input", "lines.txt")
    assert said == (0, best, "")
    standard_input("\n".join(LINES).encode())
    assert attnlab("translate", str(trained)).out == best
    # A mark that only some call the end of a line stands inside of one.
    standard_input("ein\u2028Hund\n".encode())
    said = attnlab("translate", str(trained))
    assert said.status == 1
    assert "U+2028" in said.err
    standard_input(b"")
    assert attnlab("translate", str(trained)) == (0, "", "")


def test_beams_and_length_penalty_are_those_of_the_run_unless_given(attnlab, trained, expected, here):
    (here / "lines.txt").write_text("\n".join(LINES))
    words = ["translate", str(trained), "--input", "lines.txt", "--scores"]

    def lines(found):
        rows = [(h.score, h.log_probability, text) for best in found for text, h in best]
        return "".join(f"{score:.4f}\t{log_p:.4f}\t{text}\n" for score, log_p, text in rows)

    assert attnlab(*words).out == lines(expected())
    assert attnlab(*words, "--num-beams", "1").out == lines(expected(num_beams=1))
    assert attnlab(*words, "--length-penalty", "0").out == lines(expected(length_penalty=0))
    assert lines(expected()) != lines(expected(length_penalty=0))


def test_several_translations_stand_after_the_number_of_their_line(attnlab, trained, expected, here):
    (here / "lines.txt").write_text("\n".join(LINES))
    for num_best, more in ((2, []), (4, []), (2, ["--num-beams", "5"])):
        words = ["translate", str(trained), "--input", "lines.txt", "--num-best", str(num_best), *more]
        beams = 5 if more else max(2, num_best)
        found = expected(num_beams=beams, num_best=num_best)
        assert [len(best) for best in found] == [num_best, 1, num_best, num_best]
        rows = [f"{number}\t{text}\n" for number, best in enumerate(found, start=1) for text, _ in best]
        assert attnlab(*words).out == "".join(rows)


def test_any_split_is_evaluated(attnlab, trained):
    status = read_json(trained / "status.json")
    said = attnlab("evaluate", str(trained))
    assert json.loads(said.out) == {n: v for n, v in status["final"].items() if n.startswith("test/")}
    assert "test/bleu@1-5 unavailable: no source has this many tokens" in said.err
    assert f"test/bleu by {status['notes']['test/bleu']}" in said.err
    said = attnlab("evaluate", str(trained), "--split", "validation", "--checkpoint", "best")
    assert {name.split("/")[0] for name in json.loads(said.out)} == {"val"}
    train = json.loads(attnlab("evaluate", str(trained), "--split", "train").out)
    assert {"train/loss", "train/bleu", "train/chrf", "train/bleu@6-10"} <= set(train)


def test_lines_that_are_cut_are_told(attnlab, trained, standard_input):
    long, just = "ein kleiner Hund " * 8, "ein kleiner Hund " * 7 + "Hunden"
    assert len(just) == 125  # 128 tokens have room for one more: there is a space before it, and an end
    standard_input("\n".join(["Hund", long, just, f"{just}e", f" {just} ", f"{just}en"]).encode())
    said = attnlab("translate", str(trained), "--num-beams", "1")
    assert said.err == "2 of 6 lines cut at 128 tokens (data.max_length): 2, 6\n"
    standard_input("\n".join([long] * 12).encode())
    said = attnlab("translate", str(trained), "--num-beams", "1")
    assert said.err == "12 of 12 lines cut at 128 tokens (data.max_length): 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...\n"
    assert said.out.count("\n") == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [["model=encoder_decoder", "position=learned", "model.num_heads=2"], ["model=convolutional"]]
)
def test_a_target_that_no_table_serves_ends_the_run_before_the_training(attnlab, here, model):
    lines = [f"{GERMAN[i % 9]} {i % 5}\t{ENGLISH[i % 9]} {i % 5}\n" for i in range(30)]
    (here / "train.tsv").write_text("".join(lines))
    (here / "test.tsv").write_text("Hund 1\tdog 1\nHund 2\tdog " + "very " * 9 + "2\n")
    words = [
        "data=parallel_text",
        "data.path=train.tsv",
        "data.language_pair=de-en",
        "data.source.validation_path=train.tsv",
    ]
    words += ["data.source.test_path=test.tsv", "tokenizer=character", "data.max_length=20", "model.max_length=20"]
    words += [
        "model.d_model=16",
        "model.num_layers=1",
        "trainer.max_steps=3",
        "schedule.warmup_steps=0",
        "task.num_beams=1",
    ]
    words += [*model, "trainer.threads=1", "progress=off", "run_dir=run"]
    said = attnlab("train", *words)
    message = "the target of pair 2 of the test part takes 52 positions, a special token included, and the model's table has 20; set model.max_length=52"
    assert one_message(said, message), said
    assert not (here / "run" / "metrics.jsonl").exists()
    assert read_json(here / "run" / "status.json")["state"] == "failed"
    said = attnlab("train", *words, "model.max_length=52")
    assert said.status == 0, said.err
    assert "test/bleu" in read_json(here / "run" / "status.json")["final"]
    # A split that only an evaluation asks for is looked at then.
    record = json.loads((here / "run" / "run.json").read_text())
    (here / "longer.tsv").write_text("Hund 1\tdog " + "very " * 12 + "1\n")
    record["config"]["data"]["source"]["test_path"] = "longer.tsv"
    (here / "run" / "run.json").write_text(json.dumps(record))
    said = attnlab("evaluate", "run")
    assert one_message(said, "the target of pair 1 of the test part takes 67 positions"), said


@pytest.mark.slow
def test_a_split_that_only_its_source_has_is_evaluated(attnlab, here):
    counts = {"train": 40, "val": 5, "test_2016_flickr": 6, "test_2017_flickr": 7}
    for stem, count in counts.items():
        for language, words in {"de": GERMAN, "en": ENGLISH}.items():
            lines = [f"{words[i % 9]} {words[(i * 2 + len(stem)) % 9]}\n" for i in range(count)]
            (here / f"{stem}.{language}").write_text("".join(lines))
    words = ["data=multi30k", "data.path=.", "data.language_pair=de-en", "tokenizer=character", "model=encoder_decoder"]
    words += ["model.d_model=16", "model.num_heads=2", "model.num_layers=1", "trainer.max_steps=3", "trainer.threads=1"]
    said = attnlab("train", *words, "schedule.warmup_steps=0", "task.num_beams=1", "progress=off", "run_dir=run")
    assert said.status == 0, said.err
    final = read_json(here / "run" / "status.json")["final"]
    assert {name.split("/")[0] for name in final} == {"val", "test"}
    figures = {
        split: json.loads(attnlab("evaluate", "run", "--split", split).out) for split in ("test", "test_2017_flickr")
    }
    assert figures["test"] == {name: value for name, value in final.items() if name.startswith("test/")}
    assert set(figures["test_2017_flickr"]) == {name.replace("test/", "test_2017_flickr/") for name in figures["test"]}
    assert figures["test_2017_flickr"]["test_2017_flickr/loss"] != figures["test"]["test/loss"]
    said = attnlab("evaluate", "run", "--split", "test_2018_flickr")
    known = "accepted: train, validation, test, test_2017_flickr"
    assert one_message(said, f"has no pairs in a split 'test_2018_flickr'; {known}"), said


def one_message(said, message):
    return said.status != 0 and not said.out and said.err.startswith("attnlab: ") and message in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "RUN", "--split", "tets"], "has no pairs in a split 'tets'; accepted: train, validation, test"),
        (["translate", "nowhere"], "nowhere: there is no run (no run.json)"),
        (["translate", "RUN", "--input", "absent.txt"], "cannot read absent.txt: No such file or directory"),
        (["translate", "RUN", "--input", "."], "cannot read .: Is a directory"),
        (["translate", "RUN", "--input", "latin.txt"], "line 2 of latin.txt is no UTF-8 text (byte 6 is 0xe4"),
        (["translate", "RUN", "--input", "russian.txt"], "(U+0436)"),
        (["translate", "RUN", "--num-beams", "0"], "num_beams must be at least 1, got 0"),
        (["translate", "RUN", "--num-best", "0"], "num_best must be at least 1, got 0"),
        (
            ["translate", "RUN", "--num-best", "3", "--num-beams", "2"],
            "num_best must be at most 2, the number of beams, got 3",
        ),
        (["translate", "RUN", "--length-penalty", "-1"], "length_penalty must be at least 0, got -1.0"),
        (["generate", "RUN", "--prompt", "Hund"], "EncoderDecoder continues no text; attnlab translate may be meant"),
    ],
)
def test_what_cannot_be_done_is_one_message(attnlab, trained, here, words, message):
    (here / "latin.txt").write_bytes("Hund\nläuft\n".encode("latin-1"))
    (here / "russian.txt").write_text("жук\n")
    said = attnlab(*(str(trained) if word == "RUN" else word for word in words))
    assert one_message(said, message), said
    assert len(said.err.splitlines()) == 1


def test_standard_input_that_is_no_text(attnlab, trained, standard_input):
    standard_input(b"Hund\n\xff\n")
    said = attnlab("translate", str(trained))
    assert one_message(said, "line 2 of standard input is no UTF-8 text (byte 5 is 0xff"), said


def test_a_run_of_another_task_translates_nothing(attnlab, tiny, here):
    assert attnlab("train", *tiny, "trainer.max_steps=2", "run_dir=other").status == 0
    said = attnlab("translate", "other")
    message = "other: a run of CausalLanguageModelling translates nothing; give one of task=translation"
    assert one_message(said, message), said
    said = attnlab("evaluate", "other", "--split", "tets")
    assert one_message(said, "there is no split 'tets'; accepted: train, validation, test"), said


def test_a_run_whose_files_have_gone(attnlab, trained, here):
    copy = shutil.copytree(trained, here / "copy")
    record = json.loads((copy / "run.json").read_text())
    record["config"]["data"]["path"] = "gone"
    (copy / "run.json").write_text(json.dumps(record))
    said = attnlab("translate", "copy", "--input", "lines.txt")
    assert one_message(said, "data.path=gone does not exist"), said
    (copy / "checkpoints" / "last.ckpt").unlink()
    assert "there is no last.ckpt yet; the run is finished" in attnlab("translate", "copy").err
