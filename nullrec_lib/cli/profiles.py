"""`nullrec profiles` and `nullrec model`."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from nullrec_lib.cli.common import AsJson, Data, speaks
from nullrec_lib.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Write profiles of users and items, and look at them.")
model_app = typer.Typer(no_args_is_help=True, help="A language model of one's own, to write profiles with.")


@app.command("build")
@speaks
def build_profiles(
    out: Annotated[Path, typer.Option(help="Folder of the profiles; the same command there goes on or reads them.")],
    data: Data = "shop",
    writer: Annotated[str, typer.Option(
        help="extractive (keywords, no model), local:PATH (a causal language model, see `nullrec model build`), or "
        "server:URL (OpenAI-compatible; its key is read from NULLREC_API_KEY or OPENAI_API_KEY).")] = "extractive",
    mode: Annotated[str, typer.Option(help="full, single-pass, user-only or item-only.")] = "full",
    rounds: Annotated[int, typer.Option(help="Of the loop, at most.")] = 3,
    epsilon: Annotated[float, typer.Option(
        help="The loop ends when profiles moved less: mean cosine distance to the round before.")] = 0.01,
    split: Annotated[str, typer.Option(help="cold-start, leave-one-out, or given by the data.")] = "cold-start",
    keep: Annotated[Optional[str], typer.Option(help="first:N or last:N interactions per user.")] = None,
    cuts: Annotated[str, typer.Option(help="Lengths of history at which users get a profile.")] = "1,3,10",
    seed: Annotated[int, typer.Option(min=0, help="Of the writer, and of drawn users.")] = 22,
    limit_users: Annotated[Optional[int], typer.Option(help="So many users only, drawn, and their items.")] = None,
    encoder: Annotated[Optional[str], typer.Option(
        help="What embeds the profiles, as in a run's --set encoder=; without, the one that item texts have.")] = None,
    model: Annotated[Optional[str], typer.Option(help="server: its model; without, the only one it lists.")] = None,
    temperature: Annotated[Optional[float], typer.Option(help="local, server: of sampling; 0 is greedy.")] = None,
    max_tokens: Annotated[Optional[int], typer.Option(help="local, server: longest answer.")] = None,
    context: Annotated[Optional[int], typer.Option(help="server: tokens of a prompt that fit.")] = None,
    concurrency: Annotated[Optional[int], typer.Option(help="server: requests at a time.")] = None,
    price_in: Annotated[Optional[float], typer.Option(help="server: per million prompt tokens.")] = None,
    price_out: Annotated[Optional[float], typer.Option(help="server: per million written tokens.")] = None,
    as_json: AsJson = False,
) -> None:
    """Profiles of users and items that refine each other (PtE, stage one); says first how many it will write.

    nullrec profiles build --data shop-tiny --out profiles/tiny
    nullrec profiles build --data shop --writer local:models/shop --rounds 2 --out profiles/shop-local

    Every text is stored the moment it exists. Status 1: the writer could not go on; the same command does.
    """
    from dataclasses import asdict

    from nullrec_lib.profiles.build import build

    settings = dict(encoder=encoder, model=model, temperature=temperature, max_tokens=max_tokens, context=context,
                    concurrency=concurrency, price_in=price_in, price_out=price_out)
    built = build(out, data, split, keep, writer, mode, rounds, _lengths(cuts), epsilon, limit_users, seed=seed,
                  say=functools.partial(typer.echo, err=True),
                  **{name: value for name, value in settings.items() if value is not None})
    if as_json:
        told = asdict(built) | {"out": str(out)}
        del told["neighbour_overlap"]  # thousands of numbers; they are in build.json
        print(json.dumps(told, ensure_ascii=False))
        return
    print(f"{'side':>5} {'round':>5} {'profiles':>9} {'written':>8} {'fallback':>8} {'seconds':>8} {'distance':>9} "
          f"{'alike':>6}")
    for done in built.rounds:
        moved, alike = ("" if value is None else f"{value:.4f}" for value in (done.distance, done.homogenisation))
        print(f"{done.side:>5} {done.round:>5} {done.profiles:>9,} {done.written:>8,} {done.fallbacks:>8,} "
              f"{done.seconds:>8.1f} {moved:>9} {alike:>6}")
    for side, rate in built.rates.items():
        if rate is not None:
            print(f"{side}: distances times {rate.rate:.2f} per round (95% interval {rate.low:.2f} to {rate.high:.2f})")
    print(f"{'converged' if built.converged else 'not converged'}; profiles in {out}")


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"cuts: {text!r} is not a list of numbers such as 1,3,10.") from None


@app.command()
@speaks
def show(
    subject: Annotated[str, typer.Argument(help="A user's or an item's id, as the data have it.")],
    out: Annotated[Path, typer.Option(help="Folder of the profiles.")],
) -> None:
    """One user's or item's profile, round by round, with the words that went (-) and came (+)."""
    from nullrec_lib.profiles.store import Store, journey

    if not (found := list(Store(out).profiles(id=subject))):
        raise InputError(f"{out}: no user or item {subject!r} has a profile here.")
    print(journey(found))


@app.command()
@speaks
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of the profiles.")],
    format: Annotated[str, typer.Option(help="jsonl: one object per line.")] = "jsonl",
) -> None:
    """All stored profiles: kind, id, cut (null for a whole), round, text, writer, fallback."""
    from nullrec_lib.profiles.build import export as lines

    if format != "jsonl":
        raise InputError(f"format: {format!r} is not jsonl.")
    for line in lines(folder):
        print(line)


@app.command()
@speaks
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished builds.")],
    out: Annotated[Path, typer.Option(help="Where the tables are made; builds that lie there stay in them.")]
    = Path("reports/profiles"),
) -> None:
    """What builds did and know, side by side: rounds, costs, probes of a known truth, recommending without training."""
    from nullrec_lib.profiles.report import report as make

    print(f"tables in {make(folders, out)}")


@app.command()
@speaks
def gains(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished `nullrec grpo` trainings.")],
    out: Annotated[Path, typer.Option(help="Where the table is made; trainings that lie there stay in it.")]
    = Path("reports/grpo"),
) -> None:
    """What GRPO gained, training by training: rewards before and after with intervals, at equal length too."""
    from nullrec_lib.profiles.report import gains as make

    print(f"table in {make(folders, out)}")


@app.command()
@speaks
def best(
    profiles: Annotated[Path, typer.Argument(help="Folder of a finished build by a local writer.")],
    out: Annotated[Path, typer.Option(help="Folder for the embeddings, which `nullrec run --profiles` reads.")],
    model: Annotated[Optional[str], typer.Option(
        help="Who writes the candidates, e.g. grpo/shop/model; without, the build's writer: the variant without GRPO.")]
    = None,
    candidates: Annotated[int, typer.Option(help="K, of a subject.")] = 8,
    lambda_collab: Annotated[float, typer.Option(help="Weight of the collaborative reward (Eq. 10).")] = 1.0,
    lambda_dist: Annotated[float, typer.Option(help="Weight of distinctiveness (Eq. 11).")] = 0.5,
    max_tokens: Annotated[int, typer.Option(help="Of a candidate.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 22,
    as_json: AsJson = False,
) -> None:
    """The embedding of each subject's most rewarded candidate (Eq. 13), for items and for users at cuts."""
    from nullrec_lib.profiles.best import best as choose

    record = choose(profiles, out, model, candidates, lambda_collab, lambda_dist, max_tokens, seed)
    if as_json:
        print(json.dumps(record | {"out": str(out)}, ensure_ascii=False))
        return
    for kind in ("item", "cut"):
        if told := record.get(kind):
            print(f"{kind:>5}: {told['subjects']:,} subjects, reward {told['mean']['mean']:.4f} on average and "
                  f"{told['best']['mean']:.4f} at best, {told['fallbacks']:,} without a useful candidate")
    print(f"embeddings in {out}: nullrec run --method pte --profiles {out}")


