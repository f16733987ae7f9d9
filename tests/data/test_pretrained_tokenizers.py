"""Tokenizers of published models: the numbers, texts, places, special tokens and chats that transformers gives, for any text."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.huggingface import CHATML, KINDS, TEXT, chat, save, save_marian

from attnlab.data import Character, DataError, Tokenizer, read_tokenizer, write_tokenizer
from attnlab.data.pretrained_tokenizers import render
from attnlab.data.special_tokens import add_special_tokens
from attnlab.data.vocabulary import Vocabulary

TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(["fox", " the ", "\n", "é", "</s>", "[MASK]", "<extra_id_1>", "<|im_end|>"])).map("".join),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def both(folders):
    """Each tokenizer as transformers reads it, and as it is read here."""
    from transformers import AutoTokenizer

    return {
        kind: (AutoTokenizer.from_pretrained(folder), read_tokenizer(str(folder))) for kind, folder in folders.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_numbers_and_texts_are_those_of_transformers(both, kind, text):
    theirs, own = both[kind]
    tokens = own.encode(text)
    assert tokens.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert own.decode(tokens) == theirs.decode(
        tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    marks = own.special_tokens
    assert add_special_tokens(marks.text, tokens).tolist() == theirs(text)["input_ids"]
    pair = theirs(text, "fox")["input_ids"]
    assert add_special_tokens(marks.pair, tokens, own.encode("fox")).tolist() == pair
    located, places = own.locate(text)
    assert np.array_equal(located, tokens)
    assert places.tolist() == [
        list(p) for p in theirs(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]


EXPECTED = {
    "bert": {"pad": 0, "start": 2, "end": 3, "mask": 4, "separator": 3, "target_start": 2, "target": ((), (3,))},
    "gpt2": {"pad": 0, "start": 0, "end": 0, "mask": None, "separator": None, "target": ((), (0,)), "text": ((), ())},
    "bart": {
        "pad": 1,
        "start": 0,
        "end": 2,
        "mask": 4,
        "target_start": 2,
        "pair": ((0,), (2, 2), (2,)),
        "suppressed": (1, 4),
    },
    "llama": {
        "pad": None,
        "start": 1,
        "end": 2,
        "target_start": 1,
        "text": ((1,), ()),
        "target": ((), (2,)),
        "pad_id": 2,
    },
    "t5": {
        "pad": 0,
        "start": None,
        "end": 1,
        "target_start": 0,
        "text": ((), (1,)),
        "target": ((), (1,)),
        "suppressed": (0,),
    },
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_marks_and_where_they_stand(both, kind):
    marks = both[kind][1].special_tokens
    assert {name: getattr(marks, name) for name in EXPECTED[kind]} == EXPECTED[kind]


def test_a_decoders_input_is_what_transformers_shifts_to_the_right(both):
    """BART: labels <s> x </s>, input </s> <s> x; T5: labels x </s>, input <pad> x."""
    for kind, start in {"bart": 2, "t5": 0}.items():
        theirs, own = both[kind]
        labels = add_special_tokens(own.special_tokens.target, own.encode("The fox")).tolist()
        assert labels == theirs(text_target="The fox")["input_ids"]
        assert own.special_tokens.target_start == start


def test_sentinels_are_counted_by_their_names(both):
    theirs, own = both["t5"]
    names = [f"<extra_id_{i}>" for i in range(12)]
    assert list(own.special_tokens.sentinels) == theirs.convert_tokens_to_ids(names)
    assert own.special_tokens.sentinels[0] > own.special_tokens.sentinels[1]
    assert Vocabulary(own, 5).sentinels.tolist() == list(own.special_tokens.sentinels[:5])


@pytest.mark.parametrize("kind", KINDS)
def test_text_tokens_are_neither_marks_nor_rows_of_no_token(both, kind):
    theirs, own = both[kind]
    marks = {number for number, token in theirs.added_tokens_decoder.items() if token.special}
    assert set(own.text_tokens.tolist()) == set(range(len(theirs))) - marks
    assert own.vocabulary_size == {"t5": 192}.get(kind, len(theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_words_begin_where_they_are_spelt_to(both, kind):
    own = both[kind][1]
    begins, tokens = own.begins_word(), own.encode("The quick naïve fox")
    assert [own.decode(tokens[start:]).split()[0] for start in np.flatnonzero(begins[tokens])] == (
        own.decode(tokens).split()[0 if begins[tokens[0]] else 1 :]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_is_encoded_as_it_looks_within_a_text(both, kind):
    own = both[kind][1]
    whole, first, word = (own.encode(text).tolist() for text in ("fox lazy", "fox", f"{own.word_lead}lazy"))
    assert whole == first + word


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_kept_as_json_and_nothing_is_learned(both, tmp_path, kind):
    own = both[kind][1]
    own.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.as_json() == own.as_json()
    assert again.special_tokens == own.special_tokens
    assert again.encode(TEXT[0]).tolist() == own.encode(TEXT[0]).tolist()
    assert own.train("other text") is own
    assert read_tokenizer(str(tmp_path)).as_json() == own.as_json()


def test_a_mark_that_is_missing_is_named(both):
    vocabulary = Vocabulary(both["gpt2"][1])
    message = r"this tokenizer has no mask token \(pad 0, start 0, end 0, target_start 0\), and here one stands where a token is hidden; take"
    with pytest.raises(DataError, match=message):
        _ = vocabulary.mask
    with pytest.raises(DataError, match="has no separator token"):
        vocabulary.pair_special_tokens()
    assert (vocabulary.pad, vocabulary.end, vocabulary.first_text) == (0, 0, 0)


# --- Marian

ENGLISH = "the quick brown fox jumps over the lazy dog, and then it sleeps well under the old trees; isn't it so?"
GERMAN = "der schnelle braune Fuchs springt über den faulen Hund, und dann schläft er gut unter den alten Bäumen; nicht wahr?"
WORDS = [
    *ENGLISH.split(),
    *GERMAN.split(),
    "  ",
    "\t",
    "\n",
    "ﬁne",
    "½",
    "Ω",
    "😀",
    "a\u0300",
    "\u00a0",
    "\u3000",
    "▁",
    "日本",
    "\uff11\uff12",
    "\x00",
]
MARIAN_TEXTS = st.one_of(
    st.text(), st.lists(st.sampled_from(WORDS)).map(" ".join), st.lists(st.sampled_from(WORDS)).map("".join)
)


@pytest.fixture(scope="module")
def marian_folder(tmp_path_factory):
    """As Marian's are: one list of numbers for the pieces of both languages, of which a few are left out."""
    pytest.importorskip("sentencepiece")
    return save_marian(tmp_path_factory.mktemp("marian"), ENGLISH, GERMAN)


