"""Language models: the mean of their last hidden states over a text's tokens, whatever stands beside it."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5Model,
)

from nullrec_lib.errors import InputError
from nullrec_lib.language.encoder import embed_items, embed_texts, encode, identity
from nullrec_lib.language.encoders import causal
from nullrec_lib.language.encoders.causal import mean_states

TEXTS = ["red chair of oak", "lamp", "a red lamp and a red chair and a table of oak", "table", "chair", "a lamp of oak",
         "red", "a table and a chair"]


def tokenizer(special=True, **options) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["[UNK]", "<s>", "</s>"]))
    if special:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = dict(unk_token="[UNK]", bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=words, **named, **options)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                        num_attention_heads=4, max_position_embeddings=64))


def gpt2() -> GPT2LMHeadModel:
    """Counts positions from the left with a table: padding there would move every token to other positions."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                                      initializer_range=0.5, bos_token_id=1, eos_token_id=2))


def save(folder, model=llama, **options) -> str:
    model().save_pretrained(folder)
    tokenizer(**options).save_pretrained(folder)
    return f"lm:{folder}"


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "llama")


def by_hand(name: str, ids: list[int]) -> np.ndarray:
    """The unit mean of one text's states, read alone and so without padding."""
    with torch.no_grad():
        states = AutoModel.from_pretrained(name[3:])(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy()


def test_the_mean_is_over_the_tokens_that_are_there():
    seen = []

    def model(input_ids, attention_mask):
        seen.append((input_ids.tolist(), attention_mask.tolist()))
        states = torch.stack([input_ids.float(), 10 * input_ids.float()], dim=2)
        states[attention_mask == 0] = torch.nan  # what a model says of padding is nothing that may be read
        return SimpleNamespace(last_hidden_state=states)

    model.device = "cpu"
    rows = mean_states(model, [torch.tensor([3, 5, 7, 1]), torch.tensor([9]), torch.tensor([2, 3])])
    np.testing.assert_array_equal(rows, [[4, 40], [9, 90], [2.5, 25]])
    assert rows.dtype == np.float32
    assert seen == [([[3, 5, 7, 1], [9, 0, 0, 0], [2, 3, 0, 0]], [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])]


@pytest.mark.parametrize("model", [llama, gpt2])
def test_every_text_has_the_mean_of_its_own_states(tmp_path, monkeypatch, model):
    name = save(tmp_path, model)
    monkeypatch.setattr(causal, "BLOCK", 5)
    monkeypatch.setattr(causal, "BATCH", 2)
    rows = encode(TEXTS, name)
    assert rows.shape == (8, 32) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    ids = tokenizer()(TEXTS)["input_ids"]
    assert ids[1][0] == 1 and len(ids[1]) == 2  # <s> is read: the tokenizer adds it by default
    np.testing.assert_allclose(rows, [by_hand(name, some) for some in ids], atol=1e-5)


@pytest.mark.parametrize("model", [llama, gpt2])
def test_how_a_tokenizer_pads_does_not_matter(tmp_path, model):
    plain = encode(TEXTS, save(tmp_path / "none", model))
    for side in ("left", "right"):
        padded = encode(TEXTS, save(tmp_path / side, model, padding_side=side, pad_token="[UNK]"))
        np.testing.assert_array_equal(padded, plain)
    np.testing.assert_allclose(encode(TEXTS[:1], f"lm:{tmp_path / 'none'}"), plain[:1], atol=1e-5)


def test_a_long_text_is_cut(tmp_path, lm, monkeypatch):
    long = " ".join(["red chair"] * 400)
    ids = tokenizer()(long)["input_ids"]
    np.testing.assert_allclose(encode([long], lm)[0], by_hand(lm, ids[:64]), atol=1e-5)  # the model's own limit
    before = identity(lm)
    monkeypatch.setattr(causal, "MAX_TOKENS", 5)
    np.testing.assert_allclose(encode([long], lm)[0], by_hand(lm, ids[:5]), atol=1e-5)
    short = save(tmp_path, model_max_length=3)
    np.testing.assert_allclose(encode([long], short)[0], by_hand(short, ids[:3]), atol=1e-5)
    assert identity(lm) != before


def test_a_text_without_tokens(tmp_path, lm):
    np.testing.assert_allclose(encode(["", "red"], lm)[0], by_hand(lm, [1]), atol=1e-5)
    bare = save(tmp_path, special=False)
    np.testing.assert_allclose(encode(["", "red"], bare)[0], by_hand(bare, [1]), atol=1e-5)


def test_items_and_texts_share_what_is_encoded(tmp_path, lm, monkeypatch):
    items = pd.DataFrame([("a", "red chair", "of oak"), ("b", "lamp", "")], columns=["item_id", "title", "description"])
    rows = embed_items(items, lm, tmp_path)
    [path] = (tmp_path / "embeddings").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["encoder"], record["kind"], record["max_tokens"]) == (lm, "lm", 512)
    assert record["shape"] == [2, 32] and len(record["model_sha256"]) == 64
    monkeypatch.setattr(causal.Causal, "encode", lambda *_: pytest.fail("encoded again"))
    np.testing.assert_array_equal(embed_items(items, lm, tmp_path), rows)
    np.testing.assert_allclose(embed_texts(["lamp", "red chair. of oak"], lm, tmp_path), rows[::-1], atol=1e-6)


def test_another_model_is_another_encoder(tmp_path, lm):
    name = save(tmp_path / "one")
    before = identity(name)
    assert before == identity(lm)  # wherever it lies
    assert before != identity(name[3:])  # read as a sentence-transformers model, the same folder is another encoder
    config = tmp_path / "one" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"added": 1,', 1))
    changed = identity(name)
    gpt2().save_pretrained(tmp_path / "one")
    assert len({before, changed, identity(name)}) == 3


def test_what_is_no_language_model(tmp_path, lm):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    save(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"cut off")
    small = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    save(tmp_path / "t5", model=lambda: T5Model(small))
    for name, words in (
        ("lm:", "^encoder: lm: is followed by the path of a transformers folder"),
        (f"lm:{tmp_path / 'empty'}", "^encoder: transformers cannot load .*empty"),
        (f"lm:{tmp_path / 'torn'}", "torn lacks 1 of the model's tensors, such as layers.1.mlp.up_proj.weight; "),
        (f"lm:{tmp_path / 'damaged'}", "^encoder: transformers cannot load .*damaged"),
        (f"lm:{tmp_path / 't5'}", r"transformers cannot load .*t5 \(it has an encoder and a decoder\); lm: takes"),
        ("lm:nobody/nothing", r"^encoder: 'lm:nobody/nothing' is no folder, and the hub did not give it \(\w+\); "),
    ):
        with pytest.raises(InputError, match=words) as caught:
            encode(["a"], name)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
