"""Speech to text: the rules of timestamps as transformers has them, windows cut as published, and decoding as transformers decodes."""

from dataclasses import replace
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interop.tiny_models import MODELS, reference

from attnlab.generation import Sampler, Segment, TranscriptionOptions, detect_languages, transcribe, transcribe_windows
from attnlab.generation.transcription import Heard, allowed, cut, is_doubtful, is_silent
from attnlab.interop import read_model
from attnlab.models import Whisper, WhisperTokens

# Ten tokens of text, the end, six others, and the timestamps 0.00 to 0.24.
TOKENS = WhisperTokens(
    *(11, 10, {"de": 12, "en": 13}),
    transcribe=14,
    no_speech=15,
    no_timestamps=16,
    first_timestamp=17,
    multilingual=True,
)
ROWS, FIRST = 30, 17
GREEDY = {"temperatures": (0.0,), "after_previous": False}
ENGLISH = TranscriptionOptions("en", no_speech_threshold=None, **GREEDY)


def build(seed=0, frames=20):
    torch.manual_seed(seed)
    model = Whisper(ROWS, num_mels=5, num_frames=frames, max_length=16, d_model=16, num_heads=2, num_layers=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def features(count=3, frames=20, seed=0):
    return torch.randn(count, 5, frames, generator=torch.Generator().manual_seed(seed))


def by_hand(scores, produced, latest=None):
    """The rules of section 4.5 as OpenAI's code has them, for one row."""
    scores = scores.clone()
    scores[TOKENS.no_timestamps] = -torch.inf
    times = [token for token in produced if token >= FIRST]
    last, before = (len(produced) < n or produced[-n] >= FIRST for n in (1, 2))
    if not produced:
        scores[:FIRST] = -torch.inf
        scores[FIRST + latest + 1 :] = -torch.inf
    elif last and before:
        scores[FIRST:] = -torch.inf
    elif last:
        scores[:10] = -torch.inf
    if times:
        scores[FIRST : times[-1] + (not (last and not before))] = -torch.inf
    log_p = scores.log_softmax(0)
    if log_p[FIRST:].logsumexp(0) > log_p[:FIRST].max():
        scores[:FIRST] = -torch.inf
    return scores


@st.composite
def heard_so_far(draw):
    """Tokens that the rules allow: pairs of timestamps that do not fall, with text between."""
    times = sorted(draw(st.lists(st.integers(0, 12), max_size=5, unique=True)))
    found = []
    for place, time in enumerate(times):
        text = draw(st.lists(st.integers(0, 9), min_size=1, max_size=2))
        found += [FIRST + time, *text] if place == 0 else [FIRST + time, FIRST + time, *text]
    return found[: draw(st.integers(0, len(found)))]


@settings(max_examples=30, deadline=None)
@given(produced=heard_so_far(), seed=st.integers(0, 999), scale=st.floats(0.1, 5))
def test_what_may_follow_is_what_the_published_rules_say(produced, seed, scale):
    scores = torch.randn(1, ROWS, generator=torch.Generator().manual_seed(seed)) * scale
    options = replace(ENGLISH, latest_start=0.1)
    found = allowed(scores, torch.tensor([produced], dtype=torch.long), TOKENS, options)[0]
    torch.testing.assert_close(found, by_hand(scores[0], produced, latest=5))


def test_suppressed_tokens_are_never_produced_and_some_not_first():
    tokens = replace(TOKENS, suppressed=(1, 2), suppressed_first=(3, 10))
    options = replace(ENGLISH, timestamps=False)
    for produced, expected in (([], {1, 2, 3, 10}), ([4], {1, 2})):
        found = allowed(torch.zeros(1, ROWS), torch.tensor([produced], dtype=torch.long), tokens, options)[0]
        assert {*found.isinf().nonzero()[:, 0].tolist()} == expected


@pytest.mark.parametrize("timestamps", [True, False])
def test_windows_of_a_batch_decode_as_each_alone_and_step_by_step(timestamps):
    model, x_BMF, options = build(3), features(4), replace(ENGLISH, timestamps=timestamps)
    together = transcribe_windows(model, x_BMF, TOKENS, options)
    for row, found in enumerate(together):
        (alone,) = transcribe_windows(model, x_BMF[row : row + 1], TOKENS, options)
        assert alone.tokens == found.tokens
        assert alone.log_probability == pytest.approx(found.log_probability, abs=1e-4)
        prompt, produced, total = TOKENS.prompt("en", timestamps=timestamps), [], 0.0
        while len(prompt) + len(produced) < 16:
            with torch.no_grad():
                logits_V = model(x_BMF[row : row + 1], torch.tensor([prompt + produced]))[0, -1]
            scores = by_hand(logits_V, produced, latest=50) if timestamps else logits_V
            total += float(scores.log_softmax(0).max())
            if (token := int(scores.argmax())) == TOKENS.end:
                break
            produced.append(token)
        assert found.tokens == produced
        assert found.log_probability == pytest.approx(total / (len(produced) + 1), abs=1e-4)


@pytest.mark.parametrize(
    ("found", "segments", "used", "kept"),
    [
        ([17, 1, 2, 19], [(0, 4, [1, 2])], 20, 4),  # ends in a timestamp alone: nobody speaks behind it
        ([17, 1, 19, 19, 2], [(0, 4, [1])], 4, 3),  # cut off behind the last pair
        ([18, 1, 19, 20, 2, 22, 22], [(2, 4, [1]), (6, 10, [2])], 10, 6),
        ([18, 1, 19, 20, 2, 23], [(2, 4, [1]), (6, 12, [2])], 20, 6),
        ([18, 1, 2], [(0, 2, [1, 2])], 20, 3),  # never ended: the last timestamp is the only one known
        ([17, 1, 2], [(0, 20, [1, 2])], 20, 3),
        ([], [(0, 20, [])], 20, 0),
    ],
)
def test_a_window_is_cut_where_segments_end(found, segments, used, kept):
    assert cut(found, TOKENS, 20) == (segments, used, kept)


class Scripted(SimpleNamespace):
    """What `transcribe` needs of a model, with windows that are heard as written down."""

    def __init__(self, script):
        super().__init__(num_frames=20, max_length=16, script=iter(script), seen=[], told=[])

    def hear(self, model, window_1MF, tokens, options, sampler, generators, previous):
        self.seen.append(window_1MF)
        self.told.append((sampler.temperature, list(previous)))
        return [next(self.script)]


@pytest.fixture
def scripted(monkeypatch):
    def make(*script):
        model = Scripted([one if isinstance(one, Heard) else Heard(one, -0.1) for one in script])
        monkeypatch.setattr("attnlab.generation.transcription.transcribe_windows", model.hear)
        return model

    return make


def test_a_window_begins_where_the_last_complete_segment_ended(scripted):
    model, x_MF = scripted([17, 1, 22, 22, 2], [17, 2, 25], [17, 3, 18]), features(1, 36)[0]
    found = transcribe(model, x_MF, TOKENS, ENGLISH)
    assert found == [Segment(0.0, 0.1, [1]), Segment(0.1, 0.26, [2]), Segment(0.3, 0.32, [3])]
    assert [window.shape for window in model.seen] == [(1, 5, 20)] * 3
    assert torch.equal(model.seen[0][0], x_MF[:, :20])
    assert torch.equal(model.seen[1][0], x_MF[:, 10:30])
    assert torch.equal(model.seen[2][0, :, :6], x_MF[:, 30:])
    assert not model.seen[2][0, :, 6:].any()


def test_silence_is_passed_over_unless_the_words_are_sure(scripted):
    options = TranscriptionOptions("en", **GREEDY)
    assert is_silent(Heard([1], -1.5, 0.7), options)
    assert not is_silent(Heard([1], -0.5, 0.7), options)
    assert not is_silent(Heard([1], -1.5, None), options)
    model = scripted(Heard([17, 1, 20], -1.5, 0.7), [17, 2, 20])
    assert transcribe(model, features(1, 40)[0], TOKENS, options) == [Segment(0.2, 0.26, [2])]


def test_without_timestamps_each_window_is_a_segment(scripted):
    model = scripted([1, 2], [3])
    options = replace(ENGLISH, timestamps=False)
    assert transcribe(model, features(1, 30)[0], TOKENS, options) == [Segment(0, 0.2, [1, 2]), Segment(0.2, 0.3, [3])]


def test_a_language_that_is_not_given_is_the_first_windows():
    model, x_BMF = build(), features(4)
    with torch.no_grad():
        probabilities = model(x_BMF, torch.full((4, 1), TOKENS.start))[:, 0, [12, 13]]
    assert detect_languages(model, x_BMF, TOKENS) == [["de", "en"][place] for place in probabilities.argmax(1).tolist()]
    code = detect_languages(model, x_BMF[:1], TOKENS)[0]
    detected, given = (replace(ENGLISH, language=language, max_new_tokens=4) for language in (None, code))
    assert transcribe(model, x_BMF[0], TOKENS, detected) == transcribe(model, x_BMF[0], TOKENS, given)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (TOKENS, {"language": "fr"}, "language=fr: there is no such language; accepted: de, en"),
        (WhisperTokens(11, 10), {}, "first_timestamp: this vocabulary has no such token"),
        (WhisperTokens(11, 10), {"translate": True}, "translate: this model knows one language"),
    ],
)
def test_what_the_vocabulary_lacks_is_refused(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        transcribe_windows(build(), features(), tokens, TranscriptionOptions(**options))


def test_scores_that_are_no_numbers_are_refused():
    model = build()
    with torch.no_grad():
        model.embedding.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="scores of token 1 of a window are no numbers"):
        transcribe_windows(model, features(), TOKENS, ENGLISH)
    assert transcribe_windows(model, features(0), TOKENS, ENGLISH) == []


