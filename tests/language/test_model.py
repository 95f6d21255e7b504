"""A model of one's own: made whole or not at all, from what it may see, and it learns."""

import json
import math
import random
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nullrec_lib.errors import InputError
from nullrec_lib.language import model, tuning
from nullrec_lib.language.model import build, split
from nullrec_lib.language.writers import Prompt
from nullrec_lib.language.writers.local import Local
from small import CORPUS, PAIRS, TINY

FILES = {
    "build.json", "chat_template.jinja", "checksums.json", "config.json", "generation_config.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json",
}


def refuse(*_, **__):
    raise AssertionError("this stage must not run")


def test_an_ordinary_folder(built):
    assert {path.name for path in built.iterdir()} == FILES
    assert [path.name for path in built.parent.iterdir()] == ["built"]
    assert len({path.stat().st_mode for path in built.iterdir()}) == 1
    record = json.loads((built / "build.json").read_text())
    assert record["pairs"] == {"train": 28, "held_out": 2, "too_long": 0}
    assert record["pretraining"]["tokens"] == 2 * 4 * 128
    assert record["perplexity"]["before"] > record["perplexity"]["after"] > 1
    samples = [(sample["prompt"], sample["profile"]) for sample in record["samples"]]
    assert samples == split(PAIRS, 0.05, 22)[1]
    tokenizer = AutoTokenizer.from_pretrained(built)
    longest = max(len(tokenizer(profile)["input_ids"]) + 1 for _, profile in samples)
    written = Local(str(built), max_tokens=2 * longest).write([Prompt(prompt) for prompt, _ in samples], seed=0)
    assert [sample["written"] for sample in record["samples"]] == written
    # What a server reads: sampling at the temperature that it is asked for.
    assert json.loads((built / "generation_config.json").read_text())["do_sample"] is True
    assert tokenizer.padding_side == "left"
    assert tokenizer.decode(tokenizer("Ünknown ☃ words")["input_ids"]) == " ünknown ☃ words"
    chair = tokenizer("Chair")["input_ids"]  # the same wherever it stands, so that it can be copied
    assert tokenizer("of chair")["input_ids"][-len(chair) :] == chair


def test_it_is_not_made_again(built, monkeypatch):
    monkeypatch.setattr(model, "_build", refuse)
    assert build(PAIRS, CORPUS, built, **TINY) == json.loads((built / "build.json").read_text())
    with pytest.raises(InputError, match=r"built: holds another model \(hidden, lr differ\)"):
        build(PAIRS, CORPUS, built, **TINY | {"hidden": 64, "lr": 0.1})
    with pytest.raises(InputError, match=r"holds another model \(texts differ\)"):
        build(PAIRS[1:], CORPUS, built, **TINY)
    with pytest.raises(InputError, match="exists and holds no model made here"):
        build(PAIRS, CORPUS, built.parent, **TINY)
    assert [path.name for path in built.parent.iterdir()] == ["built"]


