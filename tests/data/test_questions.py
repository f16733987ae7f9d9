"""Questions on texts: SQuAD's JSON in both versions, the hub's columns, parts by text, what is refused."""

import json

import datasets
import pytest

from attnlab.data import Character, DataError, HubQuestions, SpanExtractionData, SQuAD, SQuADFiles
from attnlab.data.questions import Question, read_squad


def squad(path, contexts, **more):
    """A file with two questions on each text, the second without an answer where asked for."""
    paragraphs = []
    for place, context in enumerate(contexts):
        answer = context.split()[0]
        asked = [
            {
                "id": f"{path.stem}-{place}-{i}",
                "question": f"what {i}?",
                "answers": [{"text": answer, "answer_start": 0}],
            }
            for i in range(2)
        ]
        asked[1] |= more
        paragraphs.append({"context": context, "qas": asked})
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def test_a_file_in_both_versions(tmp_path):
    (first, second) = SQuADFiles(squad(tmp_path / "one.json", ["Über uns"]), split=(1, 0, 0)).read()["train"].questions
    assert first == Question("one-0-0", "what 0?", "Über uns", (("Über", 0),))
    assert second.answers == (("Über", 0),)
    impossible = {"is_impossible": True, "answers": [], "plausible_answers": [{"text": "uns", "answer_start": 5}]}
    path = squad(tmp_path / "two.json", ["Über uns"], **impossible)
    assert [q.answers for q in SQuADFiles(path, split=(1, 0, 0)).read()["train"].questions] == [(("Über", 0),), ()]


def test_one_file_is_split_by_texts_whatever_else_it_holds(tmp_path):
    contexts = [f"text number {i}" for i in range(200)]
    parts = SQuADFiles(squad(tmp_path / "a.json", contexts), split=(0.6, 0.2, 0.2)).read()
    assert sorted(q.id for part in parts.values() for q in part.questions) == sorted(
        f"a-{i}-{j}" for i in range(200) for j in (0, 1)
    )
    own = {name: {q.context for q in part.questions} for name, part in parts.items()}
    assert sum(map(len, own.values())) == 200
    assert 90 < len(own["train"]) < 150
    fewer = SQuADFiles(squad(tmp_path / "a.json", contexts[::-2]), split=(0.6, 0.2, 0.2)).read()
    assert all({q.context for q in part.questions} <= own[name] for name, part in fewer.items())


def test_a_folder_with_and_without_a_test(tmp_path):
    contexts = [f"text number {i}" for i in range(100)]
    squad(tmp_path / "train-v1.1.json", contexts)
    squad(tmp_path / "dev-v1.1.json", ["other text"])
    parts = SQuAD(tmp_path).read()
    assert [q.id for q in parts["test"].questions] == ["dev-v1.1-0-0", "dev-v1.1-0-1"]
    assert len(parts["train"]) + len(parts["validation"]) == 200
    assert 4 < len(parts["validation"]) < 40
    assert not {q.context for q in parts["train"].questions} & {q.context for q in parts["validation"].questions}
    squad(tmp_path / "test.json", ["third text"])
    parts = SQuAD(tmp_path).read()
    assert [q.context for name in ("validation", "test") for q in parts[name].questions] == ["other text"] * 2 + [
        "third text"
    ] * 2
    assert len(parts["train"]) == 200


def test_a_test_file_whose_answers_are_hidden_is_named(tmp_path):
    squad(tmp_path / "train.json", [f"text number {i}" for i in range(10)])
    squad(tmp_path / "dev.json", ["other text"])
    path = squad(tmp_path / "test.json", ["third text"], answers=[])
    content = json.loads(path.read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"no question of .*test\.json has an answer; leave it out: the dev file is the test"
    ):
        SQuADFiles(tmp_path).read()


def test_a_test_file_without_questions_is_a_test_without_questions(tmp_path):
    squad(tmp_path / "train.json", [f"text number {i}" for i in range(100)])
    (tmp_path / "test.json").write_text('{"data": []}')
    module = SpanExtractionData(SQuAD(tmp_path), Character(), cache=str(tmp_path / "cache"))
    assert len(module.source.read()["train"]) > 100
    with pytest.raises(DataError, match="squad has no questions in a split 'test'; accepted: train, validation"):
        module.setup()


