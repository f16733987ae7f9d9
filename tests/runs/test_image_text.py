"""CLIP and SigLIP of transformers as runs: imported, evaluated on a folder of images with texts, exported, and imported again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.huggingface import KINDS, save

from attnlab.runs.trained import load_model, load_run
from attnlab.training.run_directory import read_json

WORDS = ("the quick brown fox", "a lazy dog", "the fox jumps over", "a quick dog")
TOWER = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
IMAGES = {**TOWER, "hidden_size": 16, "image_size": 8, "patch_size": 4}


@pytest.fixture
def folder(here):
    """A model of transformers with its tokenizer, by its name; the same kind of weights each time."""

    def make(name, image=None, **fields):
        import transformers

        path = save("gpt2", here / name)
        rows = KINDS["gpt2"]()[0].get_vocab_size()
        texts = {**TOWER, "hidden_size": 12, "vocab_size": rows, "max_position_embeddings": 40, "eos_token_id": 0}
        cls, config, own = {
            "clip": ("CLIPModel", "CLIPConfig", {"projection_dim": 10}),
            "siglip": ("SiglipModel", "SiglipConfig", {}),
        }[name]
        texts |= {"projection_size": 16} if name == "siglip" else {}
        made = getattr(transformers, config)(text_config=texts | fields, vision_config=IMAGES | (image or {}), **own)
        torch.manual_seed(0)
        model = getattr(transformers, cls)(made)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(path)
        return path

    return make


@pytest.fixture
def pairs(here):
    """A folder of small images beside their texts."""
    draw = np.random.default_rng(0)
    path = here / "pairs"
    path.mkdir()
    for number in range(24):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(WORDS[number % len(WORDS)] + "\n")
    return ["data=image_text", f"data.path={path}", "data.source.image_size=8", "data.max_length=40"]


def weights(run):
    return load_model(Path(run), "last")[0].state_dict()


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_model_comes_back_with_the_same_bits(name, folder, pairs, attnlab):
    said = attnlab("import", str(folder(name)), *pairs)
    assert said.status == 0, said.err
    run = f"runs/imported/{name}/seed=0"
    config = read_json(Path(run, "run.json"))["config"]
    assert config["task"]["loss"] == {"clip": "softmax", "siglip": "sigmoid"}[name]
    assert config["model"]["text"]["d_model"] == 12 or config["model"]["d_model"] == 12
    said = attnlab("evaluate", run)
    assert said.status == 0, said.err
    assert "test/text_to_image_recall@10" in said.out
    said = attnlab("export", run, "--to", "out")
    assert said.status == 0, said.err
    assert "transformers loads it, and gives the same on images and texts" in said.out
    assert attnlab("import", "out", "--name", "again", *pairs).status == 0
    first, second = weights(run), weights("runs/imported/again/seed=0")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("image", [{"hidden_act": "gelu"}, {"layer_norm_eps": 0.3}])  # what differs in one tower
def test_it_scores_as_transformers_does(image, folder, pairs, attnlab):
    import transformers

    path = folder("clip", image)
    said = attnlab("import", str(path), *pairs)
    assert said.status == 0, said.err
    parts, task = load_run(Path("runs/imported/clip/seed=0"), "last")
    batch = parts.data.example_batch()
    with torch.no_grad():
        there = transformers.CLIPModel.from_pretrained(path)(
            pixel_values=batch["images"], input_ids=batch["tokens"], attention_mask=batch["is_token"].long()
        )
        here = task.model(batch["images"], batch["tokens"], batch["is_token"])
    torch.testing.assert_close(here, there.logits_per_image, atol=1e-5, rtol=1e-5)


@pytest.fixture
def own(pairs, attnlab):
    """Trains a small CLIP, with a tokenizer."""

    def train(*words):
        given = ["model=clip", "model.d_model=16", "model.num_heads=2", "model.num_layers=1", *words, *pairs]
        given += ["trainer.max_steps=1", "trainer.val_check_interval=1", "data.batch_size=4", "run_dir=own"]
        given += ["progress=off", "schedule.warmup_steps=0", "model.image.embedding_norm=true"]
        said = attnlab("train", *given)
        assert said.status == 0, said.err

    return train


@pytest.mark.parametrize("tokenizer", ["character", "bpe"])
def test_a_text_is_seen_at_its_end_in_transformers_too(tokenizer, own, attnlab):
    from transformers import AutoTokenizer, CLIPModel

    own(f"tokenizer={tokenizer}", *["tokenizer.vocabulary_size=280"] * (tokenizer == "bpe"))
    said = attnlab("export", "own", "--to", "out")
    assert said.status == 0, said.err
    assert "note: <s> and </s> have exchanged their numbers" in said.err
    parts, task = load_run(Path("own"), "last")
    given = AutoTokenizer.from_pretrained("out")(list(WORDS), padding=True, return_tensors="pt")
    with torch.no_grad():
        there = CLIPModel.from_pretrained("out").get_text_features(given["input_ids"], given["attention_mask"])
        there = getattr(there, "pooler_output", there)
        here = task.model.encode_texts(*parts.data.encode_texts(WORDS))
    torch.testing.assert_close(here, torch.nn.functional.normalize(there, dim=1), atol=1e-5, rtol=1e-5)


def test_an_end_that_transformers_does_not_look_for_goes_out_with_code_of_its_own(own, published, attnlab):
    from transformers import pipeline

    own("tokenizer=pretrained", f"tokenizer.path={published('bart')}")
    said = attnlab("export", "own", "--to", "out", "--as", "clip")
    assert said.status == 2
    assert "ends in the token 2, which transformers' CLIP takes for the sign of old files" in said.err
    assert not Path("out").exists()
    said = attnlab("export", "own", "--to", "out")
    assert said.out.startswith("out: attnlab (AttnlabForZeroShotImageClassification)")
    parts, task = load_run(Path("own"), "last")
    pixels_YX3 = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    facts = read_json(Path("own/run.json"))["data"]
    image_3YX = ((pixels_YX3 / 255 - facts["mean"]) / facts["deviation"]).transpose(2, 0, 1)
    with torch.no_grad():
        texts = parts.data.encode_texts(WORDS)
        scores = task.model(torch.from_numpy(image_3YX).float()[None], *texts)[0].softmax(dim=0).tolist()
    client = pipeline("zero-shot-image-classification", model="out", trust_remote_code=True)
    found = client(Image.fromarray(pixels_YX3), candidate_labels=list(WORDS), hypothesis_template="{}")
    expected = dict(zip(WORDS, scores, strict=True))
    assert {one["label"]: one["score"] for one in found} == pytest.approx(expected, rel=1e-4)
