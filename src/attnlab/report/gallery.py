"""The pages of the gallery, in Markdown: a page a study that reproduces a published effect, and their index.

A page follows from the run directories and from nothing else; the same runs give the same bytes. Its front matter has
what the index says of it, so that pages whose runs stand elsewhere keep their row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from PIL import Image

from attnlab.analysis.claims import Claim
from attnlab.analysis.comparison import Comparison
from attnlab.analysis.formatting import listing
from attnlab.analysis.headline import headline
from attnlab.analysis.published_figures import beside_published, published_table
from attnlab.analysis.reader import Run
from attnlab.analysis.scaling import Scaling, law_table, scaling_of
from attnlab.analysis.size_trends import size_table
from attnlab.analysis.table import Column, Entry, Table
from attnlab.analysis.tables import to_markdown
from attnlab.analysis.tuning import budget_sentence, choices_table, equal_settings_table
from attnlab.report.figures import style
from attnlab.report.figures.scaling import draw_loss, drawn
from attnlab.report.figures.study import KINDS
from attnlab.report.run_data import origin
from attnlab.training.metrics import natural
from attnlab.training.published import Published
from attnlab.training.run_directory import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FENCE = "---\n"
PICTURES = ("lengths", "differences", "grid", "curves")  # the first that a study has
LIBRARIES = ("torch", "lightning", "numpy")
NOT_RUN = "not run yet"
INTRODUCTION = """# Gallery

Published effects, each reproduced by one command on 2 cores. `attnlab gallery` lists them with what came out here,
`attnlab gallery NAME` runs one and writes its page, `attnlab gallery --all` runs all. Claims were made before the runs;
what was not reproduced stays, as a result. What the words rest on: [How sure a comparison is](../comparison.md).
Attention sinks of a published model, where nothing is trained, are measured by `experiments/attention_sinks`.

"""
DPI, COLOURS = 140, 64  # of a picture, which stands in the repository: some 20 kB


@dataclass(frozen=True)
class Outcome:
    """What came out of a study, in the words of the gallery.

    here: the claims that were met, and were not; verdict: "reproduced" where all that had to be met are met, "not
    reproduced" where one is not, else "open"; measured: what stands behind the first claim; size: what becomes of the
    effects with size.
    """

    here: str
    verdict: str
    measured: str
    size: str
    seeds: int

    @classmethod
    def of(cls, comparison: Comparison) -> Outcome:
        claims = comparison.claims
        counts = {word: sum(claim.verdict == word for claim in claims) for word in ("met", "not met", "open")}
        counted = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        trends = comparison.size_trends
        words = [f"{trend.choice} {trend.word}" if len(trends) > 1 else trend.word for trend in trends]
        return cls(
            here=f"claims: {counted}" if claims else "no claims",
            verdict=_verdict(claims),
            measured=claims[0].reason if claims else "",
            size=", ".join(words),
            seeds=len(comparison.study.seeds),
        )


def _verdict(claims: Sequence[Claim]) -> str:
    found = [claim.verdict for claim in claims if claim.strength != "should"] or [claim.verdict for claim in claims]
    if "not met" in found:
        return "not reproduced"
    return "reproduced" if found and "open" not in found else "open"


def write_page(comparison: Comparison, folder: Path, about: str = "") -> list[Path]:
    """Writes NAME.md and, where there is something to draw, NAME.png; returns the files.

    about: a link to what the study's own README says. Raises ValueError for a study without a published effect,
    CannotWrite.
    """
    study, published = comparison.study, comparison.study.published
    if published is None:
        raise ValueError(f"{study.name}: its study.yaml names no published effect, so it has no page in the gallery")
    folder.mkdir(parents=True, exist_ok=True)
    page, picture = folder / f"{study.name}.md", folder / f"{study.name}.png"
    law = _law(comparison, published)
    with style.paper_style():
        if figure := _picture(comparison, law):
            write_bytes(picture, _png(figure), durable=False)
    outcome = Outcome.of(comparison)
    text = _text(comparison, published, outcome, law, bool(figure), about)
    write_text(page, _front_matter(asdict(outcome)) + text)
    return [page, *[picture] * bool(figure)]


def _law(comparison: Comparison, published: Published) -> Scaling | str | None:
    """The law of a study that is about one, or why its runs carry none yet."""
    if not published.law:
        return None
    try:
        return scaling_of(comparison.study)
    except ValueError as reason:
        return str(reason)


def _picture(comparison: Comparison, law: Scaling | str | None) -> Figure | None:
    if isinstance(law, Scaling):
        return drawn(law, draw_loss)
    found = (KINDS[kind].figure(comparison, None) for kind in PICTURES)
    return next((figure for figure in found if figure is not None), None)


def _png(figure: Figure) -> bytes:
    """A picture of few colours, which takes a quarter of the room; the same figure gives the same bytes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(small, format="png", optimize=True)
    return small.getvalue()


