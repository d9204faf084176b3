"""Makes a reference pack: what published weights say of some questions, recorded once.

Paths are generated in batches and kept as they come, so that a kill loses one batch and the same
command goes on; with all of them there, the pack is the same bytes whatever came between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from verifier.checks.template.panel_design import design_panel
from verifier.errors import ConfigError
from verifier.evidence.calibration import Calibration
from verifier.files.run_folder import append_lines, make_folder, read_json, read_lines, write_json
from verifier.lab.forecast import generating_s, gpus_of, scoring_s
from verifier.probes import Pool, draw
from verifier.progress import Show
from verifier.records import REFERENCE, GenerateRequest, Generation, Probe, ScoreRequest
from verifier.reference.cards import Card, Thinking
from verifier.reference.engines import TOP_K, Engine
from verifier.reference.machine import Speed
from verifier.reference.pack_file import NONE, PACK_SCHEMA, STEPS, TOP, Numbers, Thoughts
from verifier.reference.reader import Reader
from verifier.reference.renderings.catalogue import Rendering, render_probe
from verifier.scoring.readings import published_ids
from verifier.scoring.reasoning import spelling_of

#: A second token at most so many nats behind the first branches, and tokens of a branch, the one
#: that leaves included. Measured on the embedded model: see `reference/packs/README.md`.
BRANCH_MARGIN: Final = 0.15
BRANCH_TOKENS: Final = 16

#: Questions that tell renderings apart, of at least so many in all for each of them, and tokens of
#: a path under another rendering: renderings that differ, differ early.
PANEL: Final = 12
_FOR_EACH: Final = 8
PANEL_TOKENS: Final = 16

#: Places whose two likeliest tokens are at most so many nats apart: only there builds differ.
CLOSE: Final = 1.5

#: Replies that are generated, or scored, together.
BATCH: Final = 32

#: Steps and branches that a question has on average, for what is told beforehand.
_BRANCHES: Final = 4.0
_DISTINCT: Final = 0.75  # of the renderings, on one question of the panel

#: Paths of thoughts, or of answers with thinking turned off.
Mode = Literal["shown", "off"]

#: Settings of the template, by name.
Settings = tuple[tuple[str, bool | str], ...]

_RECIPE: Final = "recipe.json"
_PATHS: Final = "paths.jsonl"
_BUILDS: Final = "builds.jsonl"
_COUNTS: Final = "counts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a pack is to hold."""

    questions: int
    seed: int
    max_tokens: int
    builds: tuple[str, ...]
    thinking: Mode | None = None  # how a model that thinks is asked; None: it does not think
    panel: int = PANEL
    panel_tokens: int = PANEL_TOKENS
    branch_margin: float = BRANCH_MARGIN
    branch_tokens: int = BRANCH_TOKENS


