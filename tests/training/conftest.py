"""Makes tiny_run importable from the tests here, and runs them on one thread; what two ranks train is trained once for all tests."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.once import made_once

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of split_runs."""
    import split_runs

    return made_once(tmp_path_factory, "split", split_runs.write_texts)


@pytest.fixture(scope="session")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes out of each task where a step's batch is one."""
    import split_runs

    def make(folder: Path) -> None:
        torch.save({kind: split_runs.train(kind, texts) for kind in split_runs.TASKS}, folder / "whole.pt")

    return load(made_once(tmp_path_factory, "whole", make) / "whole.pt")


@pytest.fixture(scope="session")
def alone(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes out on one device of the runs that are gone on with; their checkpoints are in <name>-of-one."""
    import split_runs

    def make(folder: Path) -> None:
        found = {
            name: split_runs.train(folder=texts, checkpoints=texts / f"{name}-of-one", **given())
            for name, given in split_runs.RESUMED.items()
        }
        torch.save(found, folder / "alone.pt")

    return load(made_once(tmp_path_factory, "alone", make) / "alone.pt")


@pytest.fixture(scope="session")
def both(texts: Path, alone: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What came out on each of two ranks."""
    import split_runs

    made_once(tmp_path_factory, "both", lambda _: split_runs.run_together(texts))
    return [load(texts / f"rank{rank}.pt") for rank in range(2)]


def load(path: Path) -> Any:
    """What torch.save wrote."""
    return torch.load(path, weights_only=True)