# --- again at higher temperatures, and behind the text before


def test_a_doubtful_window_is_decoded_again_and_what_was_guessed_is_not_told():
    """The published code: what fails at one temperature is tried at the next; 0.5 and above end what is told."""
    options = TranscriptionOptions("en")
    again = (Heard([17, 1, 20], -1.1, 0.1), "one")
    assert is_doubtful(again[0], options, again[1])
    assert not is_doubtful(Heard([17, 1, 20], -1.1, 0.7), options, "one")  # silent
    assert not is_doubtful(Heard([17, 1, 20], -0.9, 0.1), options, "one")
    assert is_doubtful(Heard([17, 1, 20], -0.9, 0.1), options, "and so " * 40)
    assert not is_doubtful(Heard([17, 1, 20], -0.9, 0.1), options, None)
    assert not is_doubtful(Heard([17, 1, 20], -0.9), replace(options, compression_threshold=None), "and so " * 40)


def test_windows_are_told_what_was_heard_before_them(scripted):
    sure, unsure = (lambda word, p=p: Heard([17, word, 27], p, 0.1) for p in (-0.1, -2.0))
    model = scripted(sure(1), unsure(2), sure(3), unsure(4), unsure(4), unsure(4), sure(5), sure(6))
    options = TranscriptionOptions("en", temperatures=(0.0, 0.2, 0.6))
    found = transcribe(model, features(1, 100)[0], TOKENS, options)
    assert [segment.tokens for segment in found] == [[1], [3], [4], [5], [6]]
    first, second = [17, 1, 27], [17, 1, 27, 17, 3, 27]
    told = [(0.0, []), (0.0, first), (0.2, first), (0.0, second), (0.2, second), (0.6, second), (0.0, [])]
    assert model.told == [*told, (0.0, [17, 5, 27])]
    model = scripted(sure(1), sure(2))
    transcribe(model, features(1, 40)[0], TOKENS, replace(options, after_previous=False))
    assert model.told == [(0.0, []), (0.0, [])]


