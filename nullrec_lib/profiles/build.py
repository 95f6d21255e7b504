"""From a data set's name to a folder of profiles, and from the folder to what others read."""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator

from nullrec_lib import data as sets
from nullrec_lib.data.interactions import Dataset, cut
from nullrec_lib.data.splits import Split
from nullrec_lib.data.splits import split as make_split
from nullrec_lib.errors import InputError
from nullrec_lib.files import DamagedFile, agree, alone, read_json, write_json
from nullrec_lib.language.encoder import DEFAULT, embed_texts, identity
from nullrec_lib.language.writers import Prompt, Writer
from nullrec_lib.language.writers import writer as make_writer
from nullrec_lib.profiles import prompts
from nullrec_lib.profiles.convergence import distances
from nullrec_lib.profiles.loop import Built, Loop, finished, plan
from nullrec_lib.profiles.store import FILE, Store
from nullrec_lib.profiles.visible import Visible, visible

ASKED = "asked.json"
SMALL_CONTEXT, SMALL_PROMPT, SMALL_PROFILE = 512, 200, dict(own_words=8, other_words=4)
"""Tokens that a small model of one's own reads and writes; words of the prompts and of the profiles that it learns
from. They fit, short ones make its training short, and a prompt has room for more customers the less each says."""


def build(
    out: Path,
    data: str = "shop",
    split: str = "cold-start",
    keep: str | None = None,
    writer: str = "extractive",
    mode: str = "full",
    rounds: int = 3,
    cuts: tuple[int, ...] = (1, 3, 10),
    epsilon: float = 0.01,
    limit_users: int | None = None,
    encoder: str = DEFAULT,
    seed: int = 22,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> Built:
    """Build profiles into `out`, or go on with a build that was stopped, or read the record of a finished one.

    Args:
        out: folder of the store, `asked.json` and `build.json`.
        data, split, keep: as in `spec.Spec`.
        writer: `extractive`, `local:PATH` or `server:URL`.
        mode, rounds, epsilon: see `loop.Loop.run`.
        cuts, limit_users: see `visible.visible`.
        encoder: that sees how far profiles moved.
        seed: of the writer, the drawn users and the compared sample.
        say: gets a sentence on what will be written, before anything is.
        settings: of the writer.

    Raises:
        InputError: wrong input, or `out` holds another build.
        WriterError: the writer cannot go on; the same call later does.
    """
    asked = dict(data=data, split=split, keep=keep, writer=writer, mode=mode, rounds=rounds, cuts=list(cuts),
                 epsilon=epsilon, limit_users=limit_users, encoder=encoder, seed=seed)
    dataset, parts, seen, who = _ready(data, split, keep, writer, cuts, limit_users, seed, settings)
    if not 0 <= epsilon < float("inf"):
        raise InputError(f"epsilon: {epsilon} is not a finite number of at least 0.")
    counts = plan(seen, mode, rounds)
    identity(encoder)  # what cannot see how far profiles moved, and an address with a secret in it, is refused before all
    # The writer's settings are in its revision, as far as they can change a text.
    made_of = asked | {"settings": settings, "revision": who.revision, "split_fingerprint": parts.fingerprint(),
                       "data_fingerprint": dataset.fingerprint(), "ids_fingerprint": dataset.ids_fingerprint(),
                       "items_fingerprint": dataset.items_fingerprint(),
                       "templates": prompts.VERSION}
    with alone(out):  # two processes that share a folder agree on what is built there
        _claim(Path(out), made_of)
    if (done := _whole(out)) is not None:
        say(f"{data}, {split}: finished already, in {out}.")
        return done
    say(f"{data}, {split}: at most {counts['all']:,} texts ({counts['user']:,} of users, {counts['item']:,} of items, "
        f"{counts['cut']:,} of users at cuts {', '.join(map(str, cuts))}, {counts['again']:,} under a second seed) by "
        f"{who.name}.")
    loop = Loop(seen, _ids(dataset), who, out, partial(embed_texts, encoder=encoder), seed)
    if hasattr(who, "estimate"):
        say(_cost(who, loop.opening(mode), counts["all"]))
    return loop.run(mode, rounds, epsilon, made_of)


def _whole(out: Path) -> Built | None:
    """The record of a build that has finished and is whole. Of another what is missing is written again, and no more."""
    try:
        done = finished(out)
    except DamagedFile:
        return None
    if done is None or not (Path(out) / FILE).is_file():
        return None
    with closing(Store(out, create=True)) as store:
        return done if store.whole() else None


def where(folder: Path, asked: dict[str, Any]) -> str:
    """Where the data of a build lie now, found by their content.

    Raises:
        InputError: they are nowhere, or are no longer what they were.
    """
    failure = InputError(f"{folder}: its data, {asked['data']}, are not where they were; put them there, or let $NULLREC_DATA "
                         "name the folder above them.")
    for place in sets.places(asked["data"], folder):
        try:
            dataset, parts = material(place, asked["split"], asked["keep"])
        except InputError as error:  # other data of this name, perhaps no data at all
            failure = error
            continue
        if (dataset.fingerprint(), parts.fingerprint()) == (asked["data_fingerprint"], asked["split_fingerprint"]):
            return place
        failure = InputError(f"{folder}: was built from {asked['data']} as it was then, and the data have changed since.")
    raise failure


def material(data: str, split: str, keep: str | None) -> tuple[Dataset, Split]:
    """What profiles are built from: a data set, cut, and its split.

    Raises:
        InputError: wrong input.
    """
    dataset = cut(sets.load(data), keep)
    return dataset, make_split(dataset, split)


def _ready(data, split, keep, writer, cuts, limit_users, seed, settings) -> tuple[Dataset, Split, Visible, Writer]:
    dataset, parts = material(data, split, keep)
    seen = visible(dataset, parts, cuts, limit_users, seed)
    return dataset, parts, seen, make_writer(writer, seen.texts, **settings)


def _ids(dataset: Dataset) -> tuple[list[str], list[str]]:
    return list(dataset.user_ids), list(dataset.items["item_id"])


def resume(folder: Path) -> tuple[Loop, Visible]:
    """The loop of a build that is there, to write more with, and what it may see.

    Raises:
        InputError: none is there, or its writer or its data are not what they were.
    """
    path = Path(folder) / ASKED
    if not path.is_file():
        raise InputError(f"{folder}: no profiles were built here; `nullrec profiles build --out` makes some.")
    asked = read_asked(folder)
    names = ("split", "keep", "writer", "cuts", "limit_users", "seed", "settings")
    dataset, _, seen, who = _ready(where(folder, asked), *(asked[name] for name in names))
    if who.revision != asked["revision"]:
        raise InputError(f"{folder}: was built by {asked['writer']} as it was then, and it has changed since.")
    loop = Loop(seen, _ids(dataset), who, folder, partial(embed_texts, encoder=asked["encoder"]), asked["seed"])
    loop.store.check()
    return loop, seen


def own_user(folder: Path, most: int = 500) -> dict[str, float]:
    """What item profiles owe to the very users whom a model learns to recommend the items to: an item profile is made
    from its training users' profiles, and each of these users is, for some example, the one it is trained for. Profiles
    of drawn items are written once more without one such user.

    Args:
        folder: of a finished build; the new texts are stored beside its own.
        most: pairs of a user and an item.

    Returns: `pairs`; `distance`, mean √(2 − 2cos) between an item's profile with and without the user; and `with` and
        `without`, the mean cosine of the item's profile to the user's own.

    Raises:
        InputError: no build, one without user or item profiles, or its writer is not what it was.
    """
    loop, seen = resume(folder)
    last = loop.store.last()
    said = {kind: {one.id: one.text for one, _ in last.get((kind, False), [])} for kind in ("user", "item")}
    if not all(said.values()):
        raise InputError(f"{folder}: holds profiles of one side only; build it with mode full or single-pass.")
    encode = loop.encode
    user_ids, item_ids = loop.user_ids, loop.item_ids
    pairs, texts = loop.without_own([said["user"][user_ids[user]] for user in seen.users], most)
    whose = encode([said["user"][user_ids[user]] for user in pairs[:, 0]])
    before, after = encode([said["item"][item_ids[item]] for item in pairs[:, 1]]), encode(texts)
    cosine = lambda rows: float((rows * whose).sum(axis=1).mean())
    return {"pairs": len(pairs), "distance": float(distances(before, after).mean()), "with": cosine(before),
            "without": cosine(after)}


def _cost(who: Any, opening: list[Prompt], profiles: int) -> str:
    """What a writer that is paid by the token would take at most: the first round's prompts are known, and the others
    are reckoned to be as long. Nothing is sent."""
    known = who.estimate(opening)
    tokens, written, cost = (known[name] and known[name] * profiles / max(1, len(opening))
                             for name in ("prompt_tokens", "written_tokens", "cost"))
    price = "give --price-in and --price-out for the cost" if cost is None else f"a cost of {cost:,.2f}"
    return f"About {tokens:,.0f} tokens to read and at most {written:,.0f} to write; {price}."


def folder_of(root: Path, asked: dict[str, Any]) -> Path:
    """A folder under `root` for the builds with these arguments: their hash."""
    return Path(root) / hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:12]


