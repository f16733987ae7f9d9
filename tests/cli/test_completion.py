"""What a real bash offers behind TAB, with the code that `attnlab completion bash` prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LINES = {
    "attnlab ch": ["choices"],
    "attnlab data pre": ["prepare"],
    "attnlab train --conf": ["--config-dir"],
    "attnlab train pos": ["position="],
    "attnlab train mixed": ["mixed_code="],
    "attnlab train position=rot": ["rotary", "rotary_linear", "rotary_llama3", "rotary_ntk", "rotary_yarn"],
    "attnlab train position=rotary,ali": ["rotary,alibi"],
    "attnlab train trainer.max": ["trainer.max_epochs=", "trainer.max_steps="],
    "attnlab train callbacks=[early": ["\\[early_stopping"],
    "attnlab train callbacks=[mine,early": ["\\[mine,early_stopping"],
    "attnlab train callbacks=[early_stopping] callbacks.early_stopping.pat": ["callbacks.early_stopping.patience="],
    "attnlab train position.fac": [],  # of the default, which has no such field
    "attnlab train position=rotary_yarn position.fac": ["position.factor="],
    "attnlab train data=kjv_masked data.masking.mask": ["data.masking.mask_share="],
    "attnlab train --config-dir own position=mi": ["mine"],
    "attnlab train --config-dir own position=mine position.str": ["position.strength="],
    "attnlab train --config-dir own position=broken position.x": [],
    "attnlab choices position/rotary_n": ["position/rotary_ntk"],
    "attnlab contract resid": ["residual="],
    "attnlab sweep position_l": ["position_length"],
    "attnlab sweep my_q": ["my_question"],
    "attnlab compare ra": ["ran"],
    "attnlab attention ru": ["runs/ran/"],
    "attnlab attention runs/ran/": ["runs/ran/position=alibi/seed=0", "runs/ran/position=alibi/seed=1"],
    "attnlab nothing": [],
}
ASK = """
eval "$(attnlab completion bash)"
while IFS= read -r COMP_LINE; do
  COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=() _ARGCOMPLETE_SUPPRESS_SPACE=1
  export COMP_LINE COMP_POINT COMP_TYPE
  _python_argcomplete attnlab "" ""
  (IFS=$'\\t'; echo "${COMPREPLY[*]}")
done
"""


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """What is offered for each of LINES, in a folder with a study, runs and parts of one's own."""
    folder = tmp_path_factory.mktemp("shell")
    for path, text in {
        "my_question/study.yaml": "question: x",
        "runs/ran/position=alibi/seed=0/run.json": "{}",
        "runs/ran/position=alibi/seed=1/run.json": "{}",
        "own/position/mine.yaml": "_target_: mine.Mine\n_partial_: true\nstrength: 1.0\n",
        "own/position/broken.yaml": "x: [1\n",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    asked = "".join(f"{line}\n" for line in LINES)
    done = subprocess.run(
        ["bash", "-c", ASK],
        input=asked,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environ,
        timeout=200,
        check=True,
    )
    assert done.stderr == ""
    return dict(zip(LINES, done.stdout.split("\n"), strict=False))


@pytest.mark.parametrize("line", LINES)
def test_bash_offers_how_a_word_may_go_on(offered, line):
    assert sorted(word.strip() for word in offered[line].split("\t") if word) == LINES[line]


def test_completing_loads_nothing_that_takes_long(tmp_path):
    """Neither torch nor Hydra: an answer is waited for."""
    line = "attnlab train position=rot"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "said")}
    words = [sys.executable, "-X", "importtime", "-c", "from attnlab.cli.main import main; main([])"]
    done = subprocess.run(words, env={**os.environ, **asked}, capture_output=True, text=True, timeout=60, check=True)
    loaded = {row.split("|")[-1].strip() for row in done.stderr.splitlines()}
    assert loaded & {"torch", "lightning", "hydra", "omegaconf"} == set()
    assert "argcomplete" in loaded
    assert "rotary_yarn" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_of_each_shell_asks_attnlab(attnlab, shell):
    said = attnlab("completion", shell)
    assert said.status == 0
    assert "attnlab" in said.out
    assert "_ARGCOMPLETE" in said.out
