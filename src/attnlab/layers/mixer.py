"""What mixes the positions of a stream: the base of attention and of what stands in its place.

Shapes: B batch, T length, D model width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor, nn

from attnlab.layers.cache import LayerCache
from attnlab.layers.memory import Memory
from attnlab.layers.pointwise import Sides
from attnlab.layers.positions import PositionEncoding
from attnlab.layers.scope import Scope
from attnlab.parts import Choices, Part


class Mixer(Part, nn.Module):
    """What mixes the positions of a stream, x (B, T, D) to (B, T, D). Made with d_model, num_heads, causal and what
    else of a stack's dims it takes. d_head: the width that a position encoding acts on.
    """

    takes_rotation: ClassVar[bool] = False  # whether positions may rotate its queries and keys
    takes_bias: ClassVar[bool] = False  # whether positions may add to its scores
    sees_both_sides: ClassVar[bool] = False  # whether it serves a stack that is not causal
    reads_memory: ClassVar[bool] = False  # whether it also attends to an encoder's states
    sides: ClassVar[Mapping[str, Sides]] = {}  # of its layers, by name, where it is known how they go with the width
    d_head: int

    @abstractmethod
    def forward(
        self, x_BTD: Tensor, scope: Scope, cache: LayerCache | None = None, memory: Memory | None = None
    ) -> Tensor:
        """Mixes within `scope`; with a cache, goes on from what earlier forwards left there, and leaves its own."""

    def keys_and_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Of a memory's states, (B, G, S, K) each; for a class that reads memories."""
        raise NotImplementedError

    @classmethod
    def incompatible(cls, choices: Choices) -> Iterator[str]:
        yield from super().incompatible(choices)
        model, named = choices.parts.get("model"), f"attention={choices.name('attention')}"
        if getattr(model, "sees_both_sides", False) and not cls.sees_both_sides:
            yield (
                f"attention: {named} sees only what stands before a token, and model={choices.name('model')} has "
                "layers that see both sides; choose attention=multi_head there, or model=gpt"
            )
        elif getattr(model, "has_memory", False) and not cls.reads_memory:
            yield (
                f"attention: {named} cannot attend to an encoder, and model={choices.name('model')} has a decoder that "
                "does; choose attention=multi_head, and name it for some layers alone (model.pattern)"
            )
        position, why = choices.parts.get("position"), None
        if isinstance(position, type) and issubclass(position, PositionEncoding):
            why = cls.refuses(position)
        if why:
            yield f"position: position={choices.name('position')} {why.format(mixer=named)}"

    @classmethod
    def refuses(cls, position: type[PositionEncoding]) -> str | None:
        """Why it can do nothing with a position encoding, with {mixer} for its name; None where it can."""
        if position.rotate is not PositionEncoding.rotate and not cls.takes_rotation:
            return "rotates queries and keys, which {mixer} has none of to rotate; choose position=none"
        adds = position.bias is not PositionEncoding.bias or position.context_bias is not PositionEncoding.context_bias
        if adds and not cls.takes_bias:
            return "adds to the scores of queries and keys, and {mixer} has no scores; choose position=none"
        return None
