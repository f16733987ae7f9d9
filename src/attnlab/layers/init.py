"""The first weights of a model.

Every weight is drawn by its own generator, seeded by the model's seed and the weight's name: two models that differ in
one part start from the same values wherever names and shapes agree, so runs of one seed are paired.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from attnlab.layers.baselines import GatedConvolution
from attnlab.layers.contextual_positions import CoPE
from attnlab.layers.pointwise import FeedForward
from attnlab.layers.positions import RelativeBias
from attnlab.layers.residuals import Residual
from attnlab.parts import Part


@dataclass
class Weight:
    """One matrix to draw, and its role."""

    name: str
    tensor: Tensor
    is_embedding: bool = False
    writes: bool = False  # its product is added to the residual stream
    gain: float = 1.0  # of the residual that it belongs to
    depth: int = 1  # how many sublayers write to its stream
    gated: bool = False  # half of its product gates the other half


class Init(Part):
    """Draws a model's weights; a choice says the `std` of each. Learned positions count as embeddings. Biases start at
    0 (an LSTM's forget gate's at 1); norms, learned scalars and biases on the scores keep their start.
    """

    @abstractmethod
    def std(self, weight: Weight) -> float:
        """The standard deviation of a weight, before the residual's gain."""

    def fill(self, tensor: Tensor, weight: Weight, std: float, generator: torch.Generator) -> None:
        """Draws the values of a weight into a tensor of its shape."""
        tensor.normal_(0.0, std, generator=generator)

    @torch.no_grad()
    def __call__(self, model: nn.Module, seed: int | None = None) -> None:
        """Draws every weight of `model` in place; without a seed, one is drawn from torch's global generator."""
        seed = draw_seed() if seed is None else seed
        for weight in weights_of(model):
            if weight.tensor.is_meta:  # has no values
                continue
            # On the CPU and then copied, so that every device starts from the same values.
            drawn = torch.empty(weight.tensor.shape, device="cpu")
            self.fill(drawn, weight, self.std(weight) * weight.gain, _generator(seed, weight.name))
            weight.tensor.copy_(drawn)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
                start_gates(module)


class Xavier(Init):
    """Glorot & Bengio 2010, uniform, as Vaswani et al. 2017 trained: sqrt(2 / (fan in + fan out)), embeddings
    d_model^-1/2.
    """

    def std(self, weight: Weight) -> float:
        rows, columns = weight.tensor.shape
        return columns**-0.5 if weight.is_embedding else math.sqrt(2 / (rows + columns))

    def fill(self, tensor: Tensor, weight: Weight, std: float, generator: torch.Generator) -> None:
        bound = math.sqrt(3) * std
        tensor.uniform_(-bound, bound, generator=generator)


class PyTorchInit(Init):
    """What torch's own layers draw: embeddings normal of deviation 1, others uniform within 1 / sqrt(fan in)
    (`reset_parameters` of nn.Embedding and nn.Linear), but that biases start at 0.

    Adam moves every element by about its rate whatever its size, so that large embeddings keep their first directions
    for longer. A tied output has large logits at first: untie it.
    """

    def std(self, weight: Weight) -> float:
        return 1.0 if weight.is_embedding else math.sqrt(1 / (3 * weight.tensor.shape[1]))

    def fill(self, tensor: Tensor, weight: Weight, std: float, generator: torch.Generator) -> None:
        if weight.is_embedding:
            tensor.normal_(0.0, std, generator=generator)
        else:
            bound = math.sqrt(3) * std
            tensor.uniform_(-bound, bound, generator=generator)


class Normal002(Init):
    """The normal initialisation of GPT (Radford et al. 2018, section 4.1) and BERT: 0.02 everywhere."""

    def std(self, weight: Weight) -> float:
        return 0.02


class GPT2Init(Init):
    """GPT-2's (Radford et al. 2019, section 2.3): 0.02, and what writes to the stream over the root of the number of
    sublayers, so that the stream's variance does not grow with the depth.
    """

    def std(self, weight: Weight) -> float:
        return 0.02 / math.sqrt(weight.depth) if weight.writes else 0.02


class Small(Init):
    """SmallInit (Nguyen & Salazar 2019, arXiv 1910.05895, sec. 2.2): Xavier's of a matrix d to 4d, sqrt(2 / (5
    d_model)).
    """

    def std(self, weight: Weight) -> float:
        rows, columns = weight.tensor.shape
        return math.sqrt(2 / (5 * (rows if weight.writes else columns)))  # d_model is on the side of the stream


class FanIn(Init):
    """Keeps the variance of gated convolutions (Gehring et al. 2017, arXiv 1705.03122, section 3.5): sqrt(1 / fan in),
    into a gated linear unit sqrt(4 / fan in), embeddings 0.1.
    """

    def std(self, weight: Weight) -> float:
        if weight.is_embedding:
            return 0.1
        return math.sqrt((4 if weight.gated else 1) / weight.tensor.shape[1])


def weights_of(model: nn.Module) -> Iterator[Weight]:
    """The matrix of every linear layer and embedding of `model`, and of every gate of its recurrent layers,
    each once.
    """
    roles = dict(role for module in model.modules() for role in _roles(module))
    # A bias on the scores is no embedding: its table keeps its own start.
    seen: set[Tensor] = {module.table.weight for module in model.modules() if isinstance(module, RelativeBias | CoPE)}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            yield from _gates(name, module)
        elif isinstance(module, nn.Linear | nn.Embedding) and module.weight not in seen:
            seen.add(module.weight)
            of_kind = partial(Weight, is_embedding=isinstance(module, nn.Embedding))
            yield roles.get(module, of_kind)(f"{name}.weight", module.weight)


def _roles(module: nn.Module) -> Iterator[tuple[nn.Module, Callable[[str, Tensor], Weight]]]:
    """The linear layers in the layers that are children of a stack, and those of gated convolutions. The residual's
    gain acts on value, output and feed-forward projections (DeepNorm, Wang et al. 2022, figure 2).
    """
    if isinstance(module, GatedConvolution):
        yield module.windows, partial(Weight, gated=True)
    residuals = {layer: getattr(layer, "residual", None) for layer in module.children()}
    layers = {layer: residual for layer, residual in residuals.items() if isinstance(residual, Residual)}
    for layer, residual in layers.items():
        others = (child for child in layer.children() if not isinstance(child, Residual))
        sublayers = [child for child in others if getattr(child, "is_sublayer", True)]
        for sublayer in sublayers:
            # An attention's gate only weighs what its output projection will write: the paper scales no such weight.
            scaled = ("value", "output") if hasattr(sublayer, "query") else ("up", "gate", "down")
            depth = getattr(module, "depth", len(layers)) * len(sublayers)
            # Each expert of a mixture is drawn as the feed-forward layer that it is.
            experts: list[nn.Module] = [part for part in sublayer.modules() if isinstance(part, FeedForward)]
            parts = experts or [sublayer]
            for name, linear in (named for part in parts for named in part.named_children()):
                gain = residual.init_gain if name in scaled else 1.0
                yield linear, partial(Weight, writes=name in ("output", "down"), gain=gain, depth=depth)


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
    return int(torch.randint(2**62, (), device="cpu"))


def _generator(seed: int, name: str) -> torch.Generator:
    # Torch's CPU generator heeds 32 bits of its seed only.
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
