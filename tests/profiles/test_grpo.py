"""GRPO on profiles: what the policy is told, what is held out, and that a stopped training goes on."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nullrec_lib.cli import app
from nullrec_lib.errors import InputError
from nullrec_lib.language import model
from nullrec_lib.language.encoders.folders import model_sha256
from nullrec_lib.language.writers.local import load_model, load_tokenizer
from nullrec_lib.profiles import grpo, prompts
from nullrec_lib.profiles.build import build, examples
from nullrec_lib.profiles.grpo import Rewarder, Settings, plan, train
from nullrec_lib.profiles.judging import gain, judge, part
from nullrec_lib.profiles import report
from nullrec_lib.profiles.report import gains
from nullrec_lib.profiles.rewards import Reward
from nullrec_lib.profiles.sides import Side, sides
from nullrec_lib.profiles.store import Store
from nullrec_lib.statistics import interval

FEW = Settings(steps=3, num_generations=2, prompts_per_step=2, max_tokens=12, refresh=1)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    """A build by a model that has learned next to nothing."""
    folder = tmp_path_factory.mktemp("grpo")
    pairs, corpus = examples("shop-tiny", limit_users=20, rounds=1)
    model.build(pairs, corpus, folder / "model", steps=2, sft_steps=2, hidden=64, layers=2, vocabulary=600,
                context=900, batch=2)
    build(folder / "profiles", data="shop-tiny", writer=f"local:{folder / 'model'}", rounds=1, limit_users=6,
          max_tokens=12, say=lambda _: None)
    return folder / "profiles"


def test_sides_hold_what_is_around_and_who_is_near(profiles):
    loop, made = sides(profiles)
    seen = loop.visible
    texts = loop.encode(list(seen.texts))
    users, items, cuts = made["user"], made["item"], made["cut"]
    assert len(users.ids) == len(seen.users) and len(items.ids) == len(seen.subjects) and len(cuts.ids) == len(seen.cuts)
    assert users.ids[1] == loop.user_ids[seen.users[1]] and cuts.cuts == seen.cuts[:, 1].tolist()
    mean = texts[seen.history(seen.users[1])].mean(axis=0)
    assert users.reward.about[1] == pytest.approx(mean, abs=1e-6)
    first = next(place for place, (_, cut) in enumerate(seen.cuts) if cut == 1)
    assert cuts.reward.about[first] == pytest.approx(texts[seen.cut_history(first)[0]], abs=1e-6)
    whole = loop.encode(users.texts)
    of = np.searchsorted(seen.users, seen.users_of(50)[3])
    if len(of):
        assert items.reward.about[3] == pytest.approx(whole[of].mean(axis=0), abs=1e-6)
    # Neighbours of items: Eq. 5 with the roles exchanged.
    having = {item: {user for user in range(len(seen.offsets) - 1) if item in seen.history(user)} for item in seen.subjects}
    mine = seen.subjects[3]
    near = [seen.subjects[row] for row in items.reward.neighbours[3] if row >= 0]
    shares = [len(having[mine] & having[other]) for other in near]
    assert mine not in near and all(shares) and shares == sorted(shares, reverse=True)
    assert "shop" in users.prompts[0] and users.texts


def literal(K=2, advantage="standard", refresh=2):
    vectors = {"good": [1.0, 0.0], "fair words": [0.8, 0.6], "bad words": [0.0, 1.0], "good words": [1.0, 0.0]}
    encode = lambda texts: np.array([vectors[text] for text in texts], np.float32)
    around = np.array([[1.0, 0.0], [1.0, 0.0]])
    near = np.array([[1], [0]])
    rewards = {kind: Reward(around, near, np.zeros((2, 2), np.float32), encode, 1.0, 1.0) for kind in ("user", "item")}
    return Rewarder(rewards, Settings(num_generations=K, advantage=advantage, refresh=refresh)), encode


def called(rewarder, texts, kinds, places, step=0):
    logged = {}
    state = type("State", (), {"global_step": step})
    found = rewarder([[{"role": "assistant", "content": text}] for text in texts], kind=kinds, place=places,
                     trainer_state=state, log_metric=logged.__setitem__)
    return found, logged


def test_the_trainer_gets_rewards_and_the_diagnostics_by_side():
    rewarder, _ = literal()
    found, logged = called(rewarder, ["fair words", "bad words", "good words", "bad words"],
                           ["item", "item", "user", "user"], [0, 0, 1, 1])
    assert found == pytest.approx([0.8, 0.0, 1.0, 0.0])
    assert logged["item/collab"] == pytest.approx(0.4) and logged["user/reward"] == pytest.approx(0.5)
    assert logged["item/collab std"] == pytest.approx(0.4) and logged["user/reward std"] == pytest.approx(0.5)
    assert logged["item/dist"] == 0
    assert "user/alike" not in logged  # of one subject: its own candidates are not two subjects'
    _, logged = called(rewarder, ["fair words", "bad words", "good words", "bad words"], ["user"] * 4, [0, 0, 1, 1])
    assert logged["user/alike"] == pytest.approx((0.8 + 1.0) / 2)


def test_neighbours_become_the_best_candidates_on_schedule():
    rewarder, encode = literal(refresh=2)
    texts, kinds, places = ["fair words", "bad words"], ["user", "user"], [0, 0]
    assert called(rewarder, texts, kinds, [1, 1], step=0)[0] == pytest.approx([0.8, 0.0])
    called(rewarder, texts, kinds, places, step=1)
    assert called(rewarder, texts, kinds, [1, 1], step=1)[0] == pytest.approx([0.8, 0.0])
    # From step 2 on, user 0 is where its best candidate was: user 1 is told apart from it.
    expected = [0.8 - 1.0, 0.0 - 0.6]
    assert called(rewarder, texts, kinds, [1, 1], step=2)[0] == pytest.approx(expected)


def test_the_printed_objective_is_centred_in_its_group():
    rewarder, _ = literal(advantage="log_sigmoid")
    found, _ = called(rewarder, ["fair words", "bad words"], ["user", "user"], [0, 0])
    said = np.log(1 / (1 + np.exp([-0.4, 0.4])))
    assert found == pytest.approx(said - said.mean())
    settings = Settings(advantage="log_sigmoid")
    assert grpo.config(Path("x"), settings).scale_rewards == "none"  # or the trainer would divide by the spread
    assert grpo.config(Path("x"), Settings()).scale_rewards == "group"
    assert grpo.config(Path("x"), settings, use_vllm=True, vllm_mode="server").vllm_mode == "server"


def test_gains_are_paired_and_told_at_equal_length_too():
    def encode(texts):  # longer texts are nearer
        along = np.array([min(1.0, 0.1 * len(text.split())) for text in texts])
        return np.stack([along, np.sqrt(1 - along**2)], axis=1)

    reward = Reward(np.tile([1.0, 0.0], (4, 1)), np.full((4, 1), -1), np.zeros((4, 2)), encode, 1.0, 0.0)
    side = Side("user", list("abcd"), [None] * 4, list("abcd"), list("abcd"), reward)
    parts = {"user": {"held_out": np.arange(4)}}
    few = {("user", "held_out"): [["one two"] * 4, ["three four"] * 4]}
    many = {("user", "held_out"): [["one two five six"] * 4, ["three four nine ten"] * 4]}
    found = gain({"user": side}, parts, few, many)["user held_out"]
    assert found["reward"]["mean"] == pytest.approx(0.2) and found["reward_at_equal_length"]["mean"] == pytest.approx(0)
    judged = judge({"user": side}, parts, many)["user held_out"]
    assert judged["reward"]["mean"] == pytest.approx(0.4) and judged["words"] == 4 and judged["subjects"] == 4
    assert judged["useless"] == 0
    few["user", "held_out"][0][:2] = "", "one"
    assert judge({"user": side}, parts, few)["user held_out"]["useless"] == 2 / 8
    told = gain({"user": side}, parts, few, many)["user held_out"]
    assert told["words"] == 2 and told["reward_at_equal_length"]["mean"] > 0  # cut to one word, all would be useless
    assert told["reward_of_useful"]["mean"] == pytest.approx(0) and told["useful"] == [6 / 8, 1]
    few["user", "held_out"] = [["", "one", "", "one"]] * 2
    assert gain({"user": side}, parts, few, many)["user held_out"]["reward_of_useful"] is None
    assert interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(
        {"mean": 2.0, "low": 2 - 4.302653 / 3**0.5, "high": 2 + 4.302653 / 3**0.5})


def test_the_gain_of_useful_texts_is_of_those_that_are_as_long():
    """Cut to four words: some are longer by words which would pay, one is too short, one is empty."""
    worth = {"a b c d": 0.2, "a b c d e f": 0.9, "p q r s": 0.5, "p q r s t u": 0.9, "v w x": 0.9}
    reward = Reward(np.array([[1.0, 0.0]] * 2), np.full((2, 1), -1), np.zeros((2, 2)),
                    lambda texts: np.array([[worth.get(text, 0.0), 0.0] for text in texts]), 1.0, 0.0)
    side = Side("user", ["a", "b"], [None] * 2, ["a", "b"], ["a", "b"], reward)
    before = {("user", "held_out"): [["a b c d e f", "a b c d"], ["", "a b c d e f"]] + [["a b c d"] * 2] * 4}
    after = {("user", "held_out"): [["p q r s t u", "p q r s"], ["p q r s", "v w x"]] + [["p q r s"] * 2] * 4}
    found = gain({"user": side}, {"user": {"held_out": np.arange(2)}}, before, after)["user held_out"]
    assert found["words"] == 4 and found["useful"] == pytest.approx([11 / 12, 11 / 12])
    assert found["reward_of_useful"]["mean"] == pytest.approx(0.3)
    assert found["reward"]["mean"] > 0.3
    judged = {"user held_out": judge({"user": side}, {"user": {"held_out": np.arange(2)}}, after)["user held_out"]}
    row = report._gained("one", {"start": judged, "end": judged, "gain": {"user held_out": found}}, "user held_out")
    assert row["of useful texts"].startswith("+0.300") and row["counted"] == "92% → 92%"
    of_old = {name: found[name] for name in ("reward", "reward_at_equal_length")}
    row = report._gained("one", {"start": judged, "end": judged, "gain": {"user held_out": of_old}}, "user held_out")
    assert row["of useful texts"] == row["counted"] == "-"


def test_whose_turn_it_is():
    parts = {"user": {"train": np.array([3, 5, 7])}, "item": {"train": np.array([2])}}
    told = grpo.turns(parts, 9, 22)
    assert [kind for kind, _ in told] == ["user", "item"] * 4 + ["user"]
    users = [place for kind, place in told if kind == "user"]
    assert sorted(users[:3]) == [3, 5, 7] and set(users[3:]) < {3, 5, 7} and len(set(users[3:])) == 2
    assert grpo.turns(parts, 9, 22) == told != grpo.turns(parts, 9, 23)
    # However long a training is, it needs no more subjects than there are.
    assert {place for kind, place in grpo.turns(parts, 100, 22) if kind == "item"} == {2}


def test_a_training_that_is_stopped_goes_on_and_a_finished_one_is_read(profiles, tmp_path, monkeypatch):
    whole = train(profiles, tmp_path / "whole", FEW)
    assert {"user/collab", "item/collab"} <= set().union(*whole["history"])  # both sides are learned from
    assert len(whole["history"]) == 3 and {"kl", "entropy", "frac_reward_zero_std", "completions/clipped_ratio",
                                           "item/collab std", "item/collab"} <= set().union(*whole["history"])
    assert {"user train", "user held_out", "item train", "item held_out"} == set(whole["start"]) == set(whole["gain"])
    assert (tmp_path / "whole" / "model" / "model.safetensors").exists()
    assert not (tmp_path / "whole" / "checkpoints").exists()
    text = gains([tmp_path / "whole"], tmp_path / "report").read_text()
    assert text.count("| whole |") == 1 + 4 and str(tmp_path) not in text
    assert str(tmp_path) not in (tmp_path / "report" / "whole.json").read_text()
    with pytest.raises(InputError, match="no training has finished here"):
        gains([tmp_path / "report"], tmp_path)

    calls, real = [], Rewarder.__call__

    def dies(self, *given, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *given, **named)

    assert max(one["epoch"] for one in whole["history"]) == 1  # six prompts and more than six turns, told in one
    monkeypatch.setattr(Rewarder, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        train(profiles, tmp_path / "stopped", FEW)
    again = train(profiles, tmp_path / "stopped", FEW)
    assert len(calls) == 4 and [one["step"] for one in again["history"]] == [1, 2, 3]
    for name in ("reward", "kl", "item/collab"):
        assert [one.get(name) for one in again["history"]] == pytest.approx([one.get(name) for one in whole["history"]])
    assert again["end"] == whole["end"]
    hashes = {model_sha256(tmp_path / name / "model") for name in ("whole", "stopped")}
    assert len(hashes) == 1  # by which candidates are known: of weights, not of how long they took
    monkeypatch.setattr(grpo, "_train", None)  # which is not needed any more
    assert train(profiles, tmp_path / "stopped", FEW) == again
    with pytest.raises(InputError, match="holds another training"):
        train(profiles, tmp_path / "stopped", Settings(steps=4))


def test_a_stopped_training_is_not_gone_on_with_by_another(profiles, tmp_path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(grpo, "_train", dies)
        train(profiles, tmp_path, FEW)
    with pytest.raises(InputError, match="holds another training, which was stopped"):
        train(profiles, tmp_path, dataclasses.replace(FEW, lr=1e-3))


def test_judged_beside_the_neighbours_as_they_were_built(profiles, tmp_path, monkeypatch):
    record = train(profiles, tmp_path, FEW)
    (tmp_path / "grpo.json").unlink()  # killed after the policy was stored
    again = train(profiles, tmp_path, FEW)
    assert again["start"] == record["start"] and again["end"] == record["end"]


def test_a_training_killed_before_its_policy_was_stored_is_not_done_again(profiles, tmp_path, monkeypatch):
    whole = train(profiles, tmp_path / "whole", FEW)
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(grpo, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(profiles, tmp_path / "stopped", FEW)
    monkeypatch.setattr(Rewarder, "__call__", None)  # no step is left
    assert train(profiles, tmp_path / "stopped", FEW)["end"] == whole["end"]


def test_adapters_are_merged_and_a_model_without_a_chat_template_learns(profiles, tmp_path):
    source = tmp_path / "plain"
    shutil.copytree(profiles.parent / "model", source)
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = None
    for file in source.glob("*chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(source)
    (source / "checksums.json").unlink()
    assert load_tokenizer(source).chat_template is None
    record = train(profiles, tmp_path / "g", dataclasses.replace(FEW, lora=True, lr=1e-2), base=str(source))
    assert len(record["history"]) == 3
    before, after = (load_model(folder, torch.float32).state_dict() for folder in (source, tmp_path / "g" / "model"))
    assert before.keys() == after.keys()  # adapters are part of the weights again
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("proj" in name or "fc" in name or "lm_head" in name for name in moved)


def without_end(source, folder, **config):
    """A copy of a model whose tokenizer has no end token; the model's own is that of `config`."""
    shutil.copytree(source, folder)
    (folder / "checksums.json").unlink()
    (folder / "generation_config.json").unlink()
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("+ eos_token ", ""))
    for name, fields in (("tokenizer_config.json", {"eos_token": None}), ("config.json", config)):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.mark.parametrize("own", [2, [2, 1]])
