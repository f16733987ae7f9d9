"""How near what `attnlab sweep STUDY --dry-run` foretells comes to what the sweep then takes, on this machine.

python experiments/preflight/measure.py position_length nanogpt_cpu [--set trainer.max_steps=300] [--seeds 2]
Each study is tried and then swept, one after the other, in a folder that is removed; the machine should be idle otherwise.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time

SECONDS = {"s": 1, "min": 60, "h": 3600}
TIME = re.compile(r"about ([\d.]+) (s|min|h) on this machine")
PACE = re.compile(r"about ([\d.]+) (s|min|h) in all,? by the pace of the first steps")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--set", nargs="*", default=[], help="settings of all of them")
    parser.add_argument("--seeds", type=int)
    given = parser.parse_args()
    settings = [*given.set, *([f"study.seeds={given.seeds}"] if given.seeds else [])]
    print(f"{'study':22}{'tried in':>10}{'foretold':>10}{'by pace':>10}{'took':>10}{'ratio':>8}", flush=True)
    for study in given.studies:
        with tempfile.TemporaryDirectory() as folder:
            words = [study, f"runs_dir={folder}", *settings]
            tried, said = timed([*words, "--dry-run"])
            took, swept = timed(words)
        foretold, pace = found(TIME, said), found(PACE, swept)
        cells = (f"{tried:.0f} s", shown(foretold), shown(pace), shown(took))
        ratio = f"{foretold / took:.2f}" if foretold else "-"
        print(f"{study:22}" + "".join(f"{cell:>10}" for cell in cells) + f"{ratio:>8}", flush=True)
    return 0


def timed(words: list[str]) -> tuple[float, str]:
    """Seconds of `attnlab sweep`, and all that it said. Raises: SystemExit where it failed."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "attnlab", "sweep", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"attnlab sweep {' '.join(words)}: {done.stderr[-2000:]}")
    return time.perf_counter() - begun, done.stdout + done.stderr


def found(pattern: re.Pattern[str], text: str) -> float | None:
    """The first time that a text says, in seconds."""
    said = pattern.search(text)
    return float(said[1]) * SECONDS[said[2]] if said else None


def shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