@pytest.fixture(scope="module")
def marian(marian_folder):
    """The tokenizer as transformers reads it, and as it is read here."""
    from transformers import MarianTokenizer

    return MarianTokenizer.from_pretrained(marian_folder), read_tokenizer(str(marian_folder))


@settings(max_examples=200, deadline=None)
@given(text=MARIAN_TEXTS.filter(lambda text: "<" not in text))
def test_marians_numbers_and_texts_are_those_of_transformers(marian, text):
    theirs, own = marian
    assert [*own.of_source.encode(text).tolist(), 0] == theirs(text)["input_ids"]
    target = theirs(text_target=text)["input_ids"]
    assert [*own.encode(text).tolist(), 0] == target
    assert own.decode(target) == theirs.decode(target, skip_special_tokens=True)
    tokens, places = own.of_source.locate(text)
    assert len(tokens) == len(places)


def test_a_text_may_begin_with_its_language(marian):
    (theirs, own), text = marian, ">>de<< the fox"
    assert [*own.of_source.encode(text).tolist(), 0] == theirs(text)["input_ids"]
    assert own.numbers[">>de<<"] == own.of_source.encode(text)[0]


def test_special_tokens_of_a_marian_are_those_of_the_model(marian, marian_folder):
    special = marian[1].special_tokens
    pad = len(json.loads((marian_folder / "vocab.json").read_text())) - 1
    assert (special.pad, special.end, special.target_start, special.ends) == (pad, 0, pad, (0,))
    assert (special.source, special.target) == (((), (0,)), ((), (0,)))


