"""A few trials of experiments/kill_resume: runs that are killed at random instants end with the bits of those that were not."""

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = Path(__file__).parents[2] / "experiments" / "kill_resume" / "measure.py"


@pytest.mark.slow
@pytest.mark.timeout(600)  # it takes half a minute where nothing else runs
def test_killed_and_damaged_runs_end_with_the_bits_of_others(here):
    words = [sys.executable, str(MEASURE), "--runs", "3", "--kills", "1", "--damaged", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    for family in ("causal_lm", "masked_lm", "translation"):
        assert rows[family] == ["1", "1", "1"]
    assert rows["torn"] == rows["flipped"] == ["1", "1", "1"]
