"""Small tokenizers and models in the manner of published ones, in Hugging Face's files as transformers writes them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "The quick brown fox, naïve as ever, jumps over the lazy dog's 12 bones.",
    "Ein Straßenhund läuft über die Wiese!",
] * 20
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def bert() -> tuple[Tokenizer, dict]:
    """WordPiece with BERT's normaliser and marks."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=160, special_tokens=marks, show_progress=False)
    )
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad", "unk", "cls", "sep", "mask")
    return library, {f"{name}_token": mark for name, mark in zip(names, marks, strict=True)}


def _byte_level(marks: list[str]) -> Tokenizer:
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=marks, show_progress=False)
    library.train_from_iterator(TEXT, trainer)
    return library


def gpt2() -> tuple[Tokenizer, dict]:
    """Byte-level BPE whose one mark is the end, and padding too."""
    return _byte_level(["<|endoftext|>"]), dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")


def chat() -> tuple[Tokenizer, dict]:
    """Byte-level BPE with the marks of conversations."""
    library = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return library, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}


def bart() -> tuple[Tokenizer, dict]:
    """Byte-level BPE with RoBERTa's marks."""
    library = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    library.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    marks = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    return library, {f"{name}_token": mark for name, mark in marks.items()}


def t5(num_sentinels: int = 12) -> tuple[Tokenizer, dict]:
    """Unigram with blanks as marks, and sentinels whose numbers count down."""
    library = Tokenizer(models.Unigram())
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    marks = ["<pad>", "</s>", "<unk>"]
    library.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=150, special_tokens=marks, unk_token="<unk>", show_progress=False)
    )
    library.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(num_sentinels))]
    library.add_special_tokens(sentinels)
    return library, {
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "additional_special_tokens": sentinels,
    }


def llama() -> tuple[Tokenizer, dict]:
    """BPE with blanks as marks, which falls back to bytes, and a start before every text."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(learned.to_str())["model"]
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *sorted(model["vocab"], key=model["vocab"].get),
    ]
    numbers = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in model["merges"]]
    library = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return library, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


KINDS = {"bert": bert, "gpt2": gpt2, "chat": chat, "bart": bart, "t5": t5, "llama": llama}
CONFIGS = {
    "bart": {"model_type": "bart", "is_encoder_decoder": True, "decoder_start_token_id": 2},
    "t5": {"model_type": "t5", "is_encoder_decoder": True, "decoder_start_token_id": 0, "vocab_size": 192},
}


def save(kind: str, folder: Path, template: str | None = None) -> Path:
    """One of KINDS in a folder, with a config.json where its model has something to say."""
    from transformers import PreTrainedTokenizerFast

    library, special = KINDS[kind]()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, **special)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    if kind in CONFIGS:
        (folder / "config.json").write_text(json.dumps(CONFIGS[kind]))
    return folder


def _models() -> dict[str, Callable[[dict[str, int]], Any]]:
    """Tiny models of transformers by name, given the numbers of their tokenizer's rows and marks."""
    import transformers as hf

    def plain(marks: dict[str, int], *names: str) -> dict[str, int]:
        return {name: marks[name] for name in ("vocab_size", *names)}

    seq2seq = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
               "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64}  # fmt: skip
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return {
        "gpt2": lambda marks: hf.GPT2LMHeadModel(
            hf.GPT2Config(
                n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0, **plain(marks)
            )
        ),
        "llama": lambda marks: hf.LlamaForCausalLM(
            hf.LlamaConfig(
                **small,
                num_key_value_heads=1,
                max_position_embeddings=64,
                **plain(marks, "bos_token_id", "eos_token_id"),
            )
        ),
        "bert": lambda marks: hf.BertForMaskedLM(
            hf.BertConfig(**small, max_position_embeddings=64, **plain(marks, "pad_token_id"))
        ),
        "t5": lambda marks: hf.T5ForConditionalGeneration(
            hf.T5Config(
                d_model=16,
                d_kv=8,
                d_ff=24,
                num_layers=1,
                num_heads=2,
                feed_forward_proj="gated-gelu",
                decoder_start_token_id=0,
                **plain(marks, "pad_token_id", "eos_token_id"),
            )
        ),
        "bart": lambda marks: hf.BartForConditionalGeneration(
            hf.BartConfig(
                **seq2seq,
                decoder_start_token_id=2,
                forced_eos_token_id=None,
                **plain(marks, "pad_token_id", "bos_token_id", "eos_token_id"),
            )
        ),
        "vit": lambda _: hf.ViTForImageClassification(hf.ViTConfig(**small, image_size=16, patch_size=8, num_labels=2)),
    }


MODELS = ("gpt2", "llama", "bert", "t5", "bart", "vit")
QUICK = ("gpt2", "bart", "vit")  # a model of each shape


