"""The public surface: what `import attnlab` gives, and that it costs nothing."""

import subprocess
import sys

import attnlab


def test_the_public_names_are_these():
    assert sorted(attnlab.__all__) == [
        "Bert",
        "CLIP",
        "Comparison",
        "EncoderDecoder",
        "GPT",
        "PositionEncoding",
        "Study",
        "T5",
        "ViT",
        "__version__",
        "compare",
        "contract",
        "load_model",
        "load_run",
        "load_study",
        "write_report",
    ]
    assert dir(attnlab) == sorted(attnlab.__all__)
    assert all(getattr(attnlab, name) is not None for name in attnlab.__all__)


def test_a_name_that_is_not_there_is_an_ordinary_error():
    assert not hasattr(attnlab, "Gpt")


def test_the_package_loads_nothing_until_a_name_is_used():
    program = "import sys, attnlab; print(sorted({'torch', 'lightning', 'hydra', 'polars'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_type_checkers_see_the_types(pytestconfig):
    assert (pytestconfig.rootpath / "src" / "attnlab" / "py.typed").is_file()