def test_a_tokenizer_without_an_end_token_has_the_models(profiles, tmp_path, own):
    base = without_end(profiles.parent / "model", tmp_path / "base", eos_token_id=own)
    assert load_tokenizer(base).eos_token_id == 2
    assert len(train(profiles, tmp_path / "g", FEW, base=str(base))["history"]) == 3
    pairs, corpus = examples("shop-tiny", limit_users=12, rounds=1)
    assert model.build(pairs, corpus, tmp_path / "m", base=str(base), sft_steps=1, batch=2)["parameters"]


def test_a_model_without_an_end_token_is_refused_before_anything_starts(profiles, tmp_path, monkeypatch):
    base = without_end(profiles.parent / "model", tmp_path / "base", eos_token_id=None)
    monkeypatch.setattr(grpo, "sides", None)
    pairs, corpus = examples("shop-tiny", limit_users=12, rounds=1)
    for ask in (lambda: train(profiles, tmp_path / "g", FEW, base=str(base)),
                lambda: plan(profiles, tmp_path / "g", FEW, base=str(base)),
                lambda: model.build(pairs, corpus, tmp_path / "m", base=str(base), sft_steps=1, batch=2)):
        with pytest.raises(InputError, match="model: .*base has no end token"):
            ask()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("which", ["user", "item"])
