"""The loop: who reads whom, what is held out, and what happens when it is stopped."""

import copy
import json
import multiprocessing
import random
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tqdm.auto import tqdm
from typer.testing import CliRunner

from nullrec_lib.cli import app
from nullrec_lib.errors import InputError
from nullrec_lib.language.writers import Prompt, WriterError
from nullrec_lib.preparing import prepare
from nullrec_lib.profiles import prompts
from nullrec_lib.profiles.build import build, export, own_user, resume
from nullrec_lib.profiles.convergence import distances
from nullrec_lib.profiles.loop import MODES, Loop, plan
from nullrec_lib.profiles.store import Store
from nullrec_lib.profiles.vectors import Vectors, beside_histories
from nullrec_lib.profiles.visible import visible
from foreseen import LETTERS, Echo, flat, toy

SEQUENCES = [[0, 1, 2, 3, 4], [1, 2, 5], [2, 3, 6, 0, 4], [4, 5, 6, 7], [0, 2, 4, 6]]
TRAIN = [0, 1, 2]


def loop(folder, sequences=SEQUENCES, writer=None, cuts=(1, 3), encode=flat):
    dataset, parts = toy(sequences, TRAIN)
    ids = [f"u{n}" for n in range(len(sequences))], [f"i{n}" for n in range(8)]
    return Loop(visible(dataset, parts, cuts), ids, writer or Echo(), folder, encode)


def stored(folder):
    """(kind, id, cut, round) → (text, prompt)."""
    base = Store(folder)._db.base
    rows = base.execute("select kind, id, cut, round, text, prompt from profiles join texts using (key)")
    return {row[:4]: row[4:] for row in rows}


def test_who_reads_whom(tmp_path):
    loop(tmp_path).run("full", rounds=2, epsilon=0)
    found = stored(tmp_path)
    text = lambda *key: prompts.clean(found[key][0])
    first = found["user", "u0", 0, 0][1]  # Eq. 6: own items, and those of neighbours that are not one's own
    assert "- thing 0. made of stuff 0\n- thing 1. made of stuff 1" in first
    assert "- thing 6\n" in first and "- thing 0\n" not in first.split("<others>")[1]
    item = found["item", "i4", 0, 0][1]  # Eq. 7: the users of item 4 who train, as they are in this round
    assert text("user", "u0", 0, 0) in item and text("user", "u2", 0, 0) in item
    assert text("user", "u1", 0, 0) not in item and "thing 4. made of stuff 4" in item
    again = found["user", "u0", 0, 1][1]  # Eq. 8: own items with their profiles, nobody else
    assert all(f"thing {n}: {text('item', f'i{n}', 0, 0)}" in again for n in range(5))
    assert again.split("<others>")[1].split("</others>")[0].split("\n", 1)[1].strip() == prompts.NOTHING
    assert text("user", "u0", 0, 1) in found["item", "i4", 0, 1][1]
    cut = found["user", "u3", 3, 1][1]  # a held-out user's first three items, with the profiles that u0 read as well
    assert all(text("item", f"i{n}", 0, 0) in cut for n in (4, 5, 6)) and "thing 7" not in cut


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_makes_what_it_plans(mode, tmp_path):
    made = loop(tmp_path)
    built = made.run(mode, rounds=2, epsilon=0)
    counts = plan(made.visible, mode, 2)
    for side in ("user", "item", "cut"):
        assert sum(done.profiles for done in built.rounds if done.side == side) == counts[side]
    kinds = {key[0] for key in stored(tmp_path)}
    assert kinds == {"user-only": {"user"}, "item-only": {"item"}}.get(mode, {"user", "item"})
    if mode == "item-only":  # from what its users chose besides
        assert "- thing 0\n" in stored(tmp_path)["item", "i4", 0, 0][1].split("<customers>")[1]


@pytest.mark.parametrize("mode", MODES)
def test_the_floor_is_how_far_apart_one_prompt_answers_under_two_seeds(mode, tmp_path):
    class Settled(Echo):
        write = lambda self, asked, seed: super().write(asked, 0)

    made = loop(tmp_path / "moved")
    built = made.run(mode, rounds=2, epsilon=0)
    of = "item" if mode == "item-only" else "user"
    last = max(done.round for done in built.rounds)
    asked = [prompts_of for (kind, _, cut, t), (_, prompts_of) in stored(tmp_path / "moved").items()
             if (kind, cut, t) == (of, 0, last)]
    answers = [flat([Echo().write([Prompt(one)], seed)[0] for one in asked]) for seed in (22, 24)]
    assert built.floor == pytest.approx(distances(*answers).mean()) and built.floor > 1
    assert plan(made.visible, mode, 2)["again"] == len(asked)
    assert loop(tmp_path / "still", writer=Settled()).run(mode, rounds=2, epsilon=0).floor == 0
    assert loop(tmp_path / "blind", encode=None).run(mode, rounds=2, epsilon=0).floor is None


