"""A Slurm of three nodes on this machine, for the time of the tests."""

import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("minislurm.sh")
NODES = 3


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    draw = random.Random(os.getpid())
    for _ in range(100):
        first = draw.randrange(20000, 32000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("no free ports for a Slurm of the tests")


@pytest.fixture(scope="session")
def minislurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a client of the cluster has in its environment."""
    if shutil.which("slurmctld") is None:
        pytest.skip("Slurm is not installed (Debian: apt-get install slurm-wlm munge)")
    folder = tmp_path_factory.mktemp("slurm")
    ports = {"MINISLURM_PORT": str(free_ports(NODES + 1))}
    subprocess.run(["bash", SCRIPT, "start", folder, str(NODES)], env=os.environ | ports, check=True, timeout=60)
    yield {
        "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    subprocess.run(["bash", SCRIPT, "stop", folder], env=os.environ | ports, check=True, timeout=60)


@pytest.fixture
def slurm(minislurm: dict[str, str], here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a test on the cluster, which has no job of the test when it ends."""
    for name, value in minislurm.items():
        monkeypatch.setenv(name, value)
    yield here
    subprocess.run(["scancel", "--user", str(os.getuid())], check=True, timeout=20)
