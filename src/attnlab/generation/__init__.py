from attnlab.generation.sampling import Sampler, generate