def test_repetition_is_seen_in_the_text(scripted):
    model, options = scripted([17, 1, 27], [17, 2, 27]), TranscriptionOptions("en")
    found = transcribe(model, features(1, 20)[0], TOKENS, options, lambda tokens: "no " * 99 * (tokens == [1]))
    assert [segment.tokens for segment in found] == [[2]]


@pytest.mark.parametrize("previous", [[], [1, 2], [3, 17, 4, 20, *range(9)]])
def test_what_is_drawn_is_what_the_whole_forward_pass_gives(previous):
    model, x_BMF, sampler = build(3), features(3), Sampler(0.7)
    tokens = replace(TOKENS, previous=16, no_timestamps=None)
    before = [16, *previous[-7:]] if previous else []
    prompt = [*before, *tokens.prompt("en")]
    generators = [torch.Generator().manual_seed(row) for row in range(3)]
    found = transcribe_windows(model, x_BMF, tokens, ENGLISH, sampler, generators, previous)
    for row, heard in enumerate(found):
        x_1MF, generator, produced, total = x_BMF[row : row + 1], torch.Generator().manual_seed(row), [], 0.0
        while len(prompt) + len(produced) < 16:
            with torch.no_grad():
                logits_1V = model(x_1MF, torch.tensor([prompt + produced]))[:, -1]
            scores_1V = allowed(logits_1V, torch.tensor([produced], dtype=torch.long), tokens, ENGLISH)
            token = int(sampler(scores_1V, [generator]))
            total += float(scores_1V.log_softmax(1)[0, token])
            if token == tokens.end:
                break
            produced.append(token)
        assert heard.tokens == produced
        assert heard.log_probability == pytest.approx(total / (len(produced) + 1), abs=1e-4)
        with torch.no_grad():
            nobody = model(x_1MF, torch.tensor([[*before, tokens.start]]))[0, -1].softmax(0)[tokens.no_speech]
        assert heard.no_speech == pytest.approx(float(nobody), abs=1e-5)