def test_a_side_of_one_prompt_is_refused_before_training(profiles, tmp_path, monkeypatch, which):
    there = grpo.sides

    def alike(*given):
        loop, made = there(*given)
        side = made[which]
        return loop, made | {which: dataclasses.replace(side, prompts=side.prompts[:1] * len(side.prompts))}

    monkeypatch.setattr(grpo, "sides", alike)
    for call in (plan, train):
        with pytest.raises(InputError, match=f"all its {which} profiles answer one prompt"):
            call(profiles, tmp_path / "g", FEW)


def test_another_number_of_processes_is_another_training(profiles, tmp_path, monkeypatch):
    train(profiles, tmp_path / "g", FEW)
    monkeypatch.setenv("WORLD_SIZE", "4")
    for call in (plan, train):
        with pytest.raises(InputError, match=r"holds another training \(processes differ\)"):
            call(profiles, tmp_path / "g", FEW)


def test_a_server_needs_what_speaks_to_it(profiles, tmp_path, monkeypatch):
    monkeypatch.setattr(grpo, "find_spec", lambda name: None)
    assert plan(profiles, tmp_path / "g", FEW, vllm_server="http://there:1")["vllm installed"] is False
    with pytest.raises(InputError, match="the package vllm, which speaks to the server, is not installed"):
        train(profiles, tmp_path / "g", FEW, vllm_server="http://there:1")


