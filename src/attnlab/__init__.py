"""attnlab: which part of a Transformer earns its place, on my data, at my size?

The public names are loaded at their first use, so that `import attnlab` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnlab.layers import PositionEncoding as PositionEncoding
    from attnlab.models import CLIP as CLIP
    from attnlab.models import GPT as GPT
    from attnlab.models import T5 as T5
    from attnlab.models import Bert as Bert
    from attnlab.models import EncoderDecoder as EncoderDecoder
    from attnlab.models import ViT as ViT
    from attnlab.notebook.run import load_run as load_run
    from attnlab.notebook.study import Comparison as Comparison
    from attnlab.notebook.study import Study as Study
    from attnlab.notebook.study import compare as compare
    from attnlab.notebook.study import load_study as load_study
    from attnlab.notebook.study import write_report as write_report
    from attnlab.runs.trained import load_model as load_model
    from attnlab.testing import contract as contract

__version__ = "0.1.0"

_HOMES = {
    "layers": ("PositionEncoding",),
    "models": ("CLIP", "GPT", "T5", "Bert", "EncoderDecoder", "ViT"),
    "notebook.run": ("load_run",),
    "notebook.study": ("Comparison", "Study", "compare", "load_study", "write_report"),
    "runs.trained": ("load_model",),
    "testing": ("contract",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
