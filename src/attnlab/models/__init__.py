from attnlab.models.gpt import GPT
