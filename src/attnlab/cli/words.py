"""The words that the `attnlab` command knows."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import attnlab
from attnlab.cli.resampling import add_option

Command = Callable[[str, str], argparse.ArgumentParser]
OVERRIDES = "settings as name=value, e.g. position=alibi model.d_model=128 trainer.max_steps=500"


def parser() -> argparse.ArgumentParser:
    """Of all commands."""
    whole = argparse.ArgumentParser(
        prog="attnlab", description="Which part of a Transformer earns its place, on my data, at my size?"
    )
    whole.add_argument("--version", action="version", version=f"attnlab {attnlab.__version__}")
    whole.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, what: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what)
        sub.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return sub

    _add_training(command)
    _add_study(command)
    _add_over_studies(command)
    _add_scaling(command)
    _add_trained(command)
    _add_attention(command)
    _add_exchanged(command)
    _add_looks(command)
    _add_data(command)
    return whole


def _add_training(command: Command) -> None:
    """The commands that train."""
    train = command("train", "train one run, or with -m every combination of comma-separated choices")
    train.add_argument("-m", "--multirun", action="store_true", help="Hydra's multirun, with any launcher")
    sweep = command("sweep", "run the missing cells of a study, then compare them")
    sweep.add_argument("study", help="a study's name, folder or study.yaml")
    retry = command("retry", "run again what a study lost, where its runs were launched last")
    retry.add_argument("study", help="a study's name, or its directory of runs")
    retry.add_argument("--failed", action="store_true", help="what failed, too")
    retry.add_argument("overrides", nargs="*", help="runs_dir=DIR, study.name=NAME, hydra.launcher.FIELD=VALUE")
    for sub in (sweep, retry):
        sub.add_argument("--detach", action="store_true", help="submit to Slurm and return at once")
    for sub in (train, sweep, retry):
        sub.add_argument(
            "--config-dir",
            action="append",
            default=[],
            help="a folder with configuration groups of your own; its files come before attnlab's",
        )
    for sub in (train, sweep):
        sub.add_argument("--cfg", action="store_true", help="print what would be run, and run nothing")
        sub.add_argument("overrides", nargs="*", help=OVERRIDES)


def _add_study(command: Command) -> None:
    """The commands on the runs of one study."""
    status = command("status", "show the state of a study's runs")
    compare = command("compare", "compare a study's cells in the terminal")
    report = command(
        "report", "write a study's comparison as one HTML page, with its table as CSV, Markdown and LaTeX beside it"
    )
    cancel = command("cancel", "stop the jobs of a study that Slurm has")
    for sub in (status, compare, report, cancel):
        sub.add_argument("study", help="a study's name, or its directory of runs")
        sub.add_argument("overrides", nargs="*", help="runs_dir=DIR, study.name=NAME")
    for sub in (compare, report):
        add_option(sub)
        sub.add_argument(
            "--part", type=int, help="of a study whose runs cannot all be compared: the part with this number"
        )
    _add_forms(compare)
    report.add_argument("--to", help="the file to write (default: report.html in the study's directory of runs)")
    report.add_argument("--no-figures", action="store_true", help="leave out figures/*.pdf and *.png beside the page")


def _add_scaling(command: Command) -> None:
    """The command on a study of sizes and budgets."""
    scaling = command(
        "scaling", "fit loss = E + A/N^alpha + B/D^beta to a study's runs, and say how to spend a compute"
    )
    scaling.add_argument("study", help="a study's name, or its directory of runs")
    scaling.add_argument("overrides", nargs="*", help="runs_dir=DIR, study.name=NAME")
    scaling.add_argument("--metric", help="the loss to fit, as test/nats@1x (default: the study's metric)")
    scaling.add_argument(
        "--count", choices=("non_embedding", "total"), default="non_embedding", help="what N counts; both are fitted"
    )
    scaling.add_argument(
        "--compute", action="append", type=float, default=[], help="operations to spend, as 1e15; give it several times"
    )
    scaling.add_argument("--resamples", type=int, default=500, help="of the cells, for the intervals")
    scaling.add_argument("--format", choices=("table", "json", "csv"), default="table")
    scaling.add_argument("--to", help="a folder for figures (PNG, PDF), scaling.json and runs.csv")


def _add_over_studies(command: Command) -> None:
    """The commands on one study, several or all."""
    serve = command("serve", "show studies in a browser while they run: on this machine alone, to who has the token")
    serve.add_argument(
        "overrides", nargs="*", metavar="STUDY", help="names, or directories of runs; without any all; runs_dir=DIR"
    )
    serve.add_argument("--port", type=int, default=0, help="default: the first that is free")
    serve.add_argument("--open", action="store_true", help="open the browser")
    sync = command("sync", "send the offline W&B files of a study, or of all, by `wandb sync`")
    sync.add_argument("study", nargs="?", help="a study's name, or its directory of runs; without it all")
    sync.add_argument("overrides", nargs="*", help="runs_dir=DIR, study.name=NAME")
    sync.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")


def _add_forms(compare: argparse.ArgumentParser) -> None:
    """What a comparison may look like."""
    compare.add_argument("--format", choices=("table", "csv", "md", "tex"), default="table")
    compare.add_argument(
        "--runs", action="store_true", help="list the runs that it rests on: value and directory of each"
    )
    compare.add_argument("--watch", action="store_true", help="redraw it while the runs write, until none does")
    compare.add_argument("--every", type=float, metavar="SECONDS", help="with --watch: the pause between two looks (2)")


def _add_looks(command: Command) -> None:
    """The commands that look inside models, trained or not."""
    positions = command(
        "positions", "show what position encodings do to scores by distance, beyond the training length, too"
    )
    positions.add_argument(
        "--length", type=int, help="positions in training (default: those of the run or settings, such as data.context)"
    )
    positions.add_argument("--beyond", type=int, default=4, help="how many times as far to look (default: 4)")
    reach = command("reach", "count which positions can reach an output, layer by layer, through windows and kernels")
    reach.add_argument("--length", type=int, help="positions (default: somewhat more than what can be reached)")
    for sub in (positions, reach):
        sub.add_argument(
            "words",
            nargs="*",
            help="directories of runs, or settings such as position=rotary,alibi and attention.window=16",
        )
        sub.add_argument("--to", help="a folder for the figure (.pdf and .png) and its numbers (.csv)")
        sub.add_argument("--checkpoint", choices=("best", "last"), default="last")
        sub.add_argument(
            "--config-dir",
            action="append",
            default=[],
            help="a folder with configuration groups of your own; its files come before attnlab's",
        )


def _add_exchanged(command: Command) -> None:
    """The commands on models of other libraries."""
    taken = command("import", "make the directory of a run out of a published model")
    taken.add_argument(
        "source",
        help="a folder with config.json and safetensors, a .gguf file, a model's name on the hub, or wheel:NAME",
    )
    taken.add_argument("--name", help="of the run; by default the source's")
    taken.add_argument("--revision", help="of a model on the hub: a commit, tag or branch")
    taken.add_argument(
        "--ignore",
        action="append",
        default=[],
        help="a field of its configuration, or tensors (a name, or a pattern such as 'classifier.*'), to leave out",
    )
    taken.add_argument(
        "--config-dir",
        action="append",
        default=[],
        help="a folder with configuration groups of your own; its files come before attnlab's",
    )
    taken.add_argument(
        "overrides", nargs="*", help="settings as name=value, of the data that it is evaluated on for example"
    )
    given = command("export", "write a run's model as a folder that Hugging Face transformers loads")
    given.add_argument("run", help="a run's directory")
    given.add_argument("--to", required=True, help="the folder to write")
    given.add_argument(
        "--as", dest="architecture", help="gpt2, llama, bert, ...; by default the one that computes the same"
    )
    given.add_argument("--checkpoint", choices=("best", "last"), default="last")
    embed = command("embed", "embed texts with a trained encoder, and say how alike they are")
    embed.add_argument("run", help="a run's directory")
    embed.add_argument("--text", action="append", default=[], help="give it several times for several")
    embed.add_argument("--input", help="a text file, one text a line")
    embed.add_argument(
        "--pooling", choices=("mean", "first"), default="mean", help="of the states: their mean, or the first"
    )
    embed.add_argument("--to", help="a .npy file for the embeddings, a normalised row a text")
    embed.add_argument("--picture", help="a .png or .pdf file: how alike they are, or a map of more than 30")
    embed.add_argument("--checkpoint", choices=("best", "last"), default="last")


def _add_attention(command: Command) -> None:
    """The command that looks inside."""
    sub = command("attention", "show what the heads of a trained run attend to, and what each does")
    sub.add_argument("run", help="a run's directory")
    sub.add_argument("--text", action="append", default=[], help="give it several times for several")
    sub.add_argument("--input", help="a text file, one text a line")
    sub.add_argument(
        "--target", action="append", default=[], help="of a text to translate; by default the model's own translation"
    )
    sub.add_argument("--image", action="append", default=[], help="a file, of a run on images")
    sub.add_argument(
        "--dependencies", help="sentences with dependency trees in CoNLL-U: which heads follow which relation"
    )
    sub.add_argument(
        "--ablate",
        nargs="?",
        const="validation",
        choices=("validation", "text"),
        help="mask each head and say what it does to the loss, on the run's validation data or on the texts given",
    )
    sub.add_argument(
        "--batches", type=int, default=4, help="of the validation data, for --ablate (256 examples at most)"
    )
    sub.add_argument("--figures", action="store_true", help="write figures for a paper, as PNG and PDF")
    sub.add_argument(
        "--head",
        help="the head that the figures show in detail, LAYER.HEAD from 0 (default: the one whose role is clearest)",
    )
    sub.add_argument("--to", help="a folder for the page and the tables (default: attention in the run's directory)")
    sub.add_argument("--checkpoint", choices=("best", "last"), default="last")


def _add_trained(command: Command) -> None:
    """The commands on a trained run."""
    evaluate = command("evaluate", "evaluate a trained run on one of its splits")
    evaluate.add_argument("run", help="a run's directory")
    evaluate.add_argument("--split", default="test", help="validation, test, or another that the data have")
    evaluate.add_argument("--checkpoint", choices=("best", "last"), default="last")
    evaluate.add_argument("--wandb", action="store_true", help="log the figures to W&B, as where the run itself was")
    generate = command("generate", "continue a prompt with a trained run")
    generate.add_argument("run", help="a run's directory")
    generate.add_argument(
        "--prompt", action="append", required=True, help="the text to continue; give it several times for several"
    )
    generate.add_argument(
        "--chat",
        action="store_true",
        help="take each prompt as a message, by the tokenizer's chat template; print the answers alone",
    )
    generate.add_argument("--system", help="with --chat: how the messages are to be answered")
    generate.add_argument("--max-new-tokens", type=int, default=200)
    generate.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--min-p", type=float)
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--checkpoint", choices=("best", "last"), default="last")
    translate = command("translate", "translate lines with a trained run")
    translate.add_argument("run", help="a run's directory")
    translate.add_argument("--input", help="a text file, one sentence a line (default: standard input)")
    translate.add_argument("--beams", type=int, help="1 is greedy (default: as the run was evaluated)")
    translate.add_argument("--length-penalty", type=float, help="alpha of ((5 + length) / 6)^alpha")
    translate.add_argument(
        "--num-best",
        type=int,
        default=1,
        help="translations of each line, best first, each after the line's number where they are several",
    )
    translate.add_argument(
        "--scores", action="store_true", help="print score and log-probability before each, with tabs"
    )
    translate.add_argument("--checkpoint", choices=("best", "last"), default="last")


def _add_data(command: Command) -> None:
    """The commands on data sets."""
    data = command("data", "list the data sets, or prepare one")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="the data sets that attnlab knows")
    prepare = actions.add_parser("prepare", help="fetch and tokenise a data set")
    prepare.add_argument("name")
    prepare.add_argument("overrides", nargs="*", help=OVERRIDES)