def test_an_item_without_one_of_its_users_knows_nothing_of_this_one(tmp_path):
    made = loop(tmp_path)
    made.run("single-pass")
    users = [stored(tmp_path)["user", f"u{user}", 0, 0][0] for user in made.visible.users]
    pairs, texts = made.without_own(users, most=99)
    assert sorted(map(tuple, pairs.tolist())) == sorted((user, item) for user in TRAIN for item in SEQUENCES[user])
    for (user, item), text in zip(pairs.tolist(), texts):
        prompt = next(one for one in made.writer.asked if Echo().write([Prompt(one)], 22) == [text])
        others = [other for other in TRAIN if item in SEQUENCES[other] and other != user]
        assert f"made of stuff {item}" in prompt and prompts.clean(users[user]) not in prompt
        assert all(prompts.clean(users[other]) in prompt for other in others)
    assert len(made.without_own(users, most=3)[0]) == 3


def test_what_item_profiles_owe_to_their_own_users(tmp_path):
    build(tmp_path, data="shop-tiny", rounds=1, say=lambda _: None)
    found = own_user(tmp_path, most=40)
    assert found["pairs"] == 40 and 0 < found["distance"] < 1 and found["with"] > found["without"]
    changed = json.loads((tmp_path / "asked.json").read_text()) | {"revision": "older"}
    (tmp_path / "asked.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="was built by extractive as it was then"):
        own_user(tmp_path)
    build(tmp_path / "half", data="shop-tiny", mode="user-only", say=lambda _: None)
    with pytest.raises(InputError, match="profiles of one side only"):
        own_user(tmp_path / "half")


def test_no_prompt_knows_what_is_held_out(tmp_path):
    """Other items for the held-out users, from the first on that no profile may see: nothing but their own longer
    cuts may change."""
    changed = copy.deepcopy(SEQUENCES)
    changed[3][1:], changed[4][3:] = [0, 1, 2], [7]
    for name, sequences in (("a", SEQUENCES), ("b", changed)):
        loop(tmp_path / name, sequences).run("full", rounds=3, epsilon=0)
    a, b = stored(tmp_path / "a"), stored(tmp_path / "b")
    assert a.keys() == b.keys()
    assert {key for key in a if a[key] != b[key]} == {("user", "u3", 3, 2)}  # u4's cuts end before its change


def test_a_profile_at_a_cut_knows_nothing_of_what_comes_after(tmp_path):
    """Everything after the first item of a training user changes. Item profiles may know of it, as they are made of
    training interactions; the user's own profile at cut 1, while it reads items and neighbours alone, may not."""
    changed = copy.deepcopy(SEQUENCES)
    changed[0][1:] = [7, 6, 5, 4]
    for name, sequences in (("a", SEQUENCES), ("b", changed)):
        loop(tmp_path / name, sequences).run("single-pass")
    a, b = stored(tmp_path / "a"), stored(tmp_path / "b")
    assert a["user", "u0", 1, 0] == b["user", "u0", 1, 0]
    assert a["user", "u0", 3, 0] != b["user", "u0", 3, 0]


class Moody(Echo):
    """Says nothing of use to some prompts, once or always."""

    def __init__(self, recovers):
        super().__init__()
        self.recovers, self.seeds = recovers, []

    def write(self, asked, seed):
        self.seeds += [seed] * len(asked)
        answers = super().write(asked, seed)
        useless = lambda prompt: "thing 1." in prompt.text and not (self.recovers and seed == 23)
        return ["..." if useless(prompt) else answer for prompt, answer in zip(asked, answers)]


@pytest.mark.parametrize("recovers", [True, False])
def test_nonsense_is_asked_for_once_more_and_then_replaced_and_counted(recovers, tmp_path):
    writer = Moody(recovers)
    built = loop(tmp_path, writer=writer, encode=None).run("single-pass")
    bad = writer.seeds.count(23)
    assert bad > 0 and set(writer.seeds) == {22, 23}
    assert sum("Your last answer" in asked for asked in writer.asked) == bad
    fallen = [one for one in Store(tmp_path).profiles() if one.fallback]
    assert sum(done.fallbacks for done in built.rounds) == len(fallen) and (not fallen) == recovers
    assert all(one.text.startswith(("Likes", "thing")) for one in fallen)


def test_what_is_stored_is_not_asked_for_again(tmp_path):
    first = loop(tmp_path).run("full", rounds=2, epsilon=0)
    writer = Echo()
    second = loop(tmp_path, writer=writer).run("full", rounds=2, epsilon=0)
    assert writer.asked == [] and sum(done.written for done in second.rounds) == 0
    assert [done.distance for done in first.rounds] == [done.distance for done in second.rounds]


class Dies(Echo):
    def write(self, asked, seed):
        if len(self.asked) > 12:
            raise WriterError("the server is gone.")
        return super().write(asked, seed)


def test_answers_do_not_depend_on_what_was_asked_for_before(tmp_path):
    """A sampling writer's answer depends on its batch: those that are missing of one are written with all of it."""

    class Sampling(Echo):
        def write(self, asked, seed):
            return [f"{text} among {len(asked)} at {'abc'[place]}" for place, text in enumerate(super().write(asked, seed))]

    one, other = (loop(tmp_path / name, writer=Sampling()) for name in "ab")
    asked = one.opening("full")
    at_once, _, _ = one.write("user", asked, "")
    other.write("user", asked[1:2], "")
    later, _, _ = other.write("user", asked, "")
    assert later[0] == at_once[0] and later[2] == at_once[2]


def test_what_thinks_aloud_is_heard_and_what_says_nothing_in_any_script_is_not(tmp_path):
    class Thinking(Echo):
        def write(self, asked, seed):
            return [f"<think>who is this</think>\n{text}" for text in super().write(asked, seed)]

    answers, _, _ = (made := loop(tmp_path, writer=Thinking())).write("user", made.opening("full"), "")
    assert all(text.startswith("says ") and not fallback for text, fallback in answers)


def test_one_user_alone_has_no_mean_over_pairs(tmp_path):
    dataset, parts = toy(SEQUENCES, TRAIN)
    ids = [f"u{n}" for n in range(5)], [f"i{n}" for n in range(8)]
    alone = Loop(visible(dataset, parts, (1, 3), limit_users=1, seed=0), ids, Echo(), tmp_path, flat)
    built = alone.run("user-only", rounds=1)
    assert built.rounds[0].profiles == 1 and built.rounds[0].homogenisation is None
    with pytest.raises(InputError, match="limit_users: none of the 1 drawn users trains"):
        for seed in range(9):
            visible(dataset, parts, limit_users=1, seed=seed)


def test_a_build_is_gone_on_with_only_as_it_was_asked_for(tmp_path, monkeypatch):
    from nullrec_lib.profiles import build as builds

    build(tmp_path / "p", data="shop-tiny", rounds=1, limit_users=8, say=len)
    asked = (tmp_path / "p/asked.json").read_bytes()
    build(tmp_path / "p", data="shop-tiny", rounds=1, limit_users=8, say=len)
    assert (tmp_path / "p/asked.json").read_bytes() == asked
    told = json.loads(asked)
    with pytest.raises(InputError, match="context differ"):
        builds._claim(tmp_path / "p", told | {"settings": {"context": 500}})
    other = builds.material
    monkeypatch.setattr(builds, "material", lambda data, split, keep: other(data, split, "last:4"))
    with pytest.raises(InputError, match="the data have changed since"):
        resume(tmp_path / "p")


def test_builds_that_do_not_say_of_which_items_they_are_are_refused(tmp_path):
    from nullrec_lib.spec import Spec

    build(tmp_path / "p", data="shop-tiny", rounds=1, limit_users=8, say=len)
    path = tmp_path / "p/asked.json"
    old = json.loads(path.read_text())
    del old["items_fingerprint"]
    path.write_text(json.dumps(old))
    for read in (lambda: prepare(Spec(data="shop-tiny", method="pte", profiles=str(tmp_path / "p"))),
                 lambda: build(tmp_path / "p", data="shop-tiny", rounds=1, limit_users=8, say=len)):
        with pytest.raises(InputError, match="older versions"):
            read()


@pytest.mark.parametrize("epsilon", [float("nan"), -0.1])
def test_an_epsilon_that_is_none(epsilon, tmp_path):
    with pytest.raises(InputError, match="epsilon: .* is not a finite number of at least 0"):
        build(tmp_path / "p", data="shop-tiny", rounds=1, epsilon=epsilon, say=len)


def test_around_an_item_without_users_profiles_are_the_texts_of_their_histories(tmp_path):
    from nullrec_lib.profiles.sides import sides

    build(tmp_path / "p", data="shop-tiny", rounds=1, limit_users=8, mode="item-only", say=len)
    made, side = sides(tmp_path / "p")
    seen, texts = made.visible, made.encode(list(made.visible.texts))
    of = seen.users_of(50)[0]
    assert len(of)
    mean = np.mean([texts[seen.history(user)].mean(axis=0) for user in of], axis=0)
    assert side["item"].reward.about[0] == pytest.approx(mean, abs=1e-5)


def test_an_encoder_is_looked_at_before_anything_is_written(tmp_path):
    for encoder in ("server:http://me:s3cret@host/v1#m", str(tmp_path / "nowhere.safetensors")):
        with pytest.raises(InputError):
            build(tmp_path / "p", data="shop-tiny", rounds=1, encoder=encoder, say=len)
        assert not (tmp_path / "p").exists()


def test_a_loop_whose_writer_dies_goes_on_where_it_was(tmp_path):
    dying, whole = Dies(), Echo()
    with pytest.raises(WriterError):
        loop(tmp_path / "a", writer=dying).run("full", rounds=2, epsilon=0)
    after = Echo()
    loop(tmp_path / "a", writer=after).run("full", rounds=2, epsilon=0)
    loop(tmp_path / "b", writer=whole).run("full", rounds=2, epsilon=0)
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    assert sorted(dying.asked + after.asked) == sorted(whole.asked)  # nothing twice


class Streams(Echo):
    """Answers prompts one by one, last first, and dies after a few."""

    def __init__(self, dies_after):
        super().__init__()
        self.left = dies_after

    def stream(self, asked, seed):
        for place in reversed(range(len(asked))):
            if self.left == 0:
                raise WriterError("gone.")
            self.left -= 1
            yield place, super().write([asked[place]], seed)[0]


def test_every_text_that_was_paid_for_is_stored(tmp_path):
    writer, after = Streams(5), Streams(-1)
    with pytest.raises(WriterError):
        loop(tmp_path, writer=writer, encode=None).run("single-pass")
    loop(tmp_path, writer=after, encode=None).run("single-pass")
    assert len(writer.asked) == 5 and not set(writer.asked) & set(after.asked)


class Slow(Echo):
    """Its answers depend on who shares the batch, as a language model's may in their last digits."""

    def write(self, asked, seed):
        time.sleep(0.1)
        together = " ".join(prompt.text for prompt in asked)
        return [one + flat([together])[0].tobytes().hex().translate(LETTERS) for one in super().write(asked, seed)]


def test_a_build_killed_at_ten_random_moments_ends_like_one_left_alone(tmp_path):
    def work(folder):
        # A fork shares the progress bars' lock with this process, and a child that is killed may hold it for ever.
        tqdm.set_lock(threading.RLock())
        loop(folder, writer=Slow()).run("full", rounds=3, epsilon=0)

    work(tmp_path / "alone")
    moments = random.Random(5)
    for _ in range(10):
        child = multiprocessing.get_context("fork").Process(target=work, args=(tmp_path / "killed",))
        child.start()
        child.join(moments.uniform(0.05, 0.2))
        child.kill()
        child.join()
    some = len(stored(tmp_path / "killed"))
    work(tmp_path / "killed")
    assert some < len(stored(tmp_path / "killed"))  # it had not ended by itself
    assert stored(tmp_path / "killed") == stored(tmp_path / "alone")


def test_what_it_may_cost_is_said_before_anything_is_sent(tmp_path, monkeypatch):
    from nullrec_lib.profiles import build as builds

    said, writer = [], Echo()
    writer.estimate = lambda asked: {"prompt_tokens": 100 * len(asked), "written_tokens": 7 * len(asked),
                                     "cost": 0.5 * len(asked)}
    monkeypatch.setattr(builds, "make_writer", lambda *_, **__: writer)
    monkeypatch.setattr(Loop, "run", lambda *_: said.append("begun"))
    build(tmp_path, data="shop-tiny", rounds=1, say=said.append)
    count = int(re.search(r"at most ([\d,]+) texts", said[0]).group(1))
    assert said[1] == (f"About {100 * count:,} tokens to read and at most {7 * count:,} to write; "
                       f"a cost of {count / 2:,.2f}.")
    assert said[2] == "begun" and writer.asked == []


def test_profiles_that_settle_end_the_loop(tmp_path):
    class Stubborn(Echo):
        def write(self, asked, seed):
            super().write(asked, seed)
            return [f"always the same of {prompt.text.split('thing')[1][:2]}" for prompt in asked]

    built = loop(tmp_path, writer=Stubborn()).run("full", rounds=9, epsilon=0.001)
    assert built.converged and max(done.round for done in built.rounds) == 1


def test_shuffled_profiles_are_the_same_of_other_users():
    ids, rows = ["u0", "u1", "u2", "u3"], np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    found = Vectors(["i0"], rows[:1], sorted(ids * 2), np.tile([1, 3], 4), rows, {})
    trained = np.array([5, 5, 0, 0])  # the last two are held out
    validates = np.array([False, False, False, False])
    right, wrong = (beside_histories(found, ids, trained, validates, shuffled=seed) for seed in (None, 1))
    assert right.cuts.tolist() == wrong.cuts.tolist() and right.rows.tolist() == rows.tolist()
    taken = [right.rows.tolist().index(row) for row in wrong.rows.tolist()]
    assert sorted(taken) == list(range(8))
    users = right.cuts[:, 0].numpy()
    assert (users[taken] != users).all()
    assert ((users[taken] < 2) == (users < 2)).all()  # nobody who trains reads what is held out


def test_validation_users_get_none_of_what_is_there_to_test():
    ids, rows = [f"u{n}" for n in range(12)], np.eye(12, dtype=np.float32)
    found = Vectors([], rows[:0], ids, np.ones(12, np.int64), rows, {})
    part = np.arange(12) // 4  # training, validation and test users
    wrong = beside_histories(found, ids, np.where(part == 0, 5, 0), part == 1, shuffled=4)
    assert (part[wrong.rows.argmax(dim=1).numpy()] == part).all()


def test_users_alone_with_their_length_get_the_nearest_ones():
    """Under leave-one-out cuts are as long as histories: who is alone with a length must not keep the own vector."""
    ids, rows = [f"u{n}" for n in range(30)], np.eye(60, dtype=np.float32)
    found = Vectors([], rows[:0], sorted(ids * 2, key=ids.index), np.array([10 * n + m for n in range(30) for m in (5, 6)]),
                    rows, {})
    wrong = beside_histories(found, ids, np.full(30, 1000), np.zeros(30, bool), shuffled=4)
    taken = wrong.rows.argmax(dim=1).numpy() // 2
    assert (taken != np.repeat(np.arange(30), 2)).all()
    assert np.median(np.abs(taken - np.repeat(np.arange(30), 2))) <= 2


def test_who_has_nobody_else_gets_nobodys():
    """One validation user alone, at two cuts: turned around, its first cut would read what its later history says."""
    ids, rows = ["u0", "u1", "u2"], np.eye(6, dtype=np.float32)
    found = Vectors([], rows[:0], sorted(ids * 2), np.tile([1, 3], 3), rows, {})
    trained, validates = np.array([5, 5, 0]), np.array([False, False, True])
    wrong = beside_histories(found, ids, trained, validates, shuffled=1)
    assert set(wrong.cuts[:, 0].tolist()) == {0, 1} and len(wrong.rows) == 4
    assert (wrong.rows.argmax(dim=1).numpy() // 2 != wrong.cuts[:, 0].numpy()).all()
    alone = Vectors([], rows[:0], ["u2", "u2"], np.array([1, 3]), rows[4:], {})
    assert beside_histories(alone, ids, trained, validates, shuffled=1) is None


# From the command line


@pytest.fixture
def asked(tmp_path):
    return ["profiles", "build", "--data", "shop-tiny", "--limit-users", "12", "--rounds", "2", "--out",
            str(tmp_path / "p")]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands(asked, tmp_path):
    done = call(*asked, "--json")
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 0 and "shop-tiny, cold-start: at most" in done.stderr and told["asked"]["seed"] == 22
    planned, twice = map(int, re.search(r"at most (\d+) texts .* (\d+) under a second seed", done.stderr).groups())
    planned -= twice
    assert sum(one["profiles"] for one in told["rounds"]) == planned
    lines = [json.loads(line) for line in call("profiles", "export", tmp_path / "p").stdout.splitlines()]
    assert len(lines) == planned
    assert set(lines[0]) == {"kind", "id", "cut", "round", "text", "writer", "fallback"}
    assert {one["cut"] for one in lines if one["kind"] == "user"} == {None, 1, 3, 10}
    user = next(one["id"] for one in lines if one["kind"] == "user" and one["cut"] is None)
    shown = call("profiles", "show", user, "--out", tmp_path / "p").stdout
    assert f"user {user}, round 0, extractive:" in shown and "\n  + " in shown
    again = call(*asked, "--json")
    assert again.exit_code == 0 and "finished already" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1]) == told
    made = call("profiles", "report", tmp_path / "p", "--out", tmp_path / "r")
    assert made.exit_code == 0, made.stderr
    table, stored_ = (tmp_path / "r" / "results.md").read_text(), json.loads((tmp_path / "r" / "p.json").read_text())
    assert stored_["rounds"] == told["rounds"] and len(stored_["readings"]) == 2 + len({r["round"] for r in told["rounds"]})
    assert "| p | item texts |" in table and f"{stored_['own_user']['distance']:.4g}"[:5] in table
    missing = call("profiles", "report", tmp_path, "--out", tmp_path / "r")
    assert missing.exit_code == 2 and "no build has finished here" in missing.stderr