def test_a_build_of_other_items_is_refused(profiles, monkeypatch):
    from nullrec_lib.profiles import sides as module

    there = module.resume

    def fewer(folder):
        loop, seen = there(folder)
        return loop, dataclasses.replace(seen, subjects=seen.subjects[1:])

    monkeypatch.setattr(module, "resume", fewer)
    with pytest.raises(InputError, match="its profiles are of other items"):
        sides(profiles)


def test_prompts_that_leave_no_room_are_told_before_training(profiles, tmp_path):
    with pytest.raises(InputError, match=r"max_tokens: 850 leave \d+ of the model's positions, and the longest prompt"):
        plan(profiles, tmp_path, dataclasses.replace(FEW, max_tokens=850))


def test_thoughts_before_an_answer_are_not_judged():
    rewarder, _ = literal()
    found, _ = called(rewarder, ["<think>of what?</think> fair words", "bad words"], ["user", "user"], [1, 1])
    assert found == pytest.approx([0.8, 0.0])


def test_a_group_that_says_nothing_leaves_the_subject_as_it_was():
    rewarder, _ = literal()
    called(rewarder, ["good", "good"], ["user", "user"], [0, 0])  # one word is no profile
    assert rewarder.seen == {}


def test_the_command(profiles, tmp_path):
    asked = ["grpo", "--profiles", str(profiles), "--steps", "1", "--num-generations", "2", "--max-tokens", "12",
             "--out", str(tmp_path / "g"), "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["start"]["user held_out"]["reward"]) == {"mean", "low", "high"} == set(told["end"]["item train"]["reward"])
    assert told["settings"]["num_generations"] == 2


def test_a_dry_run_checks_the_configuration_and_begins_nothing(profiles, tmp_path):
    asked = ["grpo", "--profiles", str(profiles), "--out", str(tmp_path / "g"), "--dry-run"]
    done = CliRunner().invoke(app, [*asked, "--json", "--vllm-server", "http://localhost:8000", "--steps", "7"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["generation"] == "vLLM at http://localhost:8000" and told["processes"] == 1
    assert told["completions_per_step"] == 32 and told["completions"] == 7 * 32
    assert told["subjects"] == {f"{kind} {which}": len(places) for kind, side in sides(profiles)[1].items()
                                if kind != "cut" for which, places in part(side, 22).items()}
    assert not (tmp_path / "g").exists()
    assert "generation: in each process" in CliRunner().invoke(app, asked).stdout
    assert plan(profiles, tmp_path, FEW)["completions"] == 3 * 4
    config = grpo.config(tmp_path, FEW, **grpo._vllm("http://there:1"))
    assert config.use_vllm and config.vllm_server_base_url == "http://there:1"


def test_two_processes_learn_one_policy(profiles, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "nullrec_lib"]
    asked = ["grpo", "--profiles", str(profiles), "--out", str(tmp_path / "g"), "--steps", "2", "--num-generations", "2",
             "--prompts-per-step", "1", "--max-tokens", "12", "--refresh", "1", "--json"]
    done = subprocess.run([*launch, *asked], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (told,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]  # one speaks for both
    record = json.loads((tmp_path / "g" / "grpo.json").read_text())
    assert told["history"] == record["history"] and [one["step"] for one in record["history"]] == [1, 2]
    assert (tmp_path / "g" / "model" / "model.safetensors").exists() and set(record["gain"]) == set(record["start"])


def test_processes_tell_each_other_what_they_met(monkeypatch):
    rewarder, _ = literal()
    rewarder.seen = {("user", 0): np.array([0.0, 1.0])}
    theirs = {("user", 1): np.array([1.0, 0.0])}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)

    def gather(told, mine):
        told[:] = [mine, theirs]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    rewarder.share()
    assert rewarder.pending["user"][0].tolist() == [0, 1] and rewarder.pending["user"][1].tolist() == [1, 0]
    assert rewarder.seen == {}


@pytest.mark.parametrize("wrong, said", [
    (["--advantage", "raw"], "advantage: 'raw' is not standard or log_sigmoid"),
    (["--num-generations", "1"], "num_generations: a group of one"), (["--lambda-dist", "-1"], "lambda_dist: -1.0"),
])
def test_a_mistake_is_one_sentence(profiles, tmp_path, wrong, said):
    done = CliRunner().invoke(app, ["grpo", "--profiles", str(profiles), "--out", str(tmp_path / "g"), *wrong])
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_keywords_have_no_weights(tmp_path):
    build(tmp_path / "p", data="shop-tiny", rounds=1, limit_users=4, say=lambda _: None)
    with pytest.raises(InputError, match="was written by extractive, which has no weights"):
        train(tmp_path / "p", tmp_path / "g", FEW)
    with pytest.raises(InputError, match="no build has finished here"):
        train(tmp_path, tmp_path / "g", FEW)


def test_the_best_of_a_group_is_what_a_recommender_reads(profiles, tmp_path, monkeypatch):
    """A reward that likes one letter: each winner has more of it than any other candidate of its group."""
    from nullrec_lib.profiles import best as module
    from nullrec_lib.profiles import vectors
    from nullrec_lib.profiles.rewards import Terms

    count = lambda texts: np.array([float(text.count("a")) for text in texts])
    monkeypatch.setattr(Reward, "__call__", lambda self, texts, subjects: Terms(*[count(texts)] * 3))
    monkeypatch.setattr(prompts, "degenerate", lambda text: len(text) < 3)
    record = module.best(profiles, tmp_path / "b", candidates=4, max_tokens=12)
    _, made = sides(profiles)
    found = vectors.load(tmp_path / "b")
    assert found.item_ids == made["item"].ids and found.user_ids == made["cut"].ids
    assert found.cuts.tolist() == made["cut"].cuts and len(found.users) == len(found.cuts) == record["cut"]["subjects"]
    assert record["item"]["best"]["mean"] >= record["item"]["mean"]["mean"] > 0
    base = Store(tmp_path / "b")._db.base
    rows = base.execute("select prompt, text, seed from texts where fallback = 0").fetchall()
    assert {seed for *_, seed in rows} == {22, 23, 24, 25}
    of = {}
    for prompt, text, seed in rows:
        of.setdefault(prompt.split("\nBegin with")[0], []).append(text)
    assert any("Begin with what sets" in prompt for prompt, *_ in rows)
    encode = made["item"].reward.encode
    for place in (0, len(found.items) - 1):
        group = of[made["item"].prompts[place]]
        most = [text for text in group if count([text])[0] == count(group).max()]
        assert np.isclose(encode(most) @ found.items[place], 1, atol=1e-5).any()
    assert module.best(profiles, tmp_path / "b", candidates=4, max_tokens=12) == record  # read, not made again
    with pytest.raises(InputError, match="holds another choice"):
        module.best(profiles, tmp_path / "b", candidates=2, max_tokens=12)


def test_where_no_candidate_is_of_use_the_build_keeps_its_profile(profiles, tmp_path, monkeypatch):
    from nullrec_lib.profiles import best as module

    loop, made = sides(profiles)
    side = made["item"]
    written = [[("fine words here", False)] + [("nothing", True)] * (len(side.ids) - 1)] * 2
    loops = [type("L", (), {"write": lambda self, *_: (written[0], 0, [])})()]
    rows, told = module._choose(side, loops, 2, 22)
    assert told["fallbacks"] == len(side.ids) - 1
    assert rows[1:] == pytest.approx(side.reward.encode(side.texts[1:]), abs=1e-6)
    assert rows[0] == pytest.approx(side.reward.encode(["fine words here"])[0], abs=1e-6)
