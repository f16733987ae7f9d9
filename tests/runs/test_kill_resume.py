"""A few trials of experiments/kill_resume: runs that are killed at random instants end with the bits of those that were not."""

from pathlib import Path

import pytest
from tests.processes import program

MEASURE = Path(__file__).parents[2] / "experiments" / "kill_resume" / "measure.py"


@pytest.mark.slow
@pytest.mark.timeout(600)  # it takes a minute where nothing else runs
def test_killed_and_damaged_runs_end_with_the_bits_of_others(here):
    words = ["--runs", "5", "--kills", "1", "--damaged", "1"]
    done = program(
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
        str(MEASURE),
        *words,
    )
    assert done.wait(580) == 0, done.said
    rows = {line.split()[0]: line.split()[1:] for line in done.said.splitlines() if line}
    for family in ("causal_lm", "masked_lm", "translation", "images_texts", "speech"):
        assert rows[family] == ["1", "1", "1"]
    assert rows["torn"] == rows["flipped"] == ["1", "1", "1"]