@model_app.command("build")
@speaks
def build_model(
    out: Annotated[Path, typer.Option(help="Folder of the model, an ordinary one of `transformers`.")],
    data: Data = "shop",
    split: Annotated[str, typer.Option(help="cold-start, leave-one-out, or given by the data.")] = "cold-start",
    keep: Annotated[Optional[str], typer.Option(help="first:N or last:N interactions per user.")] = None,
    base: Annotated[Optional[str], typer.Option(
        help="A pretrained causal model to fine-tune, a folder or a name on the hub; without, a small one is trained "
        "from scratch.")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="With --base: train low-rank adapters, merged in the end.")] = False,
    steps: Annotated[Optional[int], typer.Option(help="Of pretraining, without a base.")] = None,
    sft_steps: Annotated[Optional[int], typer.Option(help="Of fine-tuning on profiles.")] = None,
    limit_users: Annotated[Optional[int], typer.Option(help="Learn from so many users only, drawn.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and drawn users.")] = 22,
    as_json: AsJson = False,
) -> None:
    """A language model that writes profiles: from scratch in minutes, or a pretrained one fine-tuned.

    nullrec model build --data shop --out models/shop
    nullrec model build --data shop --base PATH_OR_HUB_NAME --lora --out models/large

    It learns from the extractive writer's profiles of items and training users. Its held-out perplexity and some
    answers are printed, and stored in build.json. A build that was stopped goes on after its last whole stage.
    """
    from nullrec_lib.language import model
    from nullrec_lib.profiles.build import SMALL_CONTEXT, examples

    pairs, corpus = examples(data, split, keep, seed=seed, limit_users=limit_users)
    given = {"steps": steps, "sft_steps": sft_steps, "context": None if base else SMALL_CONTEXT}
    record = model.build(pairs, corpus, out, base, lora, seed,
                         **{name: value for name, value in given.items() if value is not None})
    if as_json:
        print(json.dumps(record | {"out": str(out)}, ensure_ascii=False))
        return
    before, after = (record["perplexity"][when] for when in ("before", "after"))
    print(f"{record['parameters']:,} parameters, {record['pairs']['train']:,} pairs; perplexity of "
          f"{record['pairs']['held_out']:,} held-out profiles {before:.2f} before fine-tuning, {after:.2f} after")
    for sample in record["samples"]:
        print(f"\n{sample['prompt'].strip()}\n  should be: {sample['profile']}\n  written:   {sample['written']}")
    print(f"\nmodel in {out}: --writer local:{out}")


