"""Which data are read, and how: the words of a command line for every choice in conf/data. Fields that are renamed are renamed here."""

from __future__ import annotations

from dataclasses import dataclass, field

SUBWORDS = ["tokenizer=bpe", "tokenizer.vocabulary_size=600"]
BYTES = ["tokenizer=byte", "data.max_length=64"]
UNIGRAM = ["tokenizer=unigram", "tokenizer.vocabulary_size=400"]


@dataclass(frozen=True)
class Choice:
    """One choice. words: those that it needs. others: further settings by what they are about. own: of --data-dir, not of this machine."""

    name: str
    words: list[str] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=dict)
    own: str = ""


def choices(files: str, data: str) -> list[Choice]:
    """All of them. files: the folder of small local data sets; data: that of published ones."""
    text, folder = f"data.path={files}/texts", f"data.path={files}/image_folder"
    topic = f"{{_target_: attnlab.data.ParallelText, language_pair: text-class, path: {files}/parallel/topics.tsv}}"
    windows = {"sub-words": SUBWORDS}
    images = {
        "strong": ["augmentation=strong"],
        "none, all trained on": ["augmentation=none", "data.validation_share=0"],
    }
    pairs = {
        "sub-words": SUBWORDS,
        "two vocabularies, cut": [
            *SUBWORDS,
            "data.joint_vocabulary=false",
            "data.max_length=16",
            "data.on_overlong=truncate",
        ],
    }
    masked = {
        "static, whole words": [*SUBWORDS, "data.masks=static", "data.masking.whole_words=true"],
        "next sentence": [*SUBWORDS, "data.next_sentence=true", "data.masking.probability=0.3"],
    }
    spans = {"sub-words": [*SUBWORDS, "data.mean_span_length=5", "data.noise_density=0.3"]}
    return [
        Choice("conll", [f"data.path={files}/conll/plain"], {
            "columns": [*SUBWORDS, f"data.path={files}/conll/columns", "data.source.token_column=1"],
            "short rows": ["data.max_length=12", "data.batch_tokens=256"],
        }),
        Choice("digits", [], images),
        Choice("fashion_mnist", [f"data.path={files}/idx"], {"photos": ["augmentation=photos"]}),
        Choice("home_assistant", [], {**pairs, "nl-en": ["data.language_pair=nl-en"]}),
        Choice("hub", [f"data.path={files}/hub_text"], {"marks of ends": ["data.end_of_text=true"], **windows}),
        Choice("hub_classification", [f"data.path={files}/hub_labelled"], windows),
        Choice("hub_entities", [f"data.path={files}/hub_entities"], windows),
        Choice("hub_images", [f"data.path={files}/hub_images"], {"grey": ["data.source.channels=1"]}),
        Choice("hub_questions", [f"data.path={files}/hub_questions"], windows),
        Choice("image_folder", [f"{folder}/whole"], {"parts": [f"{folder}/parts", "data.source.image_size=24"]}),
        Choice("kjv", [], {**windows, "bytes": ["tokenizer=byte", "data.split=[0.5,0.3,0.2]", "seed=3"]}),
        Choice("kjv_masked", [], masked),
        Choice("kjv_spans", [], spans),
        Choice("mnist_5k", [], images),
        Choice("multi30k", [f"data.path={data}/multi30k"], {"sub-words, fr-en": [*SUBWORDS, "data.language_pair=fr-en"]}, "multi30k"),
        Choice("newsgroups", [], {"bytes": BYTES}),
        Choice("parallel_text", [f"data.path={files}/parallel/tabbed.tsv", "data.language_pair=en-de"], {
            **pairs,
            "aligned files": [
                f"data.path={files}/parallel/corpus", f"data.source.validation_path={files}/parallel/held_out", *UNIGRAM,
            ],
        }),
        Choice("reuters_masked", [], {"sub-words": SUBWORDS}),
        Choice("reuters_r8", [], {"sub-words, a tenth": [*SUBWORDS, "data.train_fraction=0.1", "data.max_length=64"]}),
        Choice("squad", [f"data.path={data}/xquad/xquad.en.json"], {"sub-words": SUBWORDS}, "xquad"),
        Choice("squad_files", [f"data.path={files}/squad/one.json"], {
            "second form": [*SUBWORDS, f"data.path={files}/squad/second", "data.stride=32", "data.max_question=8"],
        }),
        Choice("sst2", [f"data.path={data}/sst2"], {"bytes": BYTES}, "sst2"),
        Choice("text", [text], {
            **windows,
            "other files, unigram": [*UNIGRAM, "data.source.pattern=*.md", "data.end_of_text=true", "data.context_length=17"],
        }),
        Choice("text_masked", [text], masked),
        Choice("text_spans", [text], spans),
        Choice("text_to_text", [], {
            "bytes, a class, temperature": [
                f"+data.tasks.topic={{_target_: attnlab.data.TextTask, prefix: topic, source: {topic}}}",
                "data.temperature=4", *BYTES,
            ],
            "unequal weights": ["data.tasks.german.weight=1", "data.tasks.dutch.weight=1.5"],
        }),
        Choice("tiny_shakespeare", [f"data.path={data}/tinyshakespeare/input.txt"], windows, "tinyshakespeare"),
        Choice("tsv", [f"data.path={files}/tsv/plain"], {
            "header": [*SUBWORDS, f"data.path={files}/tsv/headed"],
            "small batches": ["data.batch_tokens=300", "data.train_fraction=0.5", "seed=5"],
        }),
        Choice("wmt14", [f"data.path={files}/hub_pairs", "data.source.name=null"], pairs),
        Choice("wnut17", [f"data.path={data}/wnut17"], windows, "wnut17"),
    ]  # fmt: skip
