"""`attnlab contract`: a stranger's part, held against what every part of its seam must do."""

import pytest

OWN = '''
import torch
from attnlab.layers import PositionEncoding

class Near(PositionEncoding):
    """Scores fall with the distance."""

    def __init__(self, strength: float = 0.5) -> None:
        super().__init__()
        self.strength = strength

    def bias(self, query_positions_BT, key_positions_BS):
        return -self.strength * (query_positions_BT[:, :, None] - key_positions_BS[:, None, :]).abs().float()[:, None]

class ByPlace(Near):
    """Counts places in the batch, whatever positions it is told."""

    def bias(self, query_positions_BT, key_positions_BS):
        rows, columns = query_positions_BT.shape[1], key_positions_BS.shape[1]
        return super().bias(torch.arange(rows)[None], torch.arange(columns)[None])
'''


@pytest.fixture
def own(here, monkeypatch):
    (here / "my_parts.py").write_text(OWN)
    (here / "my_conf" / "position").mkdir(parents=True)
    for name, kind in (("near", "Near"), ("by_place", "ByPlace")):
        (here / "my_conf" / "position" / f"{name}.yaml").write_text(f"_target_: my_parts.{kind}\n_partial_: true\n")
    monkeypatch.syspath_prepend(str(here))
    return ["--config-dir", "my_conf"]


def test_a_part_that_keeps_its_contract_is_said_property_by_property(attnlab, own):
    said = attnlab("contract", "position=near", *own)
    assert said.status == 0, said.err
    assert "  holds   gpt: later tokens do not change earlier logits\n" in said.out
    assert {line.split()[1].rstrip(":") for line in said.out.splitlines() if line.startswith("  holds")} == {
        "gpt", "bert", "encoder_decoder", "vit", "clip", "whisper"
    }  # fmt: skip
    assert said.out.endswith("properties hold, 0 are broken\n")


def test_a_part_that_breaks_it_is_told_where(attnlab, own):
    said = attnlab("contract", "position=by_place", *own)
    assert said.status == 1
    assert "  BROKEN  gpt: cached decoding equals full decoding: " in said.out
    assert "  holds   bert: every token changes every logit\n" in said.out


def test_a_part_that_fits_one_family_alone_says_why_not_the_others(attnlab):
    said = attnlab("contract", "position=sinusoidal_2d")
    assert said.status == 0
    assert "  -       gpt: not built: Sinusoidal2D needs grid" in said.out
    assert "  holds   vit: an image of another size is taken\n" in said.out


def test_what_is_no_seam_is_refused(attnlab):
    said = attnlab("contract", "optimizer=adamw")
    assert said.status == 2
    assert "contract needs a part, as position=rotary; the seams are position, residual, norm" in said.err
