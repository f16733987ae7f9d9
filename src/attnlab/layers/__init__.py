
from attnlab.layers.attention import Attention, GroupedQuery, MultiHead, MultiQuery
from attnlab.layers.backends import Backend, Explicit, Flex, Fused, choose_backend
from attnlab.layers.cache import KeyValueCache, LayerCache
from attnlab.layers.masks import build_mask
from attnlab.layers.parts import complete, count_parameters
from attnlab.layers.positions import ALiBi, Learned, PositionEncoding, RelativeBias, Sinusoidal
from attnlab.layers.positions_2d import AxialRotary, Learned2D, Sinusoidal2D
from attnlab.layers.rotary import Rotary, RotaryLinear, RotaryLlama3, RotaryNTK, RotaryYaRN
from attnlab.layers.scope import Scope, build_scope