def make_recipe(
    questions: int, *, seed: int, max_tokens: int, builds: Sequence[str],
    thinking: Mode | None = None,
) -> Recipe:  # fmt: skip
    """A recipe for so many questions; few of them leave room for a small panel alone."""
    panel = min(PANEL, questions // _FOR_EACH)
    return Recipe(
        questions=questions, seed=seed, max_tokens=max_tokens, builds=tuple(builds),
        thinking=thinking, panel=panel,
    )  # fmt: skip


def mode_of(card: Card, *, think: bool | None) -> Mode | None:
    """How a model that thinks is asked: as it is published, or with thinking turned off.

    Raises ConfigError where its card does not say how that is done.
    """
    if card.thinking is None:
        if think is not None:
            raise ConfigError(
                f"card {card.name}: says nothing of thoughts; leave out --think and --no-think"
            )
        return None
    if think is not False:
        return "shown"
    if not card.thinking.switch_off:
        raise ConfigError(
            f"card {card.name}: knows no setting that turns thinking off; leave out --no-think"
        )
    return "off"


def settings_of(mode: Mode | None, card: Card) -> Settings:
    """The settings of the template that a pack's questions carry."""
    if mode != "off" or card.thinking is None:
        return ()
    return tuple(card.thinking.switch_off.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What making a pack will take."""

    tokens: int  # to generate
    scored: int  # tokens to score under builds
    minutes: float | None  # None: the card lacks what they are estimated from
    megabytes: float


def foresee(
    recipe: Recipe, card: Card, *, speed: Speed, engine: str, renderings: int,
    engine_args: Mapping[str, Any] | None = None,
) -> Forecast:  # fmt: skip
    """Foresee the making of a pack. Loads nothing, writes nothing."""
    gpus = gpus_of(engine_args or {}, speed)
    branched = recipe.questions * _BRANCHES * min(recipe.branch_tokens, recipe.max_tokens / 2)
    other = recipe.panel * renderings * _DISTINCT * recipe.panel_tokens
    tokens = round(recipe.questions * recipe.max_tokens + branched + other)
    scored = len(recipe.builds) * recipe.questions * (recipe.max_tokens + _PROMPT)
    generating = generating_s(card, speed, engine=engine, tokens=tokens, batch=BATCH, gpus=gpus)
    scoring = scoring_s(card, speed, engine=engine, tokens=scored, builds=recipe.builds, gpus=gpus)
    return Forecast(
        tokens=tokens,
        scored=scored,
        minutes=None if generating is None or scoring is None else (generating + scoring) / 60,
        megabytes=tokens * _PLACE_BYTES / 1e6,
    )


#: Tokens of a prompt, and bytes that a place takes, on average.
_PROMPT: Final = 64
_PLACE_BYTES: Final = 90


# -- what is generated -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One path that is said, or to be, or a branch of one."""

    question: int
    rendering: int
    prompt: tuple[int, ...]  # with what was said up to the branch
    tokens: int  # at most
    parent: int = -1  # of all paths
    at: int = 0
    token: int = 0  # that leaves

    @property
    def key(self) -> str:
        """What it is kept under."""
        ids = ",".join(map(str, self.prompt))
        return sha256(f"{self.tokens}:{ids}".encode()).hexdigest()


def generate_paths(
    questions: Sequence[Probe],
    entries: Mapping[str, Rendering],
    recipe: Recipe,
    *,
    thoughts: Thoughts | None = None,
    tags: Thinking | None = None,
    engine: Callable[[], Engine],
    tokenizer: Reader,
    work: Path,
    show: Show,
) -> tuple[list[Said], list[Generation]]:
    """Every path of a pack in its order, each branch behind the path that it leaves."""
    close_id = None if thoughts is None else thoughts.close_id
    opened = tags if close_id is not None else None
    paths = _first_paths(questions, entries, recipe, tokenizer, opened=opened)
    whole = _generate(paths, engine=engine, work=work, what="paths", show=show)
    made = [_up_to(close_id, one) for one in whole]
    ends = {tokenizer.eos_id, close_id}
    branches = [
        branch
        for number, (path, said) in enumerate(zip(paths, made, strict=True))
        if path.rendering == 0
        for branch in _branches(number, path, said, recipe, ends=ends)
    ]
    told = _generate(branches, engine=engine, work=work, what="branches", show=show)
    return [*paths, *branches], [*made, *(_up_to(close_id, one) for one in told)]


def _up_to(close_id: int | None, said: Generation) -> Generation:
    """What was said up to the end of the thought; as it is where that does not come."""
    if close_id is None or close_id not in said.token_ids:
        return said
    end = said.token_ids.index(close_id) + 1
    return replace(said, token_ids=said.token_ids[:end], top=said.top[:end])


def _first_paths(
    questions: Sequence[Probe],
    entries: Mapping[str, Rendering],
    recipe: Recipe,
    tokenizer: Reader,
    *,
    opened: Thinking | None,
) -> list[Said]:
    """The greedy paths: of every question as published, and of the panel under each rendering whose
    prompt differs. What replies do past their end is none of a prompt's. Where thoughts are
    `opened`, paths begin inside them, whoever writes the tag."""

    def root(ids: tuple[int, ...]) -> tuple[int, ...]:
        if opened is None or tokenizer.decode_prompt(ids).rstrip().endswith(opened.open):
            return ids
        return (*ids, *tokenizer.encode_prompt(opened.open))

    found = [
        Said(
            question=number, rendering=0, prompt=root(published_ids(probe, tokenizer)),
            tokens=recipe.max_tokens,
        )
        for number, probe in enumerate(questions)
    ]  # fmt: skip
    for number in range(len(questions) - recipe.panel, len(questions)):
        for at, entry in enumerate(entries.values()):
            made = None if entry.past_end else render_probe(entry, questions[number], tokenizer)
            if made is not None and root(made.ids) != found[number].prompt:
                tokens = min(recipe.panel_tokens, recipe.max_tokens)
                prompt = root(made.ids)
                found.append(Said(question=number, rendering=at, prompt=prompt, tokens=tokens))
    return found


def _branches(
    number: int, path: Said, said: Generation, recipe: Recipe, *, ends: Set[int | None]
) -> list[Said]:
    """A branch at each place of a path whose second token is nearly as likely as the first."""
    found = []
    for at, top in enumerate(said.top):
        (first, best), (second, next_best) = _ranked(top)[:2]
        left = min(recipe.branch_tokens - 1, path.tokens - at - 1)
        if first != said.token_ids[at] or best - next_best > recipe.branch_margin:
            continue
        if second not in ends and left > 0:
            prompt = (*path.prompt, *said.token_ids[:at], second)
            found.append(
                replace(path, prompt=prompt, tokens=left, parent=number, at=at, token=second)
            )
    return found


def _ranked(top: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted(top, key=lambda one: (-one[1], one[0]))


def _generate(
    paths: Sequence[Said], *, engine: Callable[[], Engine], work: Path, what: str, show: Show
) -> list[Generation]:
    """What the weights say along each path, from the work folder where it was said before."""
    file = work / _PATHS
    known = {line["key"]: _read(line) for line in read_lines(file)}
    left = {path.key: path for path in paths if path.key not in known}
    # replies of one length and prompts of one length waste least on padding
    waiting = sorted(left.values(), key=lambda path: (path.tokens, len(path.prompt)))
    for start in range(0, len(waiting), BATCH):
        some = waiting[start : start + BATCH]
        said = engine().generate(
            [
                GenerateRequest(prompt_ids=p.prompt, max_tokens=p.tokens, top_logprobs=TOP_K)
                for p in some
            ]
        )
        lines = [_line(path.key, one) for path, one in zip(some, said, strict=True)]
        append_lines(file, lines)
        known |= {line["key"]: _read(line) for line in lines}
        show.step(what, start + len(some), len(waiting))
    return [known[path.key] for path in paths]


def _line(key: str, said: Generation) -> dict[str, Any]:
    tops = [_ranked(top) for top in said.top]
    return {
        "key": key,
        "ids": said.token_ids,
        "stopped": said.finish_reason == "stop",
        "top": [[token for token, _ in top] for top in tops],
        "logprobs": [[round(value, 6) for _, value in top] for top in tops],
    }


def _read(line: Mapping[str, Any]) -> Generation:
    return Generation(
        token_ids=tuple(line["ids"]),
        finish_reason="stop" if line["stopped"] else "length",
        logprobs=(),
        top=tuple(
            tuple(zip(ids, values, strict=True))
            for ids, values in zip(line["top"], line["logprobs"], strict=True)
        ),
    )


# -- what builds say ---------------------------------------------------------------------------


def score_builds(
    paths: Sequence[Said],
    made: Sequence[Generation],
    recipe: Recipe,
    *,
    engine: Callable[[], Engine],
    work: Path,
    show: Show,
) -> tuple[list[tuple[int, int]], Numbers]:
    """What each build says of the two likeliest tokens at close places of the published paths: the
    places, as path and how far along it, and log-probabilities [Q, B, 2]."""
    file = work / _BUILDS
    own = [number for number, path in enumerate(paths) if path.rendering == 0 and path.parent < 0]
    known = {(line["build"], line["key"]): line["logprobs"] for line in read_lines(file)}
    for build in recipe.builds:
        left = [n for n in own if (build, paths[n].key) not in known]
        if left:
            engine().load_variant(build)
        for start in range(0, len(left), BATCH):
            some = left[start : start + BATCH]
            scores = engine().score([_request(paths[n], made[n]) for n in some])
            lines = [
                {
                    "build": build, "key": paths[n].key,
                    "logprobs": [
                        [round(v, 5) for v in two] for two in one.candidate_logprobs or ()
                    ],
                }
                for n, one in zip(some, scores, strict=True)
            ]  # fmt: skip
            append_lines(file, lines)
            known |= {(line["build"], line["key"]): line["logprobs"] for line in lines}
            show.step(f"the build {build}", start + len(some), len(left))
    if recipe.builds and any(known):
        engine().load_variant(REFERENCE)
    places = [(n, at) for n in own for at, top in enumerate(made[n].top) if _is_close(top)]
    values = [
        [known[build, paths[n].key][at] for build in recipe.builds] for n, at in places
    ]  # fmt: skip
    return places, np.array(values, dtype=float).reshape(len(places), len(recipe.builds), 2)


def _request(path: Said, said: Generation) -> ScoreRequest:
    return ScoreRequest(
        prompt_ids=path.prompt,
        reply_ids=said.token_ids,
        candidates=tuple(tuple(token for token, _ in _ranked(top)[:2]) for top in said.top),
    )


def _is_close(top: Sequence[tuple[int, float]]) -> bool:
    (_, first), (_, second) = _ranked(top)[:2]
    return first - second <= CLOSE


# -- the pack ----------------------------------------------------------------------------------


def draw_questions(
    pool: Pool, entries: Mapping[str, Rendering], recipe: Recipe, tokenizer: Reader,
    settings: Settings = (),
) -> tuple[Probe, ...]:  # fmt: skip
    """The questions of a pack: ordinary ones, then those that tell renderings apart; all with these
    settings of the template."""
    ordinary = draw(
        pool, seed=recipe.seed, count=recipe.questions - recipe.panel, max_tokens=recipe.max_tokens
    )
    panel = () if not recipe.panel else design_panel(
        tokenizer, tuple(entries.values()), pool, seed=recipe.seed, size=recipe.panel,
        max_tokens=recipe.max_tokens,
    ).probes  # fmt: skip
    refuse_days(ordinary[0], tokenizer)
    if len(panel) < recipe.panel:
        raise ConfigError(
            f"pack: only {len(panel)} questions tell renderings of this template apart; this is a "
            "template that renders nothing in more than one way"
        )
    return tuple(replace(probe, settings=settings) for probe in (*ordinary, *panel))


def refuse_days(probe: Probe, tokenizer: Reader) -> None:
    """Raise ConfigError for a template that prints the day: hosts print theirs."""
    days = (replace(probe, today=day) for day in ("2024-01-01", "2031-12-31"))
    if len({published_ids(one, tokenizer) for one in days}) > 1:
        raise ConfigError(
            "pack: the template prints the day, so that what is recorded today holds for today "
            "alone; audit with the weights"
        )


def thoughts_of(
    mode: Mode | None, card: Card, question: Probe, tokenizer: Reader
) -> Thoughts | None:
    """How thoughts stand in the replies to a pack's questions; None: the model does not think.

    Raises ConfigError for a model whose replies cannot be read so.
    """
    tags = card.thinking
    if tags is None or mode is None:
        return None
    begins = spelling_of(tags, question, tokenizer).begins
    if mode == "off":
        if begins != "behind":
            raise ConfigError(
                f"card {card.name}: with thinking off its template closes no thought, and what the "
                "model writes of one is not known; leave out --no-think"
            )
        return Thoughts(mode="off", begins=begins)
    if begins == "behind":
        raise ConfigError(
            f"card {card.name}: its template closes the thought by itself; make it with --no-think"
        )
    closing = tokenizer.encode_prompt(tags.close)
    if len(closing) != 1:
        raise ConfigError(
            f"card {card.name}: {tags.close} is {len(closing)} tokens, so that a shown thought "
            "does not tell where it ended; audit with the weights"
        )
    return Thoughts(mode="shown", begins=begins, close_id=closing[0])


def make_pack(
    recipe: Recipe,
    card: Card,
    calibration: Calibration,
    pool: Pool,
    entries: Mapping[str, Rendering],
    *,
    engine: Callable[[], Engine],
    tokenizer: Reader,
    versions: Mapping[str, str],
    made_on: str,
    work: Path,
    show: Show,
) -> tuple[dict[str, Any], tuple[Probe, ...], dict[str, Numbers]]:
    """Manifest, questions and tensors of a pack; goes on where `work` was left.

    Raises ConfigError for a work folder of another pack.
    """
    _begin(work, recipe, card)
    settings = settings_of(recipe.thinking, card)
    questions = draw_questions(pool, entries, recipe, tokenizer, settings=settings)
    thoughts = thoughts_of(recipe.thinking, card, questions[0], tokenizer)
    counts = count_prompts(questions, entries, tokenizer, work=work, show=show)
    paths, made = generate_paths(
        questions, entries, recipe, thoughts=thoughts, tags=card.thinking, engine=engine,
        tokenizer=tokenizer, work=work, show=show,
    )  # fmt: skip
    _refuse_few(questions, paths, made)
    places, builds = score_builds(paths, made, recipe, engine=engine, work=work, show=show)
    tensors = lay_out(questions, paths, made, places, builds, counts, tokenizer)
    manifest = {
        "schema_version": PACK_SCHEMA,
        "source": "weights",
        "made_on": made_on,
        "card": card.model_dump(mode="json"),
        "calibration": calibration.model_dump(mode="json"),
        "engine": dict(engine().versions),
        "versions": dict(versions),
        "pool_sha256": pool.digest,
        "seed": recipe.seed,
        "questions": len(questions),
        "panel": recipe.panel,
        "max_tokens": recipe.max_tokens,
        "branch_margin": recipe.branch_margin,
        "branch_tokens": recipe.branch_tokens,
        "eos_id": tokenizer.eos_id,
        "renderings": list(entries),
        "builds": list(recipe.builds),
        **({} if thoughts is None else {"thinking": thoughts.model_dump(mode="json")}),
    }
    return manifest, questions, tensors


def _refuse_few(
    questions: Sequence[Probe], paths: Sequence[Said], made: Sequence[Generation]
) -> None:
    """Raise ConfigError where an engine names fewer tokens than a pack of weights has."""
    for path, said in zip(paths, made, strict=True):
        if not said.top or any(len(top) < TOP for top in said.top):
            raise ConfigError(
                f"pack: the engine names fewer than {TOP} tokens at a place of question "
                f"{questions[path.question].id}; take another --engine"
            )


def count_prompts(
    questions: Sequence[Probe],
    entries: Mapping[str, Rendering],
    tokenizer: Reader,
    *,
    work: Path,
    show: Show,
) -> Numbers:
    """Prompt tokens [N, R] of each question under each rendering; 0: it refuses.

    Kept in the work folder: of thousands of questions it takes a while.
    """
    path = work / _COUNTS
    kept = read_json(path) if path.exists() else {}
    if kept.get("renderings") != list(entries):
        rows = []
        for number, probe in enumerate(questions):
            made = [render_probe(entry, probe, tokenizer) for entry in entries.values()]
            rows.append([0 if one is None else len(one.ids) for one in made])
            show.step("prompts", number + 1, len(questions))
        kept = {"renderings": list(entries), "counts": rows}
        write_json(path, kept)
    return np.array(kept["counts"], dtype=np.uint32).reshape(len(questions), len(entries))


def _begin(work: Path, recipe: Recipe, card: Card) -> None:
    wanted = {"card_sha256": card.digest, **asdict(recipe)}
    del wanted["builds"]  # which may be asked of later
    begin_work(work, {name: value for name, value in wanted.items() if value is not None})


def begin_work(work: Path, wanted: Mapping[str, Any]) -> None:
    """Take up a work folder, or begin one. Raises ConfigError for one of another pack."""
    path = work / _RECIPE
    if path.exists():
        if read_json(path) != wanted:
            raise ConfigError(
                f"{work}: holds what was made for another pack; remove it, or give another --work"
            )
        return
    make_folder(work)
    write_json(path, wanted)


def lay_out(
    questions: Sequence[Probe],
    paths: Sequence[Said],
    made: Sequence[Generation],
    places: Sequence[tuple[int, int]],
    builds: Numbers,
    counts: Numbers,
    tokenizer: Reader,
) -> dict[str, Numbers]:
    """The tensors of a pack; where fewer tokens are named, NONE stands for the others."""
    named = sorted({token for said in made for top in said.top for token, _ in top})
    numbers = {token: number for number, token in enumerate(named)}
    spelled = [tokenizer.token_bytes(token) for token in named]
    tops = [
        _filled(_led_by(token, top)) for said in made
        for token, top in zip(said.token_ids, said.top, strict=True)
    ]  # fmt: skip
    starts = _starts([len(said.top) for said in made])
    values = np.array([[value for _, value in top] for top in tops])
    rest = np.log(np.clip(1 - np.exp(values).sum(axis=1), math.exp(-32), None))
    prompts = [path.prompt for path in paths[: len(questions)]]
    return {
        "token_ids": np.array(named, dtype=np.uint32),
        "token_starts": _starts([len(raw) for raw in spelled]),
        "token_bytes": np.frombuffer(b"".join(spelled), dtype=np.uint8),
        "prompt_starts": _starts([len(prompt) for prompt in prompts]),
        "prompt_ids": np.array([t for prompt in prompts for t in prompt], dtype=np.uint32),
        "counts": counts,
        "path_question": np.array([path.question for path in paths], dtype=np.uint32),
        "path_rendering": np.array([path.rendering for path in paths], dtype=np.uint16),
        "path_parent": np.array([path.parent for path in paths], dtype=np.int32),
        "path_at": np.array([path.at for path in paths], dtype=np.uint16),
        "path_token": np.array([numbers.get(path.token, 0) for path in paths], dtype=np.uint32),
        "path_starts": starts,
        "place_tokens": np.array(
            [[numbers[token] for token, _ in top] for top in tops],
            dtype=np.uint16 if len(named) < 2**16 else np.uint32,
        ),
        "place_logprobs": _steps(values),
        "place_rest": _steps(rest),
        "build_places": np.array([int(starts[n]) + at for n, at in places], dtype=np.uint32),
        "build_logprobs": _steps(builds),
    }


def _led_by(token: int, top: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The likeliest tokens, the one that the path goes on with first: of two that are exactly as
    likely it may be either."""
    return sorted(_ranked(top)[:TOP], key=lambda one: one[0] != token)


def _filled(top: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [*top, *((top[0][0], -math.inf) for _ in range(TOP - len(top)))]


def _starts(lengths: Sequence[int]) -> Numbers:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.uint32)


def _steps(logprobs: Numbers) -> Numbers:
    """Log-probabilities as they are stored: steps below 0."""
    return np.asarray(np.clip(np.rint(-logprobs * STEPS), 0, NONE), dtype=np.uint16)