def test_what_is_drawn_belongs_to_the_seed():
    model, x_MF = build(), features(1, 70)[0]
    options = replace(ENGLISH, temperatures=(1.0,))
    first, again, other = (transcribe(model, x_MF, TOKENS, replace(options, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_no_temperature_is_refused():
    with pytest.raises(ValueError, match="temperatures must be one number or more, such as 0"):
        TranscriptionOptions(temperatures=())


# --- recordings of several windows, as transformers transcribes them


def told_there(reference):
    """What the reference's own files say of the tokens in TOKENS."""
    told = {
        "no_timestamps_token_id": TOKENS.no_timestamps,
        "prev_sot_token_id": OF_RECORDINGS.previous,
        "is_multilingual": True,
        "max_initial_timestamp_index": 5,
        "suppress_tokens": list(OF_RECORDINGS.suppressed),
        "lang_to_id": {f"<|{code}|>": token for code, token in TOKENS.languages.items()},
        "task_to_id": {"transcribe": TOKENS.transcribe, "translate": TOKENS.transcribe},
    }
    for name, value in told.items():
        setattr(reference.generation_config, name, value)
    return reference


OF_RECORDINGS = replace(TOKENS, previous=9, suppressed=(9, *range(11, 17)))


@pytest.mark.parametrize("after_previous", [False, True])
@pytest.mark.parametrize("skips", [False, True])
def test_a_recording_of_several_windows_is_heard_as_transformers_hears_it(after_previous, skips, tmp_path):
    marks = {"pad_token_id": 10, "bos_token_id": 10, "eos_token_id": 10, "decoder_start_token_id": 11}
    sizes = {"vocab_size": ROWS, "max_source_positions": 10, "max_target_positions": 40}
    model_class, config, fields = MODELS["whisper"]
    for seed in range(3):
        there = told_there(reference(model_class, config, {**fields, **sizes, **marks}, seed))
        there.save_pretrained(tmp_path / str(seed))
        here, x_1MF = read_model(tmp_path / str(seed)).model().eval(), features(1, 86, seed)
        options = TranscriptionOptions("de", False, True, 12, 0.1, None, 0.0, (0.0,), None, after_previous)
        if skips:  # half of the windows
            windows = transcribe_windows(here, x_1MF[0, :, :80].unflatten(1, (4, 20)).transpose(0, 1), TOKENS, options)
            options = replace(options, no_speech_threshold=median(window.no_speech for window in windows))
        found = transcribe(here, x_1MF[0], OF_RECORDINGS, options)
        expected = there.generate(
            x_1MF, language="de", task="transcribe", return_timestamps=True, return_segments=True, temperature=0.0,
            max_new_tokens=12, no_speech_threshold=options.no_speech_threshold, logprob_threshold=skips - 1.0,
            condition_on_prev_tokens=after_previous,
        )["segments"][0]  # fmt: skip
        text = [[token for token in segment["tokens"].tolist() if token < 9] for segment in expected]
        assert [segment.tokens for segment in found] == [tokens for tokens in text if tokens]
        times = [(float(part["start"]), float(part["end"])) for part, own in zip(expected, text, strict=True) if own]
        assert [time for part in found for time in (part.start, part.end)] == pytest.approx(sum(times, ()))
        assert len(found) > (0 if skips else 2)
