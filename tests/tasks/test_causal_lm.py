"""The figures of causal language modelling against sums made by hand. Shapes: B batch, T length, V vocabulary, N tokens."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attnlab.data import TextData
from attnlab.data.texts import TextFiles
from attnlab.data.tokenizers import BPE, Byte, Character
from attnlab.layers import ALiBi, Learned
from attnlab.models import GPT
from attnlab.tasks import CausalLanguageModelling, language_modelling

CONTEXT = 8
WORDS = ["old", "trees", "sleep", "naïve", "well—", "Straße", "x"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        "".join(str(draw.choice(WORDS)) + str(draw.choice([" ", "\n"])) for _ in range(3000)), encoding="utf-8"
    )
    return path


@pytest.fixture
def data(text, tmp_path):
    def make(tokenizer=None, **more):
        source = partial(TextFiles, path=text)
        settings = {
            "context_length": CONTEXT,
            "batch_size": 4,
            "cache": str(tmp_path / "cache"),
            "max_validation_tokens": 512,
        }
        module = TextData(source, tokenizer or Character(), **settings | more)
        module.setup()
        return module

    return make


class Unigram(torch.nn.Module):
    """Predicts every token by its frequency alone, wherever it stands: the same loss at every length."""

    def __init__(self, logits_V):
        super().__init__()
        self.logits_V = torch.nn.Parameter(torch.as_tensor(logits_V, dtype=torch.float32))

    def forward(self, tokens_BT):
        return self.logits_V.expand(*tokens_BT.shape, -1)


def task_of(model, **more):
    return CausalLanguageModelling(model, **more)


def unigram(module):
    counts = np.bincount(module.corpus.train.tokens, minlength=module.vocabulary_size) + 1
    return Unigram(np.log(counts / counts.sum()))


@pytest.mark.parametrize("tokenizer", [Character(), Byte(), BPE(vocabulary_size=300)])
def test_a_model_without_positions_has_the_same_figures_at_all_lengths_and_they_are_those_of_the_text(data, tokenizer):
    module = data(tokenizer)
    model = unigram(module)
    figures = task_of(model, evaluation_lengths=(1, 2, 4), evaluation_tokens=160).evaluate(module)
    tokens_N = np.asarray(module.corpus.test.tokens)
    first = 4 * CONTEXT + 1  # after a lead-in of the longest window
    scored_N = tokens_N[first : first + 160].astype(np.int64)
    nats = -float(model.logits_V.detach().double().log_softmax(0)[torch.from_numpy(scored_N)].sum())
    part = module.tokenizer.decode(scored_N)
    num_bytes = len(part.encode("utf-8", "surrogatepass"))
    for kind in ("", "sliding_"):
        for multiple in (1, 2, 4):
            at = f"@{multiple}x"
            assert figures[f"test/{kind}loss{at}"] == pytest.approx(nats / 160, rel=1e-6)
            assert figures[f"test/{kind}bits_per_byte{at}"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-6)
            assert figures[f"test/{kind}perplexity{at}"] == pytest.approx(math.exp(nats / 160), rel=1e-5)
            assert figures[f"test/{kind}word_perplexity{at}"] == pytest.approx(
                math.exp(nats / len(part.split())), rel=1e-4
            )


def gpt(module, position=ALiBi, **more):
    torch.manual_seed(0)
    return GPT(module.vocabulary_size, CONTEXT, d_model=16, num_heads=2, num_layers=1, position=position, **more)


@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_windows_are_scored_as_one_by_one_by_hand(data, multiple):
    """Non-overlapping and sliding windows of a model that looks back, each target alone with the tokens its window gives it."""
    module = data()
    model = gpt(module).eval()
    figures = task_of(model, evaluation_lengths=(1, 2, 4), evaluation_tokens=64).evaluate(module)
    tokens_N = torch.from_numpy(np.asarray(module.corpus.test.tokens).astype(np.int64))
    length, first = multiple * CONTEXT, 4 * CONTEXT + 1
    for kind, stride in (("", length), ("sliding_", length // 2)):
        nats = 0.0
        for target in range(first, first + 64):
            end = first + (target - first) // stride * stride + stride  # its window's last target
            start = end - 1 - length
            with torch.no_grad():
                logits_TV = model(tokens_N[start:target][None])[0]
            nats += float(F.cross_entropy(logits_TV[-1], tokens_N[target]))
        assert figures[f"test/{kind}loss@{multiple}x"] == pytest.approx(nats / 64, rel=1e-5)


@pytest.mark.parametrize(("context", "multiples"), [(8, (1, 2, 4)), (7, (1, 2)), (8, (1, 3, 5))])
def test_both_kinds_of_windows_share_what_they_compute_and_give_the_same_sums(data, context, multiples):
    """Of even lengths each token goes through the model twice, half of the time as a lead-in; of odd ones thrice."""
    module, inputs = data(context_length=context), []
    model = gpt(module).eval()
    figures = task_of(model, evaluation_lengths=multiples, evaluation_tokens=160).evaluate(module)
    longest = max(multiples) * context
    scored = max(longest, 160 // longest * longest)
    for multiple in multiples:
        windows = partial(module.evaluation_loader, "test", multiple * context, max_tokens=160, longest=longest)
        for kind, loader in (("", windows()), ("sliding_", windows(sliding=True))):
            with torch.no_grad():
                logits = [model(batch["tokens"])[batch["scored"]].double() for batch in loader]
            targets = torch.cat([batch["targets"][batch["scored"]] for batch in loader])
            assert len(targets) == scored
            nats = float(F.cross_entropy(torch.cat(logits), targets))
            assert figures[f"test/{kind}loss@{multiple}x"] == pytest.approx(nats, rel=1e-6)
    model.register_forward_pre_hook(lambda _, given: inputs.append(given[0].numel()))
    task_of(model, evaluation_lengths=multiples, evaluation_tokens=160).evaluate(module)
    lengths = [multiple * context for multiple in multiples]
    assert sum(inputs) == sum(
        length
        * (2 * math.ceil(scored / length) if length % 2 == 0 else sum(len(w) for w in starts(module, length, longest)))
        for length in lengths
    )


def starts(module, length, longest):
    """Where the windows of both kinds begin."""
    windows = partial(module.evaluation_loader, "test", length, max_tokens=160, longest=longest)
    return [windows().start, windows(sliding=True).start]


def test_bits_a_byte_compare_tokenizers(data):
    """A uniform model over bytes needs 8 bits a byte, whatever the letters of the text are."""
    module = data(Byte())
    figures = task_of(Unigram(np.zeros(module.vocabulary_size)), evaluation_lengths=(1,)).evaluate(module)
    assert figures["test/loss@1x"] == pytest.approx(math.log(module.vocabulary_size), rel=1e-6)
    # a cut within a letter of two bytes costs a few bytes of the count
    assert figures["test/bits_per_byte@1x"] == pytest.approx(math.log2(module.vocabulary_size), rel=1e-2)


def test_a_learned_table_cannot_go_beyond_its_end(data):
    module = data()
    task = task_of(gpt(module, Learned), evaluation_lengths=(1, 2))
    figures = task.evaluate(module)
    assert "test/loss@1x" in figures
    assert not any(name.endswith("@2x") for name in figures)
    reason = "the learned table ends at 8 positions"
    assert task.unavailable == {"test/loss@2x": reason, "test/sliding_loss@2x": reason}


def test_a_length_that_the_text_is_too_short_for_is_an_outcome(data):
    task = task_of(gpt(module := data()), evaluation_lengths=(1, 1000), sliding=False)
    figures = task.evaluate(module)
    assert "test/loss@1x" in figures
    assert "too few for a lead-in and a window of 8,000" in task.unavailable["test/loss@1000x"]


def test_a_part_without_tokens_has_no_figures(data):
    module = data(split=(0.9, 0.1, 0.0))
    assert task_of(gpt(module)).evaluate(module) == {}


def test_evaluating_is_without_dropout_and_leaves_the_model_as_it_was(data):
    module = data()
    model = gpt(module, dropout=0.5).train()
    task = task_of(model, evaluation_lengths=(1,))
    assert task.evaluate(module) == task.evaluate(module)
    assert model.training
    assert task.validate(module)["val/loss"] == pytest.approx(
        task.evaluate(module, "validation")["val/loss@1x"], abs=0.05
    )


@pytest.mark.parametrize("most", [2, 96])
def test_samples_go_on_from_texts_of_the_split(data, monkeypatch, most):
    monkeypatch.setattr(language_modelling, "MOST_CONTINUED", most)
    module = data()
    task = task_of(gpt(module), evaluation_lengths=(1,))
    with task.evaluating():
        table = task.samples(module)
    text = module.tokenizer.decode(module.corpus.test.tokens.tolist())
    half = min(CONTEXT // 2, most)
    assert table.columns == ("text", "goes on", "model goes on")
    assert len(table.rows) == 8
    for prompt, cut, continued in table.rows:
        assert prompt + cut in text
        assert len(module.tokenizer.encode(continued)) == half == len(module.tokenizer.encode(cut))


def test_the_loss_is_a_sum_with_its_number_of_tokens(data):
    module = data()
    task = task_of(gpt(module))
    batch = next(iter(module.train_dataloader()))
    nats, tokens, _ = task.loss_sums(batch)
    logits_BTV = task.model(batch["tokens"]).detach()
    assert tokens == 4 * CONTEXT
    assert nats.item() == pytest.approx(
        float(F.cross_entropy(logits_BTV.flatten(0, 1), batch["targets"].flatten())) * tokens
    )
    scored_BT = torch.zeros(4, CONTEXT, dtype=torch.bool)
    scored_BT[1, 3] = scored_BT[2, 5] = True
    some, two, _ = task.loss_sums({**batch, "scored": scored_BT})
    by_hand = -logits_BTV.log_softmax(-1).gather(-1, batch["targets"][..., None])[scored_BT].sum()
    assert two == 2
    assert some.item() == pytest.approx(float(by_hand), rel=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"evaluation_lengths": ()}, {"evaluation_lengths": (0, 1)}, {"evaluation_tokens": 0}]
)
def test_settings_that_make_no_sense(data, wrong):
    with pytest.raises(ValueError, match="must be"):
        task_of(gpt(data()), **wrong)
