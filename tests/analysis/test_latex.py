"""LaTeX tables compiled: as wide as the text of an article in one column and in two at the most, whatever the names are."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.analysis.memory import study_of

from attnlab.analysis.comparison import compare
from attnlab.analysis.tables import write_tables

ODD = [
    r"100%_$x^2$",
    "a&b#c~d",
    r"{e}\f",
    "[g]<h>|i|",
    "*starred",
    "my_own_package.positions.AnEncodingWithAVeryLongNameIndeed",
    "a" * 60,
]
NAMES = [*ODD, "learned", "rotary", "alibi", "relative_bias", "none"]
FACTORS = ["position", "residual"]
DOCUMENT = r"""\documentclass[CLASS]{article}
\usepackage{booktabs}
\begin{document}
BODY
\end{document}
"""
FLOAT = r"\begin{tableSTAR}\centering\caption{NAME}\input{NAME}\end{tableSTAR}\clearpage"


def written(folder: Path) -> list[str]:
    """Tables of twelve odd cells, of four columns of factors, and of effects and interactions; their names for \input."""
    levels = {("position",): [(name,) for name in NAMES]}
    levels[tuple(FACTORS)] = list(itertools.product(NAMES[6:], ["post_ln", "a_residual_of_a_long_name"]))
    levels["residual", "model.num_layers", "optimizer.lr", "schedule.warmup_steps"] = list(
        itertools.product(["post_ln", "pre_ln"], [6, 12], ["1e-3", "3e-3"], [0, 200])
    )
    found = []
    for number, (factors, choices) in enumerate(levels.items()):
        cells = {each: {s: 2 + i / 10 + s * (i % 3) / 50 for s in range(4)} for i, each in enumerate(choices)}
        cells[choices[-1]][2] = "failed"
        to = folder / str(number)
        to.mkdir()
        files = write_tables(compare(study_of(cells, factors)), to)
        found += [f"{number}/{path.name}" for path in files if path.suffix == ".tex"]
    return found


def compiled(folder: Path, body: str, options: str) -> str:
    """The log of pdflatex, which must not complain."""
    (folder / "paper.tex").write_text(DOCUMENT.replace("CLASS", options).replace("BODY", body))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return (folder / "paper.log").read_text(errors="replace")


def test_tables_compile_and_fit_the_text_of_one_and_of_two_columns(tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (Debian: apt-get install texlive-latex-recommended)")
    names = written(tmp_path)
    assert names == [
        "0/table.tex",
        *(f"{k}/{name}.tex" for k in (1, 2) for name in ("table", "effects", "interactions")),
    ]
    for options, star in (("10pt", ""), ("twocolumn", "*")):
        body = "\n".join(FLOAT.replace("NAME", name).replace("STAR", star) for name in names)
        log = compiled(tmp_path, body, options)
        assert not re.findall(r"(?:Overfull|Missing character).*", log), options
        assert f"({len(names)} pages" in log
    probe = compiled(tmp_path, r"\noindent\rule{400pt}{1pt}", "10pt")
    assert "Overfull" in probe  # that is how it would be said