def test_an_interrupted_build_goes_on(built, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    for module, stage, survives in ((tuning, "save", False), (tuning, "fine_tune", True), (model, "_samples", True)):
        with monkeypatch.context() as patch:
            patch.setattr(module, stage, interrupt)
            if stage == "_samples":
                patch.setattr(tuning, "pretrain", refuse)
            with pytest.raises(KeyboardInterrupt):
                build(PAIRS, CORPUS, out, **TINY)
        assert not out.exists()
        kept = [path.name for path in (tmp_path / ".out.building").iterdir()]
        assert any(re.fullmatch("pretrained-[0-9a-f]{64}", name) for name in kept) == survives
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "pretrain", refuse)
        with pytest.raises(AssertionError):  # of another call
            build(PAIRS, CORPUS, out, **TINY | {"steps": 3})
    assert not list((tmp_path / ".out.building").iterdir())
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(tuning, "fine_tune", interrupt)
        build(PAIRS, CORPUS, out, **TINY)
    monkeypatch.setattr(tuning, "pretrain", refuse)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    build(PAIRS, CORPUS, out, **TINY)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == state
    for name in FILES - {"build.json", "checksums.json"}:
        assert (out / name).read_bytes() == (built / name).read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_held_out_pairs_change_nothing(built, tmp_path):
    held = {prompt for prompt, _ in split(PAIRS, 0.05, 22)[1]}
    other = [(prompt, "Something else entirely." if prompt in held else profile) for prompt, profile in PAIRS]
    record = build(other, CORPUS, tmp_path / "out", **TINY)
    assert {sample["profile"] for sample in record["samples"]} == {"Something else entirely."}
    for name in ("tokenizer.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (built / name).read_bytes()


def test_split():
    pairs = [(f"prompt {n % 40}", f"profile {n}") for n in range(100)]
    train, test = split(pairs, 0.1, seed=1)
    assert sorted(train + test) == sorted(pairs)
    held = {prompt for prompt, _ in test}
    assert len(held) == 4 and not held & {prompt for prompt, _ in train}
    assert split(pairs[::-1], 0.1, seed=1)[1] == test[::-1]
    assert split(pairs, 0.1, seed=2)[1] != test
    assert [len(part) for part in split(pairs[:2], 0.9, seed=1)] == [1, 1]
    with pytest.raises(InputError, match="pairs: 1 different prompts are too few to hold one out"):
        split([pairs[0], pairs[40]], 0.1, seed=1)


def nll(folder, pairs) -> tuple[float, int]:
    """Summed -log p of profiles and their ends, and how many tokens that are; from the whole chat as text."""
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    for prompt, profile in pairs:
        said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": profile}]
        whole = tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]
        asked = tokenizer.apply_chat_template(said[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert whole[: len(asked)] == asked
        with torch.no_grad():
            scores = network(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        places = range(len(asked), len(whole))
        total -= sum(float(scores[place - 1, whole[place]]) for place in places)
        count += len(places)
    return total, count


def test_the_profile_is_learned_and_not_the_prompt(built, tmp_path):
    train, test = split(PAIRS, 0.05, 22)
    settings = dict(base=str(built), sft_steps=1, batch=len(train), context=128)
    record = build(PAIRS, [], tmp_path / "out", **settings)
    total, count = nll(built, train)  # one step over all pairs: its loss is the base's
    assert record["fine_tuning"]["loss"] == pytest.approx(total / count, rel=1e-5)
    assert record["fine_tuning"]["tokens"] == sum(
        len(ids) for pair in train for ids in AutoTokenizer.from_pretrained(built)(list(pair))["input_ids"]
    ) + 5 * len(train)
    for name, folder in (("before", built), ("after", tmp_path / "out")):
        total, count = nll(folder, test)
        assert record["perplexity"][name] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert record["pretraining"] is None and "hidden" not in record["settings"]


def test_it_learns(tmp_path):
    settings = TINY | {"steps": 1, "sft_steps": 120, "lr": 1e-2, "layers": 1, "held_out": 0.2}
    pairs = [(f"{n} bought {thing} {n * n}", f"Enjoys {thing}s.")
             for n in range(30) for thing in ("lamp", "chair", "sofa")]
    record = build(pairs, CORPUS, tmp_path / "out", **settings)
    assert record["perplexity"]["after"] < 1.5 < 20 < record["perplexity"]["before"]


@torch.no_grad()
def test_it_copies_before_it_has_learned_anything():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    words = torch.randint(1000, (4, 150))
    blank = LlamaForCausalLM(LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=256, num_hidden_layers=3, tie_word_embeddings=True,
        num_attention_heads=tuning.HEADS, rope_parameters={"rope_type": "default", "rope_theta": tuning.ROPE_THETA},
    ))
    right = {}
    for name, prepare in (("drawn", lambda _: None), ("copying", tuning.start_copying)):
        prepare(blank)
        scores = blank(input_ids=torch.cat([words, words], dim=1)).logits[:, 150:-1]
        right[name] = (scores.argmax(-1) == words[:, 1:]).float().mean().item()
    assert right["drawn"] < 0.02 and right["copying"] > 0.8


def test_lora(built, tmp_path):
    out = tmp_path / "out"
    record = build(PAIRS, [], out, base=str(built), lora=True, sft_steps=3, context=128, batch=4, lr=1e-2)
    assert {path.name for path in out.iterdir()} == FILES
    before, after = load_file(built / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    assert record["perplexity"]["after"] < record["perplexity"]["before"]
    assert record["settings"]["lora"] and record["parameters"] == json.loads(
        (built / "build.json").read_text())["parameters"]


def test_long_pairs_are_left_out(built, tmp_path):
    pairs = PAIRS + [("long " * 200 + str(n), "Enjoys length.") for n in range(3)]
    record = build(pairs, CORPUS, tmp_path / "out", **TINY)
    assert record["pairs"]["too_long"] == 3 and sum(record["pairs"].values()) == 33
    with pytest.raises(InputError, match="context: too few of 30 pairs fit into 20 tokens"):
        build(PAIRS, CORPUS, tmp_path / "none", **TINY | {"context": 20})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("changed, message", [
    ({"hidden": 42}, "hidden: 42 is no multiple of 4"),
    ({"steps": 0}, "steps: 0 is less than 1"),
    ({"held_out": 1.0}, r"held_out: 1.0 is not in \(0, 1\)"),
    ({"lr": -1.0}, "lr: -1.0 is not positive"),
    ({"lora": True}, "lora: adapters belong to a base"),
    ({"base": "/nowhere"}, "model: '/nowhere' is no folder"),
])
def test_settings_out_of_range(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        build(PAIRS, CORPUS, tmp_path / "out", **TINY | changed)
    assert not list(tmp_path.iterdir())


def test_empty_texts(tmp_path):
    with pytest.raises(InputError, match="pairs: pair 30 has an empty prompt or profile"):
        build([*PAIRS, ("prompt", " ")], CORPUS, tmp_path / "out", **TINY)
