"""attnlab: which part of a Transformer earns its place, on my data, at my size?"""

__version__ = "0.1.0"