def test_a_marian_is_kept_and_written_as_it_was_read(marian, marian_folder, tmp_path):
    own = marian[1]
    own.save(tmp_path / "kept.json")
    assert Tokenizer.load(tmp_path / "kept.json") == own
    write_tokenizer(own, tmp_path / "out")
    for name in ("source.spm", "target.spm"):
        assert (tmp_path / "out" / name).read_bytes() == (marian_folder / name).read_bytes()
    assert json.loads((tmp_path / "out" / "vocab.json").read_text()) == json.loads(
        (marian_folder / "vocab.json").read_text()
    )


def test_a_vocabulary_without_the_unknown_token_is_named(marian_folder, tmp_path):
    for name in ("source.spm", "target.spm"):
        (tmp_path / name).write_bytes((marian_folder / name).read_bytes())
    (tmp_path / "vocab.json").write_text(json.dumps({"</s>": 0, "<pad>": 1}))
    with pytest.raises(DataError, match=r"vocab.json lacks <unk>"):
        read_tokenizer(str(tmp_path))


def test_files_that_are_missing_are_named(marian_folder, tmp_path):
    (tmp_path / "config.json").write_text((marian_folder / "config.json").read_text())
    (tmp_path / "vocab.json").write_text((marian_folder / "vocab.json").read_text())
    with pytest.raises(DataError, match=r"lacks source\.spm, target\.spm, which a Marian's tokenizer is made of"):
        read_tokenizer(str(tmp_path))


# --- chat templates

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = messages[0]['content'] %}
{% else %}
    {% set loop_messages = messages %}
    {% set system_message = false %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and system_message != false %}
        {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' '  + content.strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}
"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'nobody' %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m | tojson }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "smollm2": SMOLLM2, "llama2": LLAMA2, "llama3": LLAMA3, "marked": MARKED}
SYSTEM, ASKED = (
    {"role": "system", "content": " Be <short> & kind. "},
    {"role": "user", "content": "Wie heißt der Fuchs?\n"},
)
ANSWER = {"role": "assistant", "content": "Reineke"}
CONVERSATIONS = {"one": [ASKED], "system": [SYSTEM, ASKED], "turns": [ASKED, ANSWER, ASKED]}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_texts_are_those_of_transformers(name, conversation):
    from transformers import PreTrainedTokenizerFast

    library, special = chat()
    theirs = PreTrainedTokenizerFast(tokenizer_object=library, chat_template=TEMPLATES[name], **special)
    messages = CONVERSATIONS[conversation]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render(TEMPLATES[name], messages, special) == expected


def test_a_template_says_what_it_does_not_take():
    with pytest.raises(DataError, match="does not take these messages: Conversation roles must alternate"):
        render(LLAMA2, [ANSWER], {"bos_token": "", "eos_token": ""})
    with pytest.raises(DataError, match="does not take these messages"):
        render("{% if %}", [ASKED], {})
    with pytest.raises(DataError, match="no chat template"):
        render(None, [ASKED], {})


@pytest.mark.parametrize("attack", ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}"])
def test_a_template_cannot_reach_python(attack):
    with pytest.raises(DataError, match="does not take these messages"):
        render(attack, [ASKED], {})


@pytest.mark.parametrize("alphabet", ["xy z", "eht of"])
def test_what_it_has_no_token_for_is_named_and_nothing_else_needs_it(tmp_path, alphabet):
    """As a vocabulary of characters alone, without one for the unknown: none of its letters need be the usual ones."""
    write_tokenizer(Vocabulary(Character(alphabet)), tmp_path, "source")
    read = read_tokenizer(str(tmp_path))
    marks = Vocabulary(Character(alphabet)).special_tokens
    assert read.special_tokens.source == marks.source
    assert read.decode(read.encode(alphabet)).strip() == alphabet
    with pytest.raises(DataError, match=r"cannot encode 'q' .*accepted: texts of what it has tokens for"):
        read.encode("q")
