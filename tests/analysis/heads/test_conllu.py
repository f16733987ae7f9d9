"""Sentences of CoNLL-U with the places of their words, and one message for what does not fit."""

import numpy as np
import pytest

from attnlab.analysis.heads.conllu import read_sentences


def line(number, form, head="_", relation="_", misc="_"):
    return "\t".join([str(number), form, "_", "_", "_", "_", str(head), relation, "_", misc])


FRENCH = ["# sent_id = 1", "# text = Il va au lit.", line(1, "Il", 2, "nsubj"), line(2, "va", 0, "root"), line("3-4", "au"), line(3, "à", 5, "case"),
          line(4, "le", 5, "det"), line(5, "lit", 2, "obl", "SpaceAfter=No"), line("5.1", "nul"), line(6, ".", 2, "punct")]  # fmt: skip


def write(path, *blocks):
    path.write_text("\n\n".join("\n".join(block) for block in blocks) + "\n")
    return path


def test_words_stand_where_they_are_written(tmp_path):
    plain = [line(1, "No", 2, "det"), line(2, "way", 0, "root", "SpaceAfter=No"), line(3, "!", 2, "punct")]
    first, second = read_sentences(write(tmp_path / "a.conllu", FRENCH, plain))
    assert first.forms == ["Il", "va", "à", "le", "lit", "."]
    assert first.relations == ["nsubj", "root", "case", "det", "obl", "punct"]
    np.testing.assert_array_equal(first.heads_W, [1, -1, 4, 4, 1, 1])
    # "au" is two words, of which no token can be told to be.
    np.testing.assert_array_equal(first.places_W2, [[0, 2], [3, 5], [-1, -1], [-1, -1], [9, 12], [12, 13]])
    assert second.text == "No way!"
    assert [second.text[a:b] for a, b in second.places_W2] == ["No", "way", "!"]


REFUSED = {
    "columns": (["1\tNo\t_"], "line 1: 3 columns; accepted: CoNLL-U, ten between tabs"),
    "order": ([line(1, "No"), line(3, "way")], "line 2: the word number '3'; accepted here: 2"),
    "head": ([line(1, "No", 7)], "line 1: the head '7'; accepted: 0 (the root) to 1"),
    "text": (["# text = Now then", line(1, "No", 0), line(2, "way", 1)], "line 3: the word 'way' does not fit the text, which goes on with 'w then'"),
    "nothing": (["# text = none"], "holds no sentence"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_told_with_its_line(name, tmp_path):
    lines, message = REFUSED[name]
    with pytest.raises(ValueError, match=r"a\.conllu") as error:
        read_sentences(write(tmp_path / "a.conllu", lines))
    assert message in str(error.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*gone\.conllu: No such file"):
        read_sentences(tmp_path / "gone.conllu")
    (tmp_path / "b.conllu").write_bytes(b"\n\xfe\xfa")
    with pytest.raises(ValueError, match=r"line 2 of .*b\.conllu is no UTF-8 text"):
        read_sentences(tmp_path / "b.conllu")


def test_marks_inside_of_words_end_no_line(tmp_path):
    [sentence] = read_sentences(write(tmp_path / "a.conllu", [line(1, "a\u2028b"), line(2, "\u3000c", 1)]))
    assert sentence.forms == ["a\u2028b", "\u3000c"]
