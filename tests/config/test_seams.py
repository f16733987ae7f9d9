"""Parts of one's own: what is no part of its seam is refused before any data are read, with its base and what that leaves to it."""

import sys

import pytest
from tests.config.changes import changed

from attnlab.config import UsageError
from attnlab.config.check import check
from attnlab.config.compose import ConfigSpace
from attnlab.parts import find
from attnlab.runs.build import dry_build

MODULES = {
    "own_parts": """
        from attnlab.data import Tokenizer
        from attnlab.layers import PositionEncoding
        from attnlab.training import Task

        class Nothing: pass

        class Position(PositionEncoding):
            def __init__(self, d_model: int) -> None:
                super().__init__()

        class WithoutMetrics(Task):
            def loss_sums(self, batch): ...

        class WithoutCodes(Tokenizer):
            def train(self, text): return self

        def no_optimizer(model): return 3
        def no_schedule(total_steps): return lambda step: float("nan")
    """,
    "own_unimportable": "import a_module_that_is_not_there",
    "own_residual": """
        from attnlab.layers import Residual
        class Unjoined(Residual): pass
    """,
}
BASES = {
    "position": ("attnlab.PositionEncoding", "embed, rotate, rotate_keys, bias"),
    "residual": ("attnlab.layers.Residual", "join"),
    "norm": ("attnlab.layers.Norm", "forward"),
    "attention": ("attnlab.layers.Mixer", "forward"),
    "feed_forward": ("attnlab.layers.PositionWise", "forward"),
    "init": ("attnlab.layers.Init", "std"),
    "model": ("torch.nn.Module", "forward"),
    "task": ("attnlab.training.Task", "loss_sums, metrics"),
    "optimizer": ("torch.optim.Optimizer", "step"),
    "schedule": ("attnlab.training.Schedule", "after"),
    "averaging": ("attnlab.training.Averaging", "after_step"),
    "data": ("attnlab.data.DataModule", "facts"),
    "batch_ramp": ("attnlab.data.Ramp", "share, size"),
    "length_ramp": ("attnlab.data.Ramp", "share, size"),
    "data.source": ("attnlab.data.TextSource", "read"),
    "tokenizer": ("attnlab.data.Tokenizer", "decode, encode"),
    "augmentation": ("attnlab.data.Augmentation or attnlab.data.SpeechAugmentation", "mix"),
    "trainer": ("attnlab.training.TrainerSettings", ""),
    "logger": ("attnlab.training.Tracking", ""),
}


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The default configuration, beside modules of one's own."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text("\n".join(line[8:] for line in text.splitlines()) if "\n" in text else text)
    sys.path.append(str(folder))
    with ConfigSpace() as space:
        yield space.compose([])
    sys.path.remove(str(folder))


def refused(default, path, target, partial=None):
    """The message about a configuration whose part at `path` is another one, without fields."""
    partial = find(default.raw, path).get("_partial_", False) if partial is None else partial
    node = {"_target_": target} | ({"_partial_": True} if partial else {})
    with pytest.raises(UsageError) as caught:
        before_data_are_read(changed(default, path, node))
    return str(caught.value)


def before_data_are_read(composed):
    check(composed)
    dry_build(composed.resolved)


@pytest.mark.parametrize("path", BASES)
def test_a_class_of_no_seam_is_told_its_base_and_hooks(default, path):
    base, hooks = BASES[path]
    said = refused(default, path, "own_parts.Nothing")
    assert said.startswith(f"{path} must be derived from {base}, got 'own_parts.Nothing'")
    assert hooks in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "target", "words"),
    [
        ("task", "own_parts.WithoutMetrics", "lacks metrics, which attnlab.training.Task leaves to"),
        ("tokenizer", "own_parts.WithoutCodes", "lacks decode, encode, vocabulary_size, which attnlab.data.Tokenizer"),
        ("residual", "own_residual.Unjoined", "Unjoined has to give join, or forward for all sublayers at once"),
        ("optimizer", "own_parts.no_optimizer", "optimizer must be a function that gives a torch.optim.Optimizer"),
        ("schedule", "own_parts.no_schedule", "schedule must be a function of the step that gives a multiple"),
        ("position", "own_parts.Absent", "cannot load own_parts.Absent: own_parts has no Absent."),
        ("position", "own_parts.Positon", "Did you mean Position?"),
        ("position", "own_parts", "position._target_ must be a class or a function, got 'own_parts'"),
        ("position", None, "position._target_ must be the path of a class, as in attnlab.layers.Rotary, got null"),
        ("norm", "attnlab.training.adamw", "norm must be derived from attnlab.layers.Norm"),
        (
            "norm",
            "attnlab.training.EMA",
            "; accepted: norm=dynamic_tanh, norm=layer_norm, norm=none, norm=rms_norm, or one",
        ),
    ],
)
def test_what_a_part_lacks_is_named(default, path, target, words):
    assert words in refused(default, path, target)


def test_a_part_that_is_told_more_later_has_to_say_so(default):
    assert "needs the line `_partial_: true`" in refused(default, "position", "own_parts.Position", partial=False)
    assert "must not have the line" in refused(default, "averaging", "attnlab.training.EMA", partial=True)


def test_an_import_that_fails_is_given_whole(default):
    said = refused(default, "norm", "own_unimportable.Norm")
    assert (
        "cannot load own_unimportable.Norm: ModuleNotFoundError: No module named 'a_module_that_is_not_there'" in said
    )
    assert "own_unimportable.py:1: import a_module_that_is_not_there" in said