grpo_app = typer.Typer()


@grpo_app.command()
@speaks
def grpo(
    profiles: Annotated[Path, typer.Option(help="Folder of a finished build by a local writer.")],
    out: Annotated[Path, typer.Option(help="Folder of the optimised writer; the same command there goes on.")],
    steps: Annotated[int, typer.Option(help="Of the policy.")] = 100,
    num_generations: Annotated[int, typer.Option(help="K, candidates of a group.")] = 8,
    prompts_per_step: Annotated[int, typer.Option(help="Groups of a step.")] = 4,
    advantage: Annotated[str, typer.Option(
        help="standard (GRPO's), or log_sigmoid (of Eq. 12, centred in the group).")] = "standard",
    lambda_collab: Annotated[float, typer.Option(help="Weight of the collaborative reward (Eq. 10).")] = 1.0,
    lambda_dist: Annotated[float, typer.Option(help="Weight of distinctiveness (Eq. 11).")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Of a candidate.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 5e-5,
    beta: Annotated[float, typer.Option(help="Weight of the divergence from the writer before.")] = 0.02,
    refresh: Annotated[int, typer.Option(help="Steps after which neighbours are where their best candidates are.")] = 25,
    base: Annotated[Optional[str], typer.Option(help="A model to start from instead of the build's writer.")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train low-rank adapters, merged in the end.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling, order and the held-out part.")] = 22,
    vllm_server: Annotated[Optional[str], typer.Option(
        help="Address of a `trl vllm-serve` that samples the candidates, e.g. http://localhost:8000.")] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Check all but the model itself, and say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """GRPO (PtE, stage two): the writer of a build learns to write profiles that are worth more.

    nullrec grpo --profiles profiles/shop-local --steps 100 --out grpo/shop

    accelerate launch --num_processes 4 -m nullrec_lib grpo --profiles profiles/shop-local --out grpo/shop

    What its candidates are worth is measured before and after, on subjects that it learned from and on others.
    """
    from nullrec_lib.profiles.grpo import Settings, plan, train

    settings = Settings(steps, num_generations, prompts_per_step, advantage, lambda_collab, lambda_dist, temperature,
                        max_tokens, lr, beta, refresh, lora, seed)
    if dry_run:
        told = plan(profiles, out, settings, base, vllm_server)
        print(json.dumps(told) if as_json else "\n".join(f"{name}: {value}" for name, value in told.items()))
        return
    record = train(profiles, out, settings, base, vllm_server)
    if int(os.environ.get("RANK", 0)):
        return  # the first of several processes speaks for all
    if as_json:
        print(json.dumps(record | {"out": str(out)}, ensure_ascii=False))
        return
    number = lambda value, form: "-" if value is None else format(value, form)
    print(f"{'':>14} {'before':>8} {'after':>8} {'gain':>8} {'95% interval':>20} {'equally long':>13} {'and useful':>11} "
          f"{'alike':>14} {'words':>9}")
    for which, before in record["start"].items():
        after, gained = record["end"][which], record["gain"][which]
        rise, equal, useful = (gained.get(name) for name in ("reward", "reward_at_equal_length", "reward_of_useful"))
        between = f"{number(rise['low'], '+.4f')} to {number(rise['high'], '+.4f')}"
        alike = f"{number(before['alike'], '.3f')} to {number(after['alike'], '.3f')}"
        print(f"{which:>14} {before['reward']['mean']:>8.4f} {after['reward']['mean']:>8.4f} {rise['mean']:>+8.4f} "
              f"{between:>20} {equal['mean']:>+13.4f} {number(useful and useful['mean'], '+.4f'):>11} {alike:>14} "
              f"{before['words']:>4.0f} {after['words']:>4.0f}")
    print(f"writer in {out}/model: --writer local:{out}/model")
