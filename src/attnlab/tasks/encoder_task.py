"""What the tasks on an encoder's states share: perhaps another run's encoder to start from."""

from __future__ import annotations

from typing import ClassVar

from attnlab.data.marks import Marks
from attnlab.models.encoder import Encoder
from attnlab.models.heads import EncoderHead
from attnlab.tasks.pretrained import load_pretrained
from attnlab.training import TokenTask


class EncoderTask(TokenTask):
    """A task whose model is an EncoderHead. pretrained: the directory of a run whose encoder this one starts from; None: from scratch."""

    model_type: ClassVar[type] = Encoder
    pretrained: str | None = None

    def initialise(self) -> list[str]:
        """Takes the encoder of the pretrained run, where there is one."""
        if self.pretrained is None:
            return []
        assert isinstance(self.model, EncoderHead)
        return [load_pretrained(self.model.encoder, self.pretrained)]


def mask_for(token_dropout: float, marks: Marks) -> int:
    """What hides a token in training. Raises DataError where tokens are to be hidden and the tokenizer has no mask."""
    return marks.need("mask") if token_dropout else marks.filler