@pytest.mark.parametrize("wrong, said", [
    (["--mode", "half"], "mode: 'half' is not one of full,"), (["--rounds", "0"], "rounds: 0 is below 1"),
    (["--cuts", "a"], "cuts: 'a' is not a list"), (["--writer", "gpt"], "writer: 'gpt' is not"),
    (["--temperature", "1"], "temperature: the extractive writer does not read it"),
])
def test_a_mistake_is_one_sentence(asked, wrong, said):
    done = call(*asked, *wrong)
    assert done.exit_code == 2 and done.stderr.startswith(f"nullrec: {said}") and done.stderr.count("\n") == 1


def test_a_folder_is_for_one_build(asked, tmp_path):
    assert call(*asked).exit_code == 0
    done = call(*asked, "--seed", "23")
    assert done.exit_code == 2 and "holds other profiles (seed differ)" in done.stderr
    done = call("profiles", "show", "nobody", "--out", tmp_path / "p")
    assert done.exit_code == 2 and "no user or item 'nobody' has a profile here" in done.stderr


def test_what_is_exported_is_what_is_loaded(tmp_path):
    build(tmp_path, data="shop-tiny", limit_users=8, rounds=1, say=len)
    last = [json.loads(line) for line in export(tmp_path)]
    loaded = [one for some in Store(tmp_path).last().values() for one, _ in some]
    key = lambda one: (one["kind"], one["id"], one["cut"] or 0, one["text"])
    assert sorted(map(key, last)) == sorted(key(vars(one)) for one in loaded)