def test_a_mark_and_line_ends_of_windows(tmp_path):
    path = squad(tmp_path / "a.json", ["Über uns", "no"])
    expected = SQuADFiles(path, split=(1, 0, 0)).read()
    lines = json.dumps(json.loads(path.read_text()), indent=1, ensure_ascii=False).replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert SQuADFiles(path, split=(1, 0, 0)).read() == expected


def test_what_is_no_utf8_is_named_by_its_line(tmp_path):
    path = squad(tmp_path / "a.json", ["M_nchen is a city"])
    path.write_bytes(b"\n\n" + path.read_bytes().replace(b"M_nchen", b"M\xfcnchen"))
    with pytest.raises(DataError, match=r"line 3 of .*a\.json is no UTF-8 text \(byte \d+ is 0xfc.*accepted: UTF-8"):
        SQuADFiles(path).read()


@pytest.mark.parametrize("start", ["x", None, 0.5, True])
def test_a_start_that_is_no_number_is_named(tmp_path, start):
    path = squad(tmp_path / "a.json", ["a b"], answers=[{"text": "a", "answer_start": start}])
    message = (
        rf"answer_start of an answer to the question 'a-0-1' of .*a\.json is {start!r} \(.*\); accepted: a whole number"
    )
    with pytest.raises(DataError, match=message):
        SQuADFiles(path).read()


@pytest.mark.parametrize("said", [False, "false", "False", 0, "0", None])
def test_what_says_that_there_is_an_answer_is_read_by_its_value(tmp_path, said):
    path = squad(tmp_path / "a.json", ["a b"], is_impossible=said)
    assert [q.answers for q in SQuADFiles(path, split=(1, 0, 0)).read()["train"].questions] == [(("a", 0),)] * 2


@pytest.mark.parametrize("said", [True, "true", "True", 1, "1"])
def test_what_says_that_there_is_no_answer_is_read_by_its_value(tmp_path, said):
    path = squad(tmp_path / "a.json", ["a b"], is_impossible=said, answers=[])
    assert [q.answers for q in SQuADFiles(path, split=(1, 0, 0)).read()["train"].questions] == [(("a", 0),), ()]


ANSWER = [{"text": "a", "answer_start": 0}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"is_impossible": "no"}, r"is_impossible of the question 'a-0-1' of .*a\.json is 'no' \(str\); accepted: true or false"),
        ({"is_impossible": 2}, r"is_impossible of .* is 2 \(int\); accepted: true or false"),
        ({"is_impossible": True, "answers": ANSWER}, r"'a-0-1' of .* has is_impossible=True and the answer 'a'; accepted: one"),
        ({"is_impossible": "false", "answers": []}, r"'a-0-1' of .* has is_impossible=false and no answer; accepted: one"),
        ({"question": None}, r"the text of the question 'a-0-1' of .* is None \(NoneType\); accepted: a text"),
        ({"question": True}, r"the text of the question 'a-0-1' of .* is True \(bool\); accepted: a text"),
        ({"answers": [{"text": 1.5, "answer_start": 0}]}, r"an answer to the question 'a-0-1' .* is 1.5 \(float\); accepted: a text"),
        ({"answers": {"text": ["a"], "answer_start": []}}, r"the question 'a-0-1' of .* has 1 answers and 0 answer_start; accepted"),
        ({"id": None}, r"the id of a question of .*a\.json is None"),
    ],
)  # fmt: skip
def test_values_that_say_nothing_or_contradict_each_other_are_named(tmp_path, fields, message):
    with pytest.raises(DataError, match=message):
        SQuADFiles(squad(tmp_path / "a.json", ["a b"], **fields)).read()


@pytest.mark.parametrize(("start", "text"), [("0", "1066"), (0.0, 1066)])
def test_numbers_are_taken_in_quotation_marks_and_texts_without(tmp_path, start, text):
    path = squad(tmp_path / "a.json", ["1066 b"], answers=[{"text": text, "answer_start": start}])
    assert SQuADFiles(path, split=(1, 0, 0)).read()["train"].questions[1].answers == (("1066", 0),)


