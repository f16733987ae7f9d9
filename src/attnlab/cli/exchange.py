"""`attnlab import` and `attnlab export`: pretrained models as runs, and runs as folders for other libraries."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from attnlab.cli.options import Command, add_config_dir, add_repeatable, add_run
from attnlab.config import UsageError


def _import_options(taken: ArgumentParser) -> None:
    source = "a folder with config.json and safetensors, a .gguf file, a model's name on the hub, or wheel:NAME"
    taken.add_argument("source", help=source)
    taken.add_argument("--name", help="of the run (default: the source's)")
    taken.add_argument("--revision", help="of a model on the hub: a commit, tag or branch")
    ignored = "a field of its configuration, or tensors (a name, or a pattern such as 'classifier.*'), to leave out"
    add_repeatable(taken, "--ignore", ignored)
    add_config_dir(taken)
    settings = "settings as name=value, of the data that it is evaluated on for example"
    taken.add_argument("overrides", nargs="*", help=settings)


def import_model(arguments: Namespace) -> int:
    """Makes the run's directory, and says what was taken. Raises: UsageError."""
    from attnlab.runs.imported import import_model

    taken = (arguments.source, arguments.name, arguments.revision, arguments.ignore)
    told, notes = import_model(*taken, arguments.overrides, arguments.config_dir)
    return _say(told, notes)


def _export_options(given: ArgumentParser) -> None:
    add_run(given)
    given.add_argument("--to", required=True, help="the folder to write")
    architecture = "gpt2, llama, bert, ... (default: the one that computes the same)"
    given.add_argument("--as", dest="architecture", help=architecture)


def export(arguments: Namespace) -> int:
    """Writes the folder, tried before it is called one. Raises: UsageError."""
    from attnlab.runs.exported import export_run

    directory, target = Path(arguments.run), Path(arguments.to)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise UsageError(f"--to {target}: there is something already; give a folder that is new or empty")
    return _say(*export_run(directory, arguments.checkpoint, target, arguments.architecture))


def _say(told: list[str], notes: list[str]) -> int:
    print(*told, sep="\n")
    for note in notes:
        print(note, file=sys.stderr)
    return 0


COMMANDS = {
    "import": Command("import a pretrained model as a run", _import_options, import_model),
    "export": Command("export a run's model as a folder that Hugging Face transformers loads", _export_options, export),
}
