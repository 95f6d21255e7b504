"""A writer on this machine: what it reads, what it writes, and that both are what they were the last time."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nullrec_lib.errors import InputError
from nullrec_lib.language.writers import Prompt
from nullrec_lib.language.writers.local import Local

TEXTS = ["lamp", "Bought: red chair 3, oak lamp 3. What now?", "oak", "a red chair of oak, number 7, and a lamp"]
PROMPTS = [Prompt(text) for text in TEXTS]


def by_hand(folder, text: str, tokens: int, no_repeat: int) -> tuple[str, int]:
    """The likeliest continuation, each token from a pass over everything before it, and how many tokens it took; no
    run of `no_repeat` tokens twice."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids, written = tokenizer(f"<|begin|><|user|>{text}<|end|><|assistant|>")["input_ids"], []
    while len(written) < tokens and tokenizer.eos_token_id not in written:
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids + written])).logits[0, -1]
            runs = {tuple(written[k : k + no_repeat]) for k in range(len(written) - no_repeat + 1)}
            ranked = scores.argsort(descending=True).tolist()
            written.append(next(one for one in ranked if (*written[len(written) - no_repeat + 1 :], one) not in runs))
    return tokenizer.decode(written, skip_special_tokens=True).strip(), len(written)


@pytest.mark.parametrize("batch, no_repeat", [(1, 4), (3, 0), (32, 4), (32, 1)])
def test_a_batch_writes_what_each_prompt_would_get_alone(wild, batch, no_repeat):
    writer = Local(str(wild), max_tokens=30, batch=batch, no_repeat=no_repeat)
    expected = [by_hand(wild, text, 30, no_repeat or 99) for text in TEXTS]
    assert writer.write(PROMPTS, seed=0) == [text for text, _ in expected]
    assert len({text for text, _ in expected}) == len(TEXTS)
    counts = [count for _, count in expected]
    assert min(counts) < 30 == max(counts)  # one ends by itself, and the others go on
    assert (writer.usage.prompts, writer.usage.written_tokens) == (4, sum(counts))
    assert writer.usage.prompt_tokens == sum(writer.count(text) + 4 for text in TEXTS)
    assert writer.usage.seconds > 0


def test_an_answer_does_not_go_in_circles_but_may_repeat_the_prompt(built):
    """A model that is sure of one token: without the rule it says nothing else."""
    writer = Local(str(built), max_tokens=12, no_repeat=2)
    writer.model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(writer.model.lm_head.weight))
    (red,) = writer.tokenizer(" red", add_special_tokens=False)["input_ids"][-1:]
    bias = lambda _, __, scores: scores + 9 * torch.nn.functional.one_hot(torch.tensor(red), scores.shape[-1])
    writer.model.lm_head.register_forward_hook(bias)
    prompt = [Prompt("red " * 9)]
    (circling,), writer.no_repeat = writer.write(prompt, 0), 0
    (free,) = writer.write(prompt, 0)
    letter = writer.tokenizer.decode([red]).strip()
    assert free.count(letter) == 12 and 2 <= circling.count(letter) < 12


def test_the_seed_decides_and_nothing_else(wild):
    writer = Local(str(wild), temperature=1.0, max_tokens=12)
    first = writer.write(PROMPTS, seed=3)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert writer.write(PROMPTS[:1], seed=4) != writer.write(PROMPTS[:1], seed=5)
    assert writer.write(PROMPTS, seed=3) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert Local(str(wild), temperature=1.0, max_tokens=12).write(PROMPTS, seed=3) == first


def test_sampling_narrows_to_the_likeliest(wild):
    greedy = Local(str(wild), max_tokens=12).write(PROMPTS, seed=0)
    assert Local(str(wild), temperature=1.0, top_p=1e-6, max_tokens=12).write(PROMPTS, seed=0) == greedy
    assert Local(str(wild), temperature=1e-4, max_tokens=12).write(PROMPTS, seed=0) == greedy


def test_revision(wild, tmp_path):
    revision = Local(str(wild), max_tokens=9).revision
    assert revision == Local(str(wild), max_tokens=9, batch=7).revision
    for changed in ({"temperature": 0.5}, {"top_p": 0.9}, {"max_tokens": 5}, {"no_repeat": 3}):
        assert Local(str(wild), **{"max_tokens": 9} | changed).revision != revision
    moved = tmp_path / "moved"
    shutil.copytree(wild, moved)
    assert Local(str(moved), max_tokens=9).revision == revision
    record = json.loads((moved / "build.json").read_text())
    (moved / "build.json").write_text(json.dumps(record | {"device": "another"}))
    assert Local(str(moved), max_tokens=9).revision == revision  # when and where a model was made is not what it is
    template = (moved / "chat_template.jinja").read_text()
    (moved / "chat_template.jinja").write_text(template + "!")
    assert Local(str(moved), max_tokens=9).revision != revision
    (moved / "chat_template.jinja").write_text(template)
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert Local(str(moved), max_tokens=9).revision != revision


def test_context(built):
    writer = Local(str(built), max_tokens=28)
    assert writer.name == f"local:{built}"
    assert writer.context == 128 - 28 - 4 - 8  # positions, answer, template, slack
    text = "x " * 200
    while writer.count(text) > writer.context:
        text = text[:-1]
    assert writer.count(text) == writer.context
    writer.write([Prompt(text)], seed=0)
    with pytest.raises(InputError, match="prompt 1: it has 105 tokens, .* room for 100 beside max_tokens=28"):
        writer.write([Prompt("lamp"), Prompt("7" * 100)], seed=0)
    assert writer.usage.prompts == 1


def test_neither_template_nor_pad(wild, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(wild, folder)
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    writer = Local(str(folder), max_tokens=12)
    assert writer.context == 128 - 12 - 8
    together = writer.write(PROMPTS, seed=0)
    assert together == [writer.write([prompt], seed=0)[0] for prompt in PROMPTS]
    assert together != Local(str(wild), max_tokens=12).write(PROMPTS, seed=0)


def test_nothing_to_write(built):
    assert Local(str(built), max_tokens=9).write([], seed=0) == []


@pytest.mark.parametrize("setting, message", [
    ({"temperature": -1.0}, "temperature: -1.0 is negative"),
    ({"top_p": 0.0}, r"top_p: 0.0 is not in \(0, 1\]"),
    ({"max_tokens": 0}, "max_tokens: 0 is less than 1"),
    ({"batch": 0}, "batch: 0 is less than 1"),
    ({"no_repeat": -1}, "no_repeat: -1 is less than 0"),
    ({"max_tokens": 120}, "max_tokens: 120 leave no room for prompts among 128 positions"),
])
def test_settings_out_of_range(built, setting, message):
    with pytest.raises(InputError, match=message):
        Local(str(built), **setting)


def test_no_model(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="model: 'some/model' is no folder, and the hub did not give it"):
        Local("some/model")
    with pytest.raises(InputError, match="holds no model"):
        Local(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="model: the tokenizer in .* cannot be read"):
        Local(str(tmp_path))