def test_wrong_input_is_told_before_anything_is_made(tmp_path):
    with pytest.raises(InputError, match="mode"):
        build(tmp_path / "p", data="shop-tiny", mode="x", say=len)
    assert not (tmp_path / "p").exists()


def test_a_build_is_found_again_where_its_data_have_moved(tmp_path, monkeypatch):
    from nullrec_lib.profiles import report
    from tests.data.layouts import Sample, recbole

    events = tuple((f"u{n % 20}", f"i{(n * n + n // 20) % 9}", 1_500_000_000 + n) for n in range(160))
    titles = ["Space lasers", "Fresh tomatoes", "Medieval sword", "Quiet jazz", "Deep water", "Red chair", "Old lamp", "Shoes", "Salt"]
    sample = Sample(tuple((f"i{n}", title) for n, title in enumerate(titles)), events)
    recbole(tmp_path / "work" / "set", sample)
    monkeypatch.chdir(tmp_path / "work")
    words = dict(rounds=1, cuts=(1,), say=lambda _: None)
    whole = build(Path("p"), "set", **words)
    monkeypatch.chdir(tmp_path)  # from another folder, by a path of its own
    assert build(Path("work/p"), "work/set", **words) == whole
    assert resume(Path("work/p"))[1].titles == tuple(titles)
    recbole(tmp_path / "set", Sample(sample.items[::-1], events))  # other data where the name leads from here
    assert resume(Path("work/p"))[1].titles == tuple(titles)
    assert report.report([Path("work/p")], tmp_path / "report")
    (tmp_path / "work" / "set").rename(tmp_path / "kept")
    with pytest.raises(InputError, match="data have changed|not where they were"):
        resume(Path("work/p"))