def examples(
    data: str = "shop", split: str = "cold-start", keep: str | None = None, rounds: int = 2, words: int = SMALL_PROMPT,
    seed: int = 22, limit_users: int | None = None,
) -> tuple[list[tuple[str, str]], list[str]]:
    """What a language model can learn to write profiles from: (prompt, extractive profile) pairs, and item texts.

    Of items and whole training users only, so nothing that is held out is among them.

    Args:
        rounds: of the loop whose prompts they are; from the second on, users are told of items by their profiles.
        words: of a prompt at most, so that prompts fit into a small model's context.
    """
    dataset, _, seen, who = _ready(data, split, keep, "extractive", (1,), limit_users, seed, SMALL_PROFILE)
    who.context = words
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(seen, _ids(dataset), who, Path(folder), None, seed)
        loop.run("full", rounds, 0.0)
        return loop.store.pairs(), list(seen.texts)


def read_asked(folder: Path) -> dict[str, Any]:
    """What the build in a folder was asked for.

    Raises:
        DamagedFile: it is missing or not whole.
    """
    needs = ["data", "split", "keep", "writer", "mode", "cuts", "limit_users", "encoder", "seed", "settings", "revision",
             "data_fingerprint", "split_fingerprint"]
    return read_json(Path(folder) / ASKED, needs, "remove it, and the same `nullrec profiles build` writes it again")