def _text(
    comparison: Comparison,
    published: Published,
    outcome: Outcome,
    law: Scaling | str | None,
    has_picture: bool,
    about: str,
) -> str:
    study = comparison.study
    parts = [
        f"# {published.effect}",
        f"{study.question} {about}".strip(),
        f"Source: {published.source}{f'; {published.figure}' if published.figure else ''}.",
        f"```bash\nattnlab gallery {study.name}\n```",
        f"**{outcome.verdict.capitalize()}**: {outcome.here}; {outcome.seeds} seed{'s' * (outcome.seeds > 1)}.",
        "\n".join(f"- {sentence}" for sentence in headline(comparison)),
    ]
    if has_picture:
        parts.append(f"![{published.effect}]({study.name}.png)")
    parts += _section(claims_table(comparison)) + _section(published_table(beside_published(comparison)))
    if isinstance(law, Scaling):
        parts += _section(law_table(law, published.law))
    elif law:
        parts.append(f"No law was fitted: {law}.")
    parts += _section(size_table(comparison.size_trends))
    if found := comparison.tuning:
        parts += _section(choices_table(found, comparison.cells), budget_sentence(found))
        parts += _section(equal_settings_table(found))
    metric = f"{comparison.metric.name}, {comparison.metric.better} is better" if comparison.metric else ""
    parts.append(f"## Cells\n\n{metric}\n\n{to_markdown(replace(comparison, size_trends=[])).strip()}")
    parts += _section(made_of(comparison))
    return "\n\n".join(parts) + "\n"


def _section(table: Table | None, *before: str) -> list[str]:
    """A table under its title, after some sentences; nothing for none."""
    return [f"## {table.title}", *before, table.to_markdown().strip()] if table else []


def claims_table(comparison: Comparison) -> Table | None:
    """The claims with what was measured and their source; None without any."""
    columns: list[Column[Claim]] = [
        Column("claim", lambda claim: claim.says, "l"),
        Column("verdict", lambda claim: Entry(claim.verdict, mood=claim.verdict), "l"),
        Column("measured", lambda claim: claim.reason, "l"),
        Column("strength", lambda claim: claim.strength, "l"),
        Column("source", lambda claim: claim.source, "l"),
    ]
    return Table.of(columns, comparison.claims, "Claims made beforehand") if comparison.claims else None


def made_of(comparison: Comparison) -> Table:
    """Seeds, time, code, versions and machine, as the runs have them; several where they differ."""
    study, runs = comparison.study, [run for run in comparison.study.runs.values() if run.record]
    seconds = sum(float(str(run.status.get("seconds") or 0)) for run in runs)
    ended = {state: count for state, count in comparison.states.items() if state != "finished"}
    rows = {
        "runs": ", ".join([f"{len(study.cells)} cells x {len(study.seeds)} seeds", *_counted(ended)]),
        "seeds": listing([str(seed) for seed in study.seeds], 20),
        "training in all": f"{seconds / 60:.1f} minutes of single runs",
        "code": _each(runs, _code),
        **{name: _each(runs, partial(_version, name)) for name in LIBRARIES},
        "precision": _each(runs, lambda run: run.section("precision").get("used")),
        "when, on what": "; ".join(origin(study)),
    }
    return Table(["", ""], [[name, said] for name, said in rows.items() if said], "How it was made", "ll")


def _counted(states: Mapping[str, int]) -> list[str]:
    return [f"{count} {state}" for state, count in states.items()]


def _code(run: Run) -> str:
    git = run.section("git")
    commit = str(git.get("commit") or "")[:10]
    return f"{commit} with changes" if commit and git.get("dirty") else commit


def _version(library: str, run: Run) -> object:
    return run.section("versions").get(library)


def _each(runs: Iterable[Run], of: Callable[[Run], object]) -> str:
    return listing(list(dict.fromkeys(str(said) for run in runs if (said := of(run)))), 4)


def _front_matter(values: Mapping[str, object]) -> str:
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
    return f"{FENCE}{''.join(lines)}{FENCE}\n"


def read_outcome(page: Path) -> Outcome | None:
    """What a page's front matter says; None where there is no page, or it says something else."""
    try:
        before, front, _ = page.read_text(encoding="utf-8").split(FENCE, 2)
        values = yaml.safe_load(front)
        return Outcome(**{one.name: values[one.name] for one in fields(Outcome)}) if not before else None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def write_index(studies: Mapping[str, Published], folder: Path) -> Path:
    """Writes index.md: a row a study of the gallery, with what its page in the folder says. Raises CannotWrite."""
    rows = []
    for name in sorted(studies, key=natural):
        published, found = studies[name], read_outcome(folder / f"{name}.md")
        title = Entry(name, link=f"{name}.md") if found else name
        law = ", ".join(f"{key} {value:g}" for key, value in published.law.items())
        figure = published.figure or law or f"{len(published.figures)} figures"
        said = [found.measured, found.verdict, found.size] if found else ["", NOT_RUN, ""]
        rows.append([title, published.effect, published.source, figure, *said, f"{published.minutes:g}"])
    headings = ["study", "effect", "source", "published", "here", "verdict", "with size", "minutes"]
    note = (
        "here: what stands behind the study's first claim; with size: whether the effect grows or shrinks, from two "
        "sizes; minutes: expected on 2 cores."
    )
    table = Table(headings, rows, "Gallery", "lllllllr", [note])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "index.md", INTRODUCTION + table.to_markdown())
    return folder / "index.md"
