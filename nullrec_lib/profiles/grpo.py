"""GRPO on profiles (PtE, section 4.2): the writer learns to write what is worth more, for users and items alike.

TRL's GRPOTrainer samples K candidates per prompt, and the policy moves to those that are better than their group's
mean. Nothing here overrides the trainer: rewards are one function, and the printed objective's advantage is had by
rewarding log σ(R − R̄) and letting the trainer subtract the group's mean (`rewards.advantages`).

The loss that a trainer prints begins near 0 and says little: in every group the advantages sum to 0, and while the policy
is the one that sampled, each candidate's ratio is 1, so that all that is left is that longer candidates count more (the
trainer averages over tokens). What is learned shows in the reward.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch

from nullrec_lib import manifest
from nullrec_lib.errors import InputError
from nullrec_lib.files import agree, alone, read_json, read_tensors, sweep, write_json, write_tensors, writing
from nullrec_lib.language.encoders.folders import model_sha256
from nullrec_lib.language.tuning import save
from nullrec_lib.language.writers.local import Local, encode_prompt, find, load_model, load_tokenizer, require_end
from nullrec_lib.profiles.build import read_asked
from nullrec_lib.profiles.convergence import mean_cosine
from nullrec_lib.profiles.judging import Parts, candidates, gain, judge, part
from nullrec_lib.profiles.prompts import answered, degenerate
from nullrec_lib.profiles.rewards import Reward, advantages, check_weights
from nullrec_lib.profiles.sides import Side, open_build, sides
from nullrec_lib.progress import bar

ASKED, RECORD, HISTORY, MODEL, CURRENT = "asked.json", "grpo.json", "history.json", "model", "current.safetensors"
CHECKPOINTS, UNFINISHED = "checkpoints", f".{MODEL}"
SHOWN = 3
"""Judged subjects whose profiles before and after are kept in the record."""


@dataclass(frozen=True)
class Settings:
    """What decides a result, with the number of processes; `lr` and `beta` (of the KL term to the writer before) as in
    TRL. All K candidates of a group answer one prompt at one temperature, since what they are compared in must be theirs."""

    steps: int = 100
    num_generations: int = 8
    prompts_per_step: int = 4
    advantage: str = "standard"
    lambda_collab: float = 1.0
    lambda_dist: float = 0.5
    temperature: float = 1.0
    max_tokens: int = 64
    lr: float = 5e-5
    beta: float = 0.02
    refresh: int = 25
    """Steps after which neighbours' embeddings are brought up to date: each subject that came up since has that of the
    best candidate of its latest group."""
    lora: bool = False
    seed: int = 22

    def __post_init__(self):
        for name in ("steps", "num_generations", "prompts_per_step", "max_tokens", "refresh"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is below 1.")
        if self.num_generations < 2:
            raise InputError("num_generations: a group of one has nothing to be compared with; give 2 or more.")
        for name in ("temperature", "lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name}: {getattr(self, name)} is not a positive, finite number.")
        if not 0 <= self.beta < float("inf"):
            raise InputError(f"beta: {self.beta} is not a finite number of at least 0.")
        advantages(np.zeros((1, 2)), self.advantage)
        check_weights(self.lambda_collab, self.lambda_dist)


def train(profiles: Path, out: Path, settings: Settings = Settings(), base: str | None = None,
          vllm_server: str | None = None) -> dict[str, Any]:
    """Optimise the local writer of a finished build of profiles; the folder `out` gets `model` and the record.

    Each side's subjects are parted: the policy sees the prompts of one part, and what it gained is measured on both,
    before and after beside the neighbours' profiles as they were built. A training that was stopped goes on from its last
    checkpoint; a finished one is read.

    Args:
        profiles: folder of a build with a local writer; its last round's prompts are the prompts.
        out: folder to make.
        base: the model to start from; None: the build's writer.
        vllm_server: address of a `trl vllm-serve` that samples the candidates while the policy learns.

    Under `accelerate launch` every process calls this; all of them learn, and the first one measures and writes.

    Returns: the record: `settings`, `start` and `end` (see `judge`), `gain` by side and part, `history` (what the
        trainer logged, by step), `samples`, `seconds`.

    Raises:
        InputError: no such build, a writer that is not local, settings out of range, a side with fewer than two prompts,
            `out` holds something else, is damaged or cannot be written, the model has no end token, or vLLM is asked for
            and not installed.
    """
    out = Path(out)
    source, made_by = _asked(profiles, settings, base)
    if (record := _stored(out, made_by)) is not None:
        return record
    if vllm_server and find_spec("vllm") is None:
        raise InputError("vllm_server: the package vllm, which speaks to the server, is not installed; `pip install vllm`.")
    made = _sides(profiles, settings, source)
    parts = {kind: part(side, settings.seed) for kind, side in made.items()}
    if int(os.environ.get("RANK", 0)):
        _train(source, out, made, parts, settings, vllm_server)
        return made_by
    with alone(out):
        if (record := _stored(out, made_by)) is not None:
            return record
        write_json(out / ASKED, made_by)
        begun = time.perf_counter()
        built = {kind: side.reward.current.copy() for kind, side in made.items()}
        history = _train(source, out, made, parts, settings, vllm_server)
        for kind, side in made.items():
            side.reward.refresh(built[kind])  # learning has moved the neighbours; whoever goes on here must judge alike
        before, after = (
            candidates(Local(str(model), settings.temperature, max_tokens=settings.max_tokens, no_repeat=0),
                       settings.num_generations, settings.seed, made, parts) for model in (source, out / MODEL))
        record = made_by | {
            "start": judge(made, parts, before), "end": judge(made, parts, after),
            "gain": gain(made, parts, before, after), "history": history,
            "samples": [{"kind": kind, "id": made[kind].ids[place], "before": before[kind, "held_out"][0][n],
                         "after": after[kind, "held_out"][0][n]}
                        for kind in made for n, place in enumerate(parts[kind]["held_out"][:SHOWN])],
            "seconds": time.perf_counter() - begun,
        }
        write_json(out / RECORD, record)
        sweep(out, CHECKPOINTS)
        return record


def plan(profiles: Path, out: Path, settings: Settings = Settings(), base: str | None = None,
         vllm_server: str | None = None) -> dict[str, Any]:
    """What `train` would do, checked but not begun: the trainer's configuration is made, no model is loaded.

    Returns: `model`, `processes`, `generation` (of candidates: by whom, and whether this place can speak to it),
        `subjects` by side and part, `completions` in all, and of the configuration what decides the size of a step.

    Raises:
        InputError: see `train`; but that vLLM is missing here is told and no error.
    """
    source, made_by = _asked(profiles, settings, base)
    _stored(Path(out), made_by)
    made = _sides(profiles, settings, source)
    asked = config(out, settings, **_vllm(vllm_server))
    sizes = {f"{kind} {which}": len(places) for kind, side in made.items()
             for which, places in part(side, settings.seed).items()}
    return {"model": str(source), "processes": asked.world_size,
            "generation": f"vLLM at {vllm_server}" if vllm_server else "in each process",
            **({"vllm installed": find_spec("vllm") is not None} if vllm_server else {}), "subjects": sizes,
            "steps": asked.max_steps, "completions_per_step": asked.generation_batch_size,
            "completions": asked.max_steps * asked.generation_batch_size, "num_generations": asked.num_generations,
            "scale_rewards": asked.scale_rewards, "beta": asked.beta, "bf16": asked.bf16}


def _asked(profiles: Path, settings: Settings, base: str | None) -> tuple[Path, dict[str, Any]]:
    """The model to start from, and what names the result; known before anything is embedded."""
    loop, _ = open_build(profiles)
    if base is None and not loop.writer.name.startswith("local:"):
        raise InputError(f"{profiles}: was written by {loop.writer.name}, which has no weights to learn; name a model.")
    source = find(base or loop.writer.name.partition(":")[2])
    require_end(load_tokenizer(source), source)
    return source, {
        "settings": asdict(settings), "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "model_sha256": model_sha256(source),
        "profiles": read_asked(profiles)}


def _sides(profiles: Path, settings: Settings, source: Path) -> dict[str, Side]:
    """Sides to learn from: of two prompts or more, all of which leave the model room to answer."""
    _, made = sides(profiles, settings.lambda_collab, settings.lambda_dist)
    for kind, side in made.items():
        if kind != "cut" and len(set(side.prompts)) < 2:
            raise InputError(f"{profiles}: all its {kind} profiles answer one prompt, and one part of the prompts is learned "
                             "from while the other is held out; build profiles of more.")
    writer = Local(str(source), max_tokens=settings.max_tokens)
    longest = max(len(encode_prompt(writer.tokenizer, prompt)) for side in made.values() for prompt in side.prompts)
    if writer.room is not None and longest > writer.room:
        raise InputError(f"max_tokens: {settings.max_tokens} leave {writer.room:,} of the model's positions, and the longest "
                         f"prompt of {profiles} has {longest:,}; give at most {settings.max_tokens + writer.room - longest:,}.")
    return {kind: side for kind, side in made.items() if kind != "cut"}


def _stored(out: Path, made_by: dict[str, Any]) -> dict[str, Any] | None:
    """The record of this training, where it has finished.

    Raises:
        InputError: `out` holds another one, finished or stopped, or what it holds is damaged.
    """
    for name, what in ((RECORD, "another training"), (ASKED, "another training, which was stopped")):
        if (out / name).exists():
            found = {"processes": 1} | read_json(out / name, ["settings", "profiles"])
            agree(out, what, {key: found.get(key) for key in made_by}, made_by)
            if name == RECORD:
                sweep(out, CHECKPOINTS, UNFINISHED)
                return found
    if not (out / ASKED).exists() and (there := [name for name in (MODEL, CHECKPOINTS) if (out / name).exists()]):
        raise InputError(f"{out / ASKED}: is missing, so nobody knows what the {there[0]} beside it was trained for; remove "
                         f"{out}, and the same command trains again.")
    return None


def _vllm(server: str | None) -> dict[str, Any]:
    return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server} if server else {}


class Rewarder:
    """The reward function that TRL calls: one number per candidate, groups of K in a row."""

    __name__ = "profile_reward"  # what the trainer calls it in its logs

    def __init__(self, rewards: dict[str, Reward], settings: Settings):
        self.rewards, self.settings = rewards, settings
        self.pending = {kind: reward.current.copy() for kind, reward in rewards.items()}
        self.seen: dict[tuple[str, int], np.ndarray] = {}
        """Best candidates that this process has met since it last told the others."""
        self.refreshed = 0

    def share(self) -> None:
        """Make `pending` the same in all processes: each has scored candidates of its own. All must call it."""
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            told: list = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(told, self.seen)
            self.seen = {subject: row for one in told for subject, row in one.items()}
        for (kind, place), row in self.seen.items():
            self.pending[kind][place] = row
        self.seen = {}

    def __call__(self, completions: Sequence, kind: Sequence[str], place: Sequence[int], trainer_state=None,
                 log_metric=None, **_: Any) -> list[float]:
        """
        Args:
            completions: one message list per candidate, or its text where the model has no chat template.
            kind, place: columns of the data set: the side and the row of the subject.
        """
        K = self.settings.num_generations
        if trainer_state is not None and trainer_state.global_step - self.refreshed >= self.settings.refresh:
            self.refreshed = trainer_state.global_step
            self.share()
            for name, reward in self.rewards.items():
                reward.refresh(self.pending[name])
        texts = [answered(one if isinstance(one, str) else one[0]["content"]) for one in completions]
        total = np.zeros(len(texts))
        for name, reward in self.rewards.items():
            some = np.array([at for at, one in enumerate(kind) if one == name], np.int64)
            if not len(some):
                continue
            mine = [texts[at] for at in some]
            terms = reward(mine, [place[at] for at in some])
            total[some] = terms.total
            for group in some.reshape(-1, K):
                best = group[total[group].argmax()]
                if not degenerate(texts[best]):  # or a neighbour who falls silent would be worth something
                    self.seen[name, place[best]] = terms.rows[np.searchsorted(some, best)]
            if log_metric is not None:
                for term, worth in (("collab", terms.collab), ("dist", terms.dist), ("reward", terms.total)):
                    log_metric(f"{name}/{term}", float(worth.mean()))
                    log_metric(f"{name}/{term} std", float(worth.std()))
                if len(some) > K:  # two subjects or more: of each the k-th candidate
                    groups = terms.rows.reshape(-1, K, terms.rows.shape[1])
                    log_metric(f"{name}/alike", float(np.mean([mean_cosine(groups[:, k]) for k in range(K)])))
        if self.settings.advantage == "standard":
            return total.tolist()
        groups = total.reshape(-1, K)
        return advantages(groups, self.settings.advantage).reshape(-1).tolist()  # whose group means are 0


def config(out: Path, settings: Settings, **more: Any):
    """TRL's configuration. Generation by vLLM and several GPUs are the trainer's own options: `more` hands them on."""
    from trl import GRPOConfig

    cuda = torch.cuda.is_available()
    return GRPOConfig(**dict(
        output_dir=str(Path(out) / CHECKPOINTS), seed=settings.seed, max_steps=settings.steps,
        per_device_train_batch_size=settings.num_generations * settings.prompts_per_step,
        num_generations=settings.num_generations, max_completion_length=settings.max_tokens,
        temperature=settings.temperature, learning_rate=settings.lr, lr_scheduler_type="constant", beta=settings.beta,
        shuffle_dataset=False,  # see `turns`
        scale_rewards="group" if settings.advantage == "standard" else "none",
        use_cpu=not cuda, bf16=cuda, fp16=False, activation_checkpointing=False, dataloader_pin_memory=cuda,
        report_to="none", disable_tqdm=True, logging_steps=1, save_strategy="steps",
        save_steps=max(1, settings.refresh), save_total_limit=2,
    ) | more)


def turns(parts: dict[str, Parts], n: int, seed: int) -> list[tuple[str, int]]:
    """n times whose turn it is, as side and place: sides by turns, each one's training subjects in rounds of a new order
    each, so that the smaller side comes round more often.

    The whole training is told at once: a trainer that shuffles anew in every epoch would not go on where it was stopped.
    """
    drawn = np.random.default_rng(seed)
    rounds = {kind: np.concatenate([drawn.permutation(part["train"]) for _ in range(-(-n // len(part["train"])))])
              for kind, part in parts.items()}
    kinds = list(parts)
    return [(kinds[at % len(kinds)], int(rounds[kinds[at % len(kinds)]][at // len(kinds)])) for at in range(n)]


def _train(source: Path, out: Path, made: dict[str, Side], parts: dict[str, Parts], settings: Settings,
           vllm_server: str | None) -> list[dict]:
    """Train the policy, save it as `out`/model, and give what was logged, one entry per step."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
    from trl import GRPOTrainer

    if (out / MODEL).exists():
        again = f"remove {out / MODEL}, and the same command trains again"
        manifest.check(out / MODEL, again)
        return read_json(out / HISTORY, again=again)
    asked = config(out, settings, **_vllm(vllm_server))
    tokenizer = load_tokenizer(source)
    said = lambda text: text if tokenizer.chat_template is None else [{"role": "user", "content": text}]
    rows = [{"prompt": said(made[kind].prompts[place]), "kind": kind, "place": place} for kind, place in turns(
        parts, settings.steps * settings.prompts_per_step * asked.world_size, settings.seed)]
    rewarder = Rewarder({kind: side.reward for kind, side in made.items()}, settings)

    class Keeper(TrainerCallback):
        """Shows progress, and keeps what rewards have come to know beside the weights."""

        def on_step_end(self, args, state, control, **_):
            progress.update(state.global_step - progress.n)

        def on_save(self, args, state, control, **_):
            rewarder.share()
            if not state.is_world_process_zero:
                return
            tensors = {f"{when} {kind}": torch.from_numpy(rows) for kind, reward in rewarder.rewards.items()
                       for when, rows in (("now", reward.current), ("next", rewarder.pending[kind]))}
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_tensors(folder / CURRENT, tensors | {"refreshed": torch.tensor(rewarder.refreshed)})
            manifest.sign(folder)

    cuda = torch.cuda.is_available()
    adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings(), writing(out), bar(what="GRPO", total=settings.steps, unit="step") as progress:
        warnings.simplefilter("ignore")  # of the libraries at one another
        trainer = GRPOTrainer(
            load_model(source, torch.bfloat16 if cuda and settings.lora else torch.float32), rewarder,
            asked, Dataset.from_list(rows), processing_class=tokenizer,
            callbacks=[Keeper()], peft_config=adapters if settings.lora else None,
        )
        trainer.remove_callback(PrinterCallback)
        (out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        if trainer.accelerator.is_main_process:
            while (last := get_last_checkpoint(str(out / CHECKPOINTS))) and not manifest.signed(Path(last)):
                shutil.rmtree(last)  # killed while it was being written, or damaged: the one before is as good
        trainer.accelerator.wait_for_everyone()
        last = get_last_checkpoint(str(out / CHECKPOINTS))
        if last is not None:
            kept, _ = read_tensors(Path(last) / CURRENT)
            for kind, reward in rewarder.rewards.items():
                reward.refresh(kept[f"now {kind}"].numpy())
                rewarder.pending[kind] = kept[f"next {kind}"].numpy()
            rewarder.refreshed = int(kept["refreshed"])
        trainer.train(resume_from_checkpoint=last)
    history = [{name: value for name, value in entry.items() if isinstance(value, (int, float))}
               for entry in trainer.state.log_history if "reward" in entry]
    if not trainer.accelerator.is_main_process:
        return history
    model = trainer.accelerator.unwrap_model(trainer.model)
    unfinished = out / UNFINISHED
    with writing(out):
        sweep(out, UNFINISHED)
        save(model.merge_and_unload() if settings.lora else model, tokenizer, unfinished)
        manifest.sign(unfinished)
    write_json(out / HISTORY, history)  # not with the weights: it holds times, and the weights' hash names the policy
    unfinished.replace(out / MODEL)
    return history