def _claim(out: Path, asked: dict[str, Any]) -> None:
    """Write down what a folder is for, once.

    Raises:
        InputError: it is for something else.
    """
    # Of the settings one alone, which decides the prompts: what else can change a text is in the revision.
    # And the data's place decides nothing: their fingerprint is there.
    flat = lambda one: {name: value for name, value in one.items() if name != "data"} | {
        "settings": {"context": one["settings"].get("context")}}
    there = read_asked(out) if (out / ASKED).exists() else _asked_of_record(out)
    if there is not None:
        refuse_old(out, there)
        agree(out, "other profiles", flat(there), flat(asked))
    elif (out / FILE).is_file():  # whose its profiles are nobody knows; its texts say themselves what made them
        with closing(Store(out, create=True)) as store:
            store.unname()
    if not (out / ASKED).exists():
        write_json(out / ASKED, asked)


def _asked_of_record(out: Path) -> dict[str, Any] | None:
    try:
        return done.asked if (done := finished(out)) is not None else None
    except DamagedFile:
        return None


def refuse_old(folder: Path | str, asked: dict[str, Any]) -> None:
    """
    Raises:
        InputError: a build by an older version, which does not say of which texts its profiles are.
    """
    if "items_fingerprint" not in asked:
        raise InputError(f"{folder}: its profiles do not say of which items they are, as those of older versions; build them "
                         "again in another folder.")


def export(folder: Path) -> Iterator[str]:
    """One line of JSON per stored profile, all rounds: kind, id, cut (null for whole), round, text, writer, fallback.

    Raises:
        InputError: there are none.
    """
    fields = ("kind", "id", "cut", "round", "text", "writer", "fallback")
    for one in Store(folder).profiles():
        yield json.dumps({name: getattr(one, name) for name in fields}, ensure_ascii=False)
