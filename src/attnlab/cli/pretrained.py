"""Whether another run's encoder is the one that this run is about to build: names and shapes of weights do not tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.cli.compose import Mistake, flatten
from attnlab.training.run_directory import read_json

if TYPE_CHECKING:
    from attnlab.data import Tokenizer  # it brings torch with it

# What may differ: it leaves what the encoder computes with given weights as it is, or shows in their shapes.
FREE = ("dropout", "backend", "tied", "max_length", "init_from")


def other_encoder(resolved: Mapping[str, Any]) -> Iterator[str]:
    """What tells the model of this configuration from that of the run in task.pretrained; nothing where that run says nothing yet."""
    run = resolved["task"].get("pretrained")
    record = read_json(Path(run).expanduser() / "run.json", {}) if run else {}
    if not record:
        return
    there, here = (_encoder(config["model"]) for config in (record["config"], resolved))
    nothing = "(absent)"
    for key in sorted({*there, *here}):
        if there.get(key, nothing) != here.get(key, nothing):
            yield f"model.{key}: {there.get(key, nothing)} there, {here.get(key, nothing)} here"


def _encoder(model: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in flatten(model) if key.split(".")[0] != "init" and key.split(".")[-1] not in FREE
    }


def refuse_other_tokenizer(run: str, own: Mapping[str, Tokenizer], field: str = "task.pretrained") -> None:
    """
    Compares the tokenizers of a run with one's own, by the names of their files.

    field: the setting that names the run. Raises: Mistake where one differs: a token's number would mean another sub-word there.
    """
    for name, tokenizer in own.items():
        path = Path(run).expanduser() / name
        if path.is_file() and path.read_text(encoding="utf-8") != tokenizer.as_json():
            raise Mistake(
                f"{field}={run}: {path.name} there is not this run's, so each token would get the weights of another; "
                "leave data.tokenizer_from and tokenizer out to take that run's tokenizer"
            )
