from attnlab.models.gpt import GPT
from attnlab.models.size import Size, gpt_size