def test_answers_may_be_a_list_for_each_field(tmp_path):
    path = squad(tmp_path / "a.json", ["a b"], answers={"text": ["a", "b"], "answer_start": [0, 2]})
    assert SQuADFiles(path, split=(1, 0, 0)).read()["train"].questions[1].answers == (("a", 0), ("b", 2))


def test_what_is_refused(tmp_path):
    asked = [{"id": "1", "question": "q", "answers": []}] * 2
    contents = {
        "bad": "{",
        "other": '{"data": [{"text": "a"}]}',
        "twice": json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": asked}]}]}),
    }
    messages = {
        "bad": r"bad\.json cannot be read as JSON",
        "other": r"other\.json is not in SQuAD's format \(KeyError: 'paragraphs'\); accepted",
        "twice": r"twice\.json has two questions with the id '1'",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(content)
        with pytest.raises(DataError, match=messages[name]):
            SQuADFiles(tmp_path / f"{name}.json").read()
    folder = tmp_path / "folder"
    squad(folder / "train.json", ["a b"])
    with pytest.raises(DataError, match=r"holds no dev\*\.json"):
        SQuADFiles(folder).read()
    squad(folder / "train-v2.json", ["a b"])
    with pytest.raises(DataError, match=r"holds both train-v2\.json and train\.json"):
        SQuADFiles(folder).read()
    with pytest.raises(DataError, match="three fractions"):
        SQuADFiles(folder, split=(1, 1, 1))


def hub_set(folder, **rename):
    folder.mkdir()
    for split, count in {"train": 60, "validation": 3}.items():
        rows = [
            {
                "id": f"{split}{i}", "question": "q?", "context": f"the {split} {i}",
                "answers": {"text": [split] if i else [], "answer_start": [4] if i else []},
            }
            for i in range(count)
        ]  # fmt: skip
        features = {name: datasets.Value("string") for name in ("id", "question", "context")}
        features["answers"] = {
            "text": datasets.Sequence(datasets.Value("string")),
            "answer_start": datasets.Sequence(datasets.Value("int32")),
        }
        made = datasets.Dataset.from_list(rows, features=datasets.Features(features)).rename_columns(rename)
        made.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def test_a_set_of_the_hub(tmp_path, own_cache):
    parts = HubQuestions(hub_set(tmp_path / "set")).read(own_cache)
    assert [q.id for q in parts["test"].questions] == ["validation0", "validation1", "validation2"]
    assert parts["test"].questions[1] == Question("validation1", "q?", "the validation 1", (("validation", 4),))
    assert parts["test"].questions[0].answers == ()
    assert len(parts["train"]) + len(parts["validation"]) == 60
    with pytest.raises(DataError, match=r"has no column 'context'; accepted: a data set with id, question, context"):
        HubQuestions(hub_set(tmp_path / "other", context="text")).read(own_cache)


def test_squad_is_files_or_the_hub(monkeypatch):
    asked = []

    def load(path, name, split, revision, cache):
        asked.append((path, split, revision))
        answers = {"text": ["a"], "answer_start": [0]}
        return datasets.Dataset.from_list([{"id": "1", "question": "q", "context": "a b", "answers": answers}])

    monkeypatch.setattr("attnlab.data.readers.load_hub", load)
    assert SQuAD(revision="abc").read()["test"].questions == [Question("1", "q", "a b", (("a", 0),))]
    assert asked == [("rajpurkar/squad", "train", "abc"), ("rajpurkar/squad", "validation", "abc")]


def test_half_a_character_in_a_text_is_named_with_its_question(tmp_path):
    asked = {"id": "q7", "question": "what?", "answers": [{"text": "text", "answer_start": 4}]}
    paragraph = {"context": "a \ud83d text", "qas": [asked]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    with pytest.raises(DataError, match=r"train.json, question 'q7', holds '\\ud83d', half of a character"):
        read_squad(path)
