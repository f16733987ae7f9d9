"""What tests of every room may use."""

import ctypes
import gc
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# One thread in each of the tests' processes and of those that they start, which are as many as there are cores: more would wait for
# one another. Read by torch and numpy when they are loaded; tests that are about threads set their own number.
for threads in ("OMP", "OPENBLAS", "MKL", "RAYON"):
    os.environ.setdefault(f"{threads}_NUM_THREADS", "1")
# Where transformers puts the code of folders that bring some: each process of tests has a place of its own.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf-modules-")
# Imported below the threads, which torch reads when it is loaded.
from tests.stored_studies import grid_comparison, position  # noqa: E402, F401
from tests.tiny_runs import attnlab, here, images, imported, left, library, own_data, published, small_data, study, tiny  # noqa: E402, F401


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless browser (tests.browser.Chromium), started once a process of tests."""
    from tests.browser import chromium  # only tests of pages need what it needs

    with chromium() as started:
        yield started


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules that a test wrote and imported are gone with it: another test may have some of the same names."""
    last, written = next(reversed(sys.modules)), str(tmp_path_factory.getbasetemp())
    yield
    for name in list(itertools.takewhile(lambda name: name != last, reversed(sys.modules))):  # those imported since
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(written):
            del sys.modules[name]


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder that the test may read and not write: for the superuser too, who gives up the right to write anywhere meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        if os.geteuid() == 0:
            may_write_anywhere(True)
        folder.chmod(0o755)


@pytest.fixture
def dropout_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, dropout multiplies by 1 + rate: what a model gives shows every place that has it, exactly."""
    for place in ("attnlab.layers.pointwise.dropout", "attnlab.layers.backends.drop"):
        monkeypatch.setattr(place, lambda x, rate: x * (1 + rate))


def forbid_writing(folder: Path) -> None:
    """Takes the right to write in `folder` (of `read_only_folder`) and below away, until the fixture ends."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        may_write_anywhere(False)


def may_write_anywhere(may: bool) -> None:
    """Gives the superuser's thread the right to pass over permissions to write, or takes it away; that to read stays, for
    a checkout may be in a folder of the superuser's own (capabilities(7), CAP_DAC_OVERRIDE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the first 32 and the others
    read = libc.capget(header, sets)
    sets[0] = sets[0] & ~2 | (sets[1] & 2 if may else 0)
    if read or libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capabilities cannot be changed")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: some tests wait for a cluster, a browser or a clock."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """The collector of garbage leaves alone what the tests have imported, some 600,000 objects, and comes more rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    trainers = sys.modules.get("lightning.pytorch.trainer.connectors.callback_connector")
    if trainers is not None:  # each would look for callbacks in all packages that are installed
        trainers._load_external_callbacks = cache(trainers._load_external_callbacks)
    torch = sys.modules.get("torch")
    if torch is not None and not torch.accelerator.is_available():
        # Without a device torch keeps each seed for it, and line by line who set it.
        for absent in (torch.cuda, torch.xpu, torch.mtia):
            absent.manual_seed_all = lambda seed: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the cluster first: they mostly wait, and at the end nothing would be left to do beside them."""
    items.sort(key=lambda item: "cluster" not in item.path.parts)
