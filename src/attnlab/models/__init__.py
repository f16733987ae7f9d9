"""Models: the seams put together to a family, and its size in closed form."""

from attnlab.models.gpt import GPT
from attnlab.models.size import Size, gpt_size

__all__ = ["GPT", "Size", "gpt_size"]
