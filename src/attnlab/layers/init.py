"""The first weights of a model.

Every weight is drawn by its own generator, seeded by the model's seed and the weight's name: two models that differ in
one part start from the same values wherever names and shapes agree, so runs of one seed are paired.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.layers.convolution import GatedConvolution
from attnlab.layers.positions import RelativeBias
from attnlab.layers.stack import Residual
from attnlab.parts import Part


@dataclass
class Weight:
    """One matrix to draw, and its role.

    writes: its product is added to the residual stream. gain: of the residual that it belongs to. depth: how many
    sublayers write to its stream. gated: half of its product gates the other half.
    """

    name: str
    tensor: Tensor
    is_embedding: bool = False
    writes: bool = False
    gain: float = 1.0
    depth: int = 1
    gated: bool = False


class Init(Part):
    """Draws a model's weights; a choice says the `std` of each.

    Biases start at 0 (an LSTM's forget gate's at 1); norms, learned scalars and biases on the scores keep their own
    start. Learned positions count as embeddings.
    """

    @abstractmethod
    def std(self, weight: Weight) -> float:
        """The standard deviation of a weight, before the residual's gain."""

    def fill(self, tensor: Tensor, std: float, generator: torch.Generator) -> None:
        """Draws from the normal distribution."""
        tensor.normal_(0.0, std, generator=generator)

    @torch.no_grad()
    def __call__(self, model: nn.Module, seed: int | None = None) -> None:
        """Draws every weight of `model` in place; without a seed, one is drawn from torch's global generator."""
        seed = draw_seed() if seed is None else seed
        for weight in weights_of(model):
            # On the CPU and then copied, so that every device starts from the same values.
            drawn = torch.empty(weight.tensor.shape, device="cpu")
            self.fill(drawn, self.std(weight) * weight.gain, _generator(seed, weight.name))
            weight.tensor.copy_(drawn)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
                start_gates(module)


class Xavier(Init):
    """Glorot & Bengio 2010, with the uniform distribution, as the Transformer of Vaswani et al. 2017 was trained.

    | weight | std |
    |---|---|
    | linear | sqrt(2 / (fan in + fan out)), uniform |
    | embedding | d_model^-1/2, uniform |
    """

    def std(self, weight: Weight) -> float:
        rows, columns = weight.tensor.shape
        return columns**-0.5 if weight.is_embedding else math.sqrt(2 / (rows + columns))

    def fill(self, tensor: Tensor, std: float, generator: torch.Generator) -> None:
        bound = math.sqrt(3) * std
        tensor.uniform_(-bound, bound, generator=generator)


class Normal002(Init):
    """The normal initialisation of GPT (Radford et al. 2018, section 4.1) and BERT: 0.02 everywhere."""

    def std(self, weight: Weight) -> float:
        return 0.02


class GPT2Init(Init):
    """GPT-2's (Radford et al. 2019, section 2.3): the stream's variance does not grow with the depth.

    | weight | std |
    |---|---|
    | linear, embedding | 0.02 |
    | attention output, feed-forward down | 0.02 / sqrt(number of sublayers in the stack) = 0.02 / sqrt(2 num_layers) |
    """

    def std(self, weight: Weight) -> float:
        return 0.02 / math.sqrt(weight.depth) if weight.writes else 0.02


class Small(Init):
    """SmallInit (Nguyen & Salazar 2019, arXiv 1910.05895, section 2.2): Xavier's deviation for a feed-forward matrix (d
    to 4d), everywhere: sqrt(2 / (5 d_model)), d_model the width on the side of the stream.
    """

    def std(self, weight: Weight) -> float:
        rows, columns = weight.tensor.shape
        return math.sqrt(2 / (5 * (rows if weight.writes else columns)))


class FanIn(Init):
    """For gated convolutions (Gehring et al. 2017, arXiv 1705.03122, section 3.5): keeps the variance from layer to
    layer.

    | weight | std |
    |---|---|
    | linear | sqrt(1 / fan in) |
    | into a gated linear unit | sqrt(4 / fan in) |
    | embedding | 0.1 |
    """

    def std(self, weight: Weight) -> float:
        if weight.is_embedding:
            return 0.1
        return math.sqrt((4 if weight.gated else 1) / weight.tensor.shape[1])


def weights_of(model: nn.Module) -> Iterator[Weight]:
    """The matrix of every linear layer and embedding of `model`, and of every gate of its recurrent layers, each once,
    with its role.

    In a layer that holds a Residual as `residual`, the linear layers named `output` and `down` write to the stream, and
    the residual's gain acts on these and on `value`, `up` and `gate` (DeepNorm, Wang et al. 2022, figure 2: value,
    output and feed-forward projections).
    """
    roles = {id(linear): role for module in model.modules() for linear, role in _roles(module)}
    roles |= {id(module.windows): {"gated": True} for module in model.modules() if isinstance(module, GatedConvolution)}
    # A bias on the scores is no embedding: its table keeps its own start.
    seen: set[Tensor] = {module.table.weight for module in model.modules() if isinstance(module, RelativeBias)}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            yield from _gates(name, module)
        elif isinstance(module, nn.Linear | nn.Embedding) and module.weight not in seen:
            seen.add(module.weight)
            role = roles.get(id(module), {"is_embedding": isinstance(module, nn.Embedding)})
            yield Weight(f"{name}.weight", module.weight, **role)


def _roles(stack: nn.Module) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """The linear layers in the layers that are children of `stack`, and what is special about each."""
    layers: list[Any] = [c for c in stack.children() if isinstance(getattr(c, "residual", None), Residual)]
    for layer in layers:
        sublayers = [child for child in layer.children() if not isinstance(child, Residual)]
        for sublayer in sublayers:
            # An attention's gate only weighs what its output projection will write: the paper scales no such weight.
            scaled = ("value", "output") if hasattr(sublayer, "query") else ("up", "gate", "down")
            for name, linear in sublayer.named_children():
                gain = layer.residual.init_gain if name in scaled else 1.0
                depth = len(layers) * len(sublayers)
                yield linear, {"writes": name in ("output", "down"), "gain": gain, "depth": depth}


def _gates(name: str, module: nn.Module) -> Iterator[Weight]:
    for field, tensor in module.named_parameters(recurse=False):
        if tensor.ndim == 2:
            gates = tensor.chunk(4 if isinstance(module, nn.LSTM | nn.LSTMCell) else 3)
            yield from (Weight(f"{name}.{field}.{gate}", part) for gate, part in enumerate(gates))


def start_gates(module: nn.Module) -> None:
    """Zeroes a recurrent layer's biases, an LSTM's forget gate's but 1 (Gers et al. 2000; Jozefowicz et al. 2015)."""
    for field, bias in module.named_parameters(recurse=False):
        if bias.ndim == 1:
            bias.zero_()
            if isinstance(module, nn.LSTM | nn.LSTMCell) and field.startswith("bias_ih"):
                bias.chunk(4)[1].fill_(1.0)


def draw_seed() -> int:
    """A seed from torch's global generator."""
    return int(torch.randint(2**62, (), device="cpu"))


def _generator(seed: int, name: str) -> torch.Generator:
    # Torch's CPU generator heeds 32 bits of its seed only.
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
