import subprocess
import sys
from dataclasses import replace
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.huggingface import save

from attnlab.data import BPE, Byte, Character, DataError, MaskedTextData, Masking, TextData, TextFiles, read_tokenizer


def make_data(path, **changes):
    options = {"context": 16, "batch_size": 4, "split": (0.8, 0.1, 0.1), "seed": 3, "path": str(path), **changes}
    return TextData(partial(TextFiles, pattern="*.txt"), Character(), **options)


class Recorder(lightning.LightningModule):
    """Trains one number and remembers which windows it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches, self.num_scored = [], 0

    def training_step(self, batch, index):
        self.batches.append(batch["tokens"].clone())
        return self.weight**2

    def validation_step(self, batch, index):
        self.num_scored += int(batch["scored"].sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(path, folder, max_steps, resume=None, **options):
    module, data = Recorder(), make_data(path)
    trainer = lightning.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=5,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")],
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module


@pytest.mark.parametrize("step", [3, 6])
def test_lightning_goes_on_in_the_middle_of_an_epoch(prose_file, tmp_path, step):
    whole = fit(prose_file, tmp_path / "whole", 12)
    fit(prose_file, tmp_path / "first", 7)
    rest = fit(prose_file, tmp_path / "rest", 12, resume=tmp_path / "first" / f"step={step}.ckpt")
    assert len(whole.batches) == 12
    assert torch.equal(torch.stack(whole.batches[step:]), torch.stack(rest.batches))


def test_validation_scores_all_targets_it_is_given(prose_file, tmp_path):
    scored = fit(prose_file, tmp_path, 5).num_scored
    data = make_data(prose_file)
    assert scored == data.val_dataloader().num_targets
    assert data.corpus.validation.num_tokens - 3 * 16 < scored < data.corpus.validation.num_tokens


def test_batches_are_text_of_the_training_part(prose, prose_file):
    data = make_data(prose_file)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == batch["targets"].shape == (4, 16)
    assert data.tokens_per_batch == 64
    assert data.vocabulary_size == len(set(prose))
    for row in batch["tokens"]:
        assert data.tokenizer.decode(row.numpy()) in prose[: int(len(prose) * 0.8)]


def test_evaluation_lengths_share_their_targets(prose_file):
    data = make_data(prose_file)
    loaders = [data.evaluation_loader("test", k * 16, sliding, 500) for k in (1, 2, 4, 8) for sliding in (False, True)]
    texts = {
        tuple(token for batch in loader for token in batch["targets"][batch["scored"]].tolist()) for loader in loaders
    }
    assert len(texts) == 1
    assert len(texts.pop()) == 384  # of 500, what the longest window of 128 divides


def test_lengths_that_fit_work_where_the_longest_does_not(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("abcdefghij" * 60)
    data = make_data(path)
    assert [data.evaluation_loader("test", length).num_targets for length in (16, 32)] == [32, 32]
    with pytest.raises(DataError, match=r"the test part of data=text: 60 tokens are too few for one window of 64"):
        data.evaluation_loader("test", 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 0}, r"context must be at least 1"),
        ({"batch_size": -1}, r"batch_size must be at least 1"),
        ({"path": "nowhere.txt"}, r"data\.path=nowhere\.txt does not exist"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(prose_file, changes, message):
    with pytest.raises(ValueError, match=message):
        make_data(**{"path": prose_file, **changes})


def test_text_shorter_than_a_context_is_found_at_setup(tmp_path, prose_file):
    path = tmp_path / "short.txt"
    path.write_text("abc")
    with pytest.raises(DataError, match="the train part of data=text: 2 tokens are too few for one window of 16"):
        make_data(path).setup()
    with pytest.raises(DataError, match="the validation part is empty"):
        make_data(prose_file, split=(1.0, 0.0, 0.0)).setup()


def test_source_may_be_given_whole(prose_file):
    assert TextData(TextFiles(prose_file), Byte()).vocabulary_size == 256


def test_listing_data_loads_neither_torch_nor_lightning():
    code = "import sys, attnlab.data as d; d.describe_sources(); print({'torch', 'lightning', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(("tokenizer", "marked"), [(Character(), False), (Byte(), False), (BPE(300), True)])
def test_documents_in_sub_words_end_in_a_mark_and_others_where_it_is_asked_for(prose_file, tokenizer, marked):
    plain = TextData(TextFiles, tokenizer, path=str(prose_file), end_of_text=False)
    for asked, expected in ((None, marked), (True, True), (False, False)):
        data = TextData(TextFiles, tokenizer, path=str(prose_file), end_of_text=asked)
        assert data.vocabulary_size == plain.vocabulary_size + expected
        assert (data.tokenizer.marks is not None) == expected


def test_windows_with_marks_of_their_own_have_no_other_mark(prose_file, tmp_path):
    """Whether their tokenizer is new or that of a language model."""
    masked = MaskedTextData(TextFiles, BPE(300), Masking(), context=8, path=str(prose_file))
    data = TextData(TextFiles, BPE(300), path=str(prose_file))
    data.tokenizer.save(tmp_path / "tokenizer.json")
    again = MaskedTextData(TextFiles, read_tokenizer(str(tmp_path)), Masking(), context=8, path=str(prose_file))
    assert masked.tokenizer == again.tokenizer == data.tokenizer.own


def test_a_tokenizer_whose_marks_have_no_end_cannot_mark_it(prose_file, tmp_path):
    tokenizer = read_tokenizer(str(save("gpt2", tmp_path)))
    assert TextData(TextFiles, tokenizer, path=str(prose_file)).end_of_text
    without = replace(tokenizer, special={}, also_ends=[])
    assert not TextData(TextFiles, without, path=str(prose_file)).end_of_text
    with pytest.raises(DataError, match="this tokenizer has no end mark"):
        TextData(TextFiles, without, path=str(prose_file), end_of_text=True)
