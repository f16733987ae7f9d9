"""Decoding that is compared: the same weights in attnlab, transformers and CTranslate2, the same number of tokens. With
beams some targets differ: attnlab counts the price of the end at the greatest length, the others do not.

Legend: B batch, S source length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from attnlab.generation import BeamSearch, decode
from attnlab.interop import read_model

END = 0
SIZES = {
    "d_model": 256,
    "num_heads": 8,
    "num_layers": 3,
    "length": 64,
    "vocabulary_size": 8000,
    "batch_size": 32,
    "source_length": 32,
    "new_tokens": 40,
}
Decoder = Callable[[], list[list[int]]]


def marian(sizes: Mapping[str, int]) -> torch.nn.Module:
    """Marian of transformers with random weights, so large that hypotheses differ, and no wish to end."""
    from transformers import MarianMTModel

    from training import marian_config

    torch.manual_seed(0)
    model = MarianMTModel(marian_config(sizes)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.xavier_normal_(module.weight)
        model.model.shared.weight.normal_(std=sizes["d_model"] ** -0.5)[model.config.pad_token_id] = 0
        model.model.decoder.layers[-1].final_layer_norm.weight.fill_(4)
        model.final_logits_bias[0, END] = -50
    return model


def decoders(sizes: Mapping[str, int], num_beams: int, threads: int) -> dict[str, Decoder]:
    """What decodes the same random sources on each side: the new tokens of each best hypothesis."""
    theirs = marian(sizes)
    source_BS = torch.randint(4, sizes["vocabulary_size"] - 1, (sizes["batch_size"], sizes["source_length"]))
    found = {
        "attnlab": _own(theirs, source_BS, num_beams, sizes["new_tokens"]),
        "transformers": _transformers(theirs, source_BS, num_beams, sizes["new_tokens"]),
    }
    try:
        import ctranslate2  # noqa: F401
    except ImportError:
        return found
    return {**found, "CTranslate2": _ctranslate2(theirs, source_BS, num_beams, sizes["new_tokens"], threads)}


def _own(theirs: torch.nn.Module, source_BS: Tensor, num_beams: int, count: int) -> Decoder:
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        found = read_model(Path(folder))
    model = found.model()
    search, start = BeamSearch(num_beams, length_penalty=0.0), theirs.config.pad_token_id

    def run() -> list[list[int]]:
        found = decode(model, source_BS, None, search, start, END, never=(start,), max_length=count + 1)
        return [best[0].tokens for best in found]

    return run


def _transformers(theirs: torch.nn.Module, source_BS: Tensor, num_beams: int, count: int) -> Decoder:
    said = {
        "num_beams": num_beams,
        "do_sample": False,
        "length_penalty": 0.0,
        "bad_words_ids": [[theirs.config.pad_token_id]],
    }

    def run() -> list[list[int]]:
        with torch.inference_mode():
            out_BT = theirs.generate(source_BS, max_new_tokens=count, min_new_tokens=count, **said)
        return [row[1:] for row in out_BT.tolist()]

    return run


def _ctranslate2(theirs: torch.nn.Module, source_BS: Tensor, num_beams: int, count: int, threads: int) -> Decoder:
    import ctranslate2
    from ctranslate2.converters.transformers import MarianMTLoader

    spec = MarianMTLoader().get_model_spec(theirs)
    tokens = [str(index) for index in range(theirs.config.vocab_size - 1)]  # its converter takes the padding out
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.eos_token, spec.config.unk_token, spec.config.decoder_start_token = str(END), "1", str(END)
    with tempfile.TemporaryDirectory() as folder:
        spec.validate()
        spec.optimize()
        spec.save(folder)
        translator = ctranslate2.Translator(folder, "cpu", compute_type="float32", intra_threads=threads)
    texts = [[str(token) for token in row] for row in source_BS.tolist()]
    bounds = {"min_decoding_length": count, "max_decoding_length": count, "max_batch_size": len(texts)}

    def run() -> list[list[int]]:
        given = {"beam_size": num_beams, "length_penalty": 0.0}
        found = translator.translate_batch(texts, **given, **bounds)
        return [[int(token) for token in one.hypotheses[0]] for one in found]

    return run