def slowly(*kinds: str) -> list[Any]:
    """Kinds of MODELS as a parametrization: those that QUICK stands for among the fast tests are slow ones."""
    return [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


def save_model(kind: str, folder: Path, template: str | None = None, spread: float = 0.3) -> Path:
    """
    A tiny model of MODELS with its tokenizer in one folder, as `save_pretrained` writes them.

    spread: of the weights, wide enough that what the model says depends on what it is given.
    """
    import torch

    marks: dict[str, int] = {}
    if kind in KINDS:
        save(kind, folder, template)
        library, special = KINDS[kind]()
        marks = {f"{name}_id": library.token_to_id(text) for name, text in special.items() if isinstance(text, str)}
        marks["vocab_size"] = library.get_vocab_size() + 3  # tables often have more rows than there are tokens
    torch.manual_seed(0)
    model = _models()[kind](marks)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    model.save_pretrained(folder)
    return folder


def save_whisper(folder: Path, languages: Sequence[str] = ("en", "zh", "de"), seconds: int = 1) -> Path:
    """A tiny multilingual Whisper with its tokenizer and feature extractor, for windows of a few seconds."""
    import torch
    import transformers as hf

    learned = json.loads(_byte_level(["<|endoftext|>"]).to_str())["model"]
    tokenizer = hf.WhisperTokenizer(learned["vocab"], [tuple(pair) for pair in learned["merges"]])
    words = ("startoftranscript", *languages, "translate", "transcribe", "startoflm", "startofprev", "nospeech")
    marks = [f"<|{word}|>" for word in (*words, "notimestamps")]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    times = [f"<|{number / 50:.2f}|>" for number in range(50 * seconds + 1)]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in times])
    tokenizer.set_prefix_tokens()  # it was made before its marks were there
    tokenizer.save_pretrained(folder)
    hf.WhisperFeatureExtractor(feature_size=20, chunk_length=seconds).save_pretrained(folder)
    numbers = {text: tokenizer.convert_tokens_to_ids(text) for text in ("<|endoftext|>", *marks)}
    end, start = numbers["<|endoftext|>"], numbers["<|startoftranscript|>"]
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in
             (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), end)
    torch.manual_seed(0)
    model = hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            vocab_size=len(tokenizer), num_mel_bins=20, d_model=16, max_source_positions=50 * seconds,
            max_target_positions=64, decoder_start_token_id=start, **sizes, **ends,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder.embed_positions" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    told = {
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": numbers[f"<|{code}|>"] for code in languages},
        "task_to_id": {task: numbers[f"<|{task}|>"] for task in ("transcribe", "translate")},
        "no_timestamps_token_id": numbers["<|notimestamps|>"],
        "prev_sot_token_id": numbers["<|startofprev|>"],
        "suppress_tokens": [3, *(number for text, number in numbers.items() if text != "<|endoftext|>")],
        "begin_suppress_tokens": [5, end],
    }
    model.generation_config = hf.GenerationConfig(**told, **ends, decoder_start_token_id=start)
    model.save_pretrained(folder)
    return folder


def train_sentencepiece(text: str, path: Path, **options: Any) -> None:
    """Writes a unigram model (or of other options) of SentencePiece that has learned the words of a text."""
    import sentencepiece

    words = text.split()
    lines = [" ".join(words[i:] + words[:i]) for i in range(20)] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(path.with_suffix("")),
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.with_suffix(".model").rename(path)


def save_marian(folder: Path, source: str, target: str) -> Path:
    """A tiny Marian with source.spm, target.spm and one vocab.json, which has no number for a few of their pieces."""
    import sentencepiece
    import torch
    import transformers as hf

    folder.mkdir(exist_ok=True)
    pieces: list[str] = []
    for side, text in {"target": target, "source": source}.items():
        train_sentencepiece(text, folder / f"{side}.spm", vocab_size=100)
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        pieces += [model.id_to_piece(number) for number in range(3, model.get_piece_size())]
    kept = [piece for place, piece in enumerate(dict.fromkeys(pieces)) if place % 13]
    tokens = ["</s>", "<unk>", *kept, ">>de<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    pad = len(tokens) - 1
    torch.manual_seed(0)
    marian = hf.MarianMTModel(
        hf.MarianConfig(
            vocab_size=len(tokens), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, activation_function="swish", scale_embedding=True,
            pad_token_id=pad, eos_token_id=0, bos_token_id=None, decoder_start_token_id=pad, forced_eos_token_id=0,
        )
    )  # fmt: skip
    marian.generation_config.bad_words_ids = [[pad]]
    with torch.no_grad():
        for name, parameter in marian.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    marian.save_pretrained(folder)
    return folder
