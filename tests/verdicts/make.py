"""Makes the run folders of the net anew: `PYTHONPATH=.:tests python tests/verdicts/make.py`.

No test runs this. A folder is added here, and those that are there are left alone: a change that is
not meant to change a verdict leaves every byte. Where a rule of the verdict itself is meant to
change, `make.py anew` decides the same folders and cases again, and the difference is read whole.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import simulated as s
from simulated import Made

from verifier.fleet.summary import summarise
from verifier.verdict.decide import decide_folder

FOLDERS = Path(__file__).parent / "folders"
FLEET = Path(__file__).parent / "fleet"
DIGESTS = Path(__file__).parent / "cases.json"

FOUR_BIT, OTHER = "4-bit-class rounding", "another model"
INT4, FP8 = "int4-sym-g64", "fp8-channel"
POLICY: dict[str, Any] = {
    "noise": [FOUR_BIT, OTHER], "builds": [INT4], "routed": {FOUR_BIT: 0.5},
}  # fmt: skip
ONLY_NOISE: dict[str, Any] = {"noise": [FOUR_BIT, OTHER], "builds": [], "routed": {}}
SAMPLERS = {
    "samplers": s.SAMPLERS, "honest_samplers": list(s.HONEST), "budget_sampled_tokens": 1500,
}  # fmt: skip
THINKING = {"open": "<think>", "close": "</think>", "switch_off": {"enable_thinking": False}}

#: Replies for a verdict: as few as may be, for small folders.
LEAST = 6

MAKERS: dict[str, Callable[[np.random.Generator], Made]] = {}


def folder(maker: Callable[[np.random.Generator], Made]) -> Callable[[np.random.Generator], Made]:
    """A function that makes the folder of its name."""
    MAKERS[maker.__name__.replace("_", "-")] = maker
    return maker


def rows(rng: np.random.Generator, count: int, **truth: Any) -> list[Any]:
    return [s.greedy(rng, f"p{n:02}", **truth) for n in range(count)]


def quiet(rng: np.random.Generator) -> list[Any]:
    """As few replies as exclude all noise."""
    return rows(rng, LEAST, scale=0.03, tokens=40)


# -- the weights -------------------------------------------------------------------------------


@folder
def honest(rng: np.random.Generator) -> Made:
    """All is excluded; numbers that are reported agree, and a control does too."""
    return Made(
        plan={"policy": POLICY, "top_logprobs": 5, "prices": {"prompt": 1.0, "completion": 2.0},
              "card_notes": ["nobody has checked the card"]},
        rows=rows(rng, 13, scale=0.05, other=[INT4], logprob_scale=0.05, tokens=30, left_out=1),
        files={"capabilities.json": s.capabilities(), "control.json": s.control("consistent")},
    )  # fmt: skip


@folder
def too_little(rng: np.random.Generator) -> Made:
    """A short reply decides nothing, and the deadline came."""
    return Made(
        plan={"policy": POLICY}, rows=rows(rng, 1, scale=0.05, other=[INT4], tokens=5),
        files={"deadline.json": {"deadline_s": 5400.0}},
    )  # fmt: skip


@folder
def nothing_scored(rng: np.random.Generator) -> Made:
    """Failures, refusals and empty answers."""
    return Made(
        plan={"policy": POLICY} | SAMPLERS,
        answers={
            **{f"p{n:02}": {"status": 422, "said": "not this"} for n in range(2)},
            **{f"p{n:02}": {"text": "", "finish": "stop", "prompt_tokens": 20, "tokens": 0}
               for n in range(2, 5)},
            "p05": {"status": 500, "said": "broken", "tries": 4},
            "p06": {"status": 503, "said": "not settled yet"},
            "p07": {"text": "", "finish": "content_filter"},
        },
        files={"deadline.json": {"deadline_s": 60.0}},
    )  # fmt: skip


@folder
def too_few_replies(rng: np.random.Generator) -> Made:
    """Each class is excluded, the replies are not as many as the plan asks for."""
    return Made(rows=rows(rng, LEAST - 1, scale=0.03, tokens=40))


@folder
def most_failed(rng: np.random.Generator) -> Made:
    """All is excluded by the few replies that came, and the budget has ended."""
    found = rows(rng, 10, scale=0.03, tokens=30)
    return Made(
        plan={"budget_completion_tokens": 320},
        rows=found,
        answers={
            **{f"q{n:02}": {"status": 422, "said": "not this"} for n in range(8)},
            **{f"q{n:02}": {"text": "", "tokens": 1} for n in range(8, 12)},
        },
    )


@folder
def budget_for_one_more(rng: np.random.Generator) -> Made:
    """What is left pays for just one more reply, so the budget has not ended."""
    return Made(plan={"budget_completion_tokens": 150}, rows=rows(rng, 5, scale=0.03))


@folder
def half_failed(rng: np.random.Generator) -> Made:
    """As many failed as were answered: that is not most of them, and the verdict stands."""
    failed = {f"q{n:02}": {"status": 422, "said": "not this"} for n in range(LEAST - 1)}
    return Made(rows=quiet(rng), answers=failed | {"q09": {"text": "", "finish": "stop"}})


@folder
def within_the_floor(rng: np.random.Generator) -> Made:
    """A class and a share that cannot be told from honest serving do not block."""
    policy = {
        "noise": ["int8-class rounding", FOUR_BIT], "builds": [],
        "routed": {"int8-class rounding": 0.5},
    }  # fmt: skip
    return Made(plan={"policy": policy}, rows=quiet(rng))


@folder
def all_within_the_floor(rng: np.random.Generator) -> Made:
    """What did not run is not passed."""
    policy = {"noise": ["int8-class rounding"], "builds": [], "routed": {}}
    return Made(plan={"policy": policy}, rows=quiet(rng))


@folder
def build_named(rng: np.random.Generator) -> Made:
    """A build that the policy names is served."""
    policy = POLICY | {"routed": {FOUR_BIT: 0.05}}
    return Made(plan={"policy": policy}, rows=rows(rng, 6, scale=0.6, served=[INT4], other=[FP8]))


@folder
def build_of_the_bank(rng: np.random.Generator) -> Made:
    """A build that the policy does not name is served, beside the one that it names."""
    return Made(
        plan={"policy": POLICY | {"builds": [FP8]}},
        rows=rows(rng, 5, scale=0.5, served=["drop-1"], other=[FP8]),
    )


@folder
def builds_alike(rng: np.random.Generator) -> Made:
    """The build is the published weights again, and nothing tells the two apart."""
    return Made(plan={"policy": POLICY}, rows=rows(rng, 12, scale=0.05, same=[INT4], tokens=20))


@folder
def no_build_scored(rng: np.random.Generator) -> Made:
    """Noise, and why log-probabilities were not used; the share of it is wide open."""
    found = rows(rng, 6, scale=0.4, logprob_problem="scaled by about 0.70")
    return Made(
        plan={"policy": POLICY, "top_logprobs": 5}, rows=found,
        answers={"p00": {"finish": "stop"}, "q00": {"status": None, "said": "reset", "tries": 4}},
    )  # fmt: skip


@folder
def noise_of_no_build(rng: np.random.Generator) -> Made:
    """Noise that no build of the bank explains; it is near none of another model."""
    return Made(plan={"policy": POLICY}, rows=rows(rng, 5, scale=0.35, other=[INT4, FP8]))


@folder
def nothing_fits(rng: np.random.Generator) -> Made:
    """As far as another model, and no build or suspect fits; one was not compared."""
    return Made(
        plan={"suspects": {"sibling": "a sibling", "unread": "one that was not scored"}},
        rows=rows(rng, 4, scale=1.0, same=[INT4], other=["sibling"]),
        answers=s.count_answers(s.PUBLISHED),
        files={"counted.json": s.counted()},
    )


@folder
def another_family(rng: np.random.Generator) -> Made:
    """The same, whose prompts are counted by tokenizers that no string tells apart."""
    return Made(
        rows=rows(rng, 4, scale=1.0, same=[INT4]), answers=s.count_answers("llama3"),
        files={"counted.json": s.counted()},
    )  # fmt: skip


@folder
def counted_otherwise(rng: np.random.Generator) -> Made:
    """A tokenizer by its counts where no build was scored; one count is missing."""
    answers = s.count_answers("claude")
    answers["k03"] = {"status": 422, "said": "no"}
    return Made(rows=rows(rng, 4, scale=1.0), answers=answers, files={"counted.json": s.counted()})


@folder
def suspect_named(rng: np.random.Generator) -> Made:
    """The replies are those of another model that is known."""
    return Made(
        plan={"suspects": {"sibling": "a sibling of it"}},
        rows=rows(rng, 4, scale=0.9, served=["sibling"], other=[INT4]),
    )


@folder
def near_a_suspect(rng: np.random.Generator) -> Made:
    """They are nearest to it, and not its own."""
    return Made(
        plan={"suspects": {"sibling": "a sibling of it"}},
        rows=rows(rng, 5, scale=1.0, near=["sibling"], other=[INT4]),
    )


@folder
def near_a_build(rng: np.random.Generator) -> Made:
    """A build explains the replies best, and noise is left under it."""
    return Made(plan={"policy": POLICY}, rows=rows(rng, 6, scale=0.8, near=[INT4]))


@folder
def a_part(rng: np.random.Generator) -> Made:
    """A third of the replies come from a build, and numbers of something else are reported."""
    theirs: dict[str, Any] = {"scale": 0.7, "served": [INT4], "outranked": 2}
    ours: dict[str, Any] = {"scale": 0.05, "other": [INT4], "outranked": 0}
    found = [
        s.greedy(rng, f"p{n:02}", tokens=20, **(theirs if n % 3 == 1 else ours)) for n in range(15)
    ]
    return Made(plan={"policy": POLICY | {"routed": {FOUR_BIT: 0.1, OTHER: 0.05}}}, rows=found)


@folder
def a_part_unknown(rng: np.random.Generator) -> Made:
    """A part, of which nothing is known but its noise."""
    found = [s.greedy(rng, f"p{n:02}", scale=0.8 if n % 4 == 1 else 0.04, tokens=24)
             for n in range(16)]  # fmt: skip
    return Made(plan={"policy": ONLY_NOISE | {"routed": {OTHER: 0.9}}}, rows=found)


@folder
def one_odd_reply(rng: np.random.Generator) -> Made:
    """One reply alone decides nothing, and is shown where shares are asked for."""
    found = [s.greedy(rng, f"p{n:02}", scale=0.5 if n == 4 else 0.05, tokens=14)
             for n in range(14)]  # fmt: skip
    return Made(plan={"policy": ONLY_NOISE | {"routed": {FOUR_BIT: 0.2}}}, rows=found)


@folder
def logprobs_and_text_differ(rng: np.random.Generator) -> Made:
    """Both by as much, so that what it reports is believed."""
    return Made(plan={"top_logprobs": 5}, rows=rows(rng, LEAST, scale=0.3, logprob_scale=0.3))


@folder
def logprobs_differ(rng: np.random.Generator) -> Made:
    """The text fits, what is reported with it does not."""
    return Made(
        plan={"policy": POLICY, "top_logprobs": 5},
        rows=rows(rng, 7, scale=0.03, logprob_scale=0.8, other=[INT4]),
    )


@folder
def logprobs_alone(rng: np.random.Generator) -> Made:
    """No text could be scored, what is reported differs."""
    found = rows(rng, 4, scale=0.03, logprob_scale=0.8)
    return Made(plan={"top_logprobs": 5}, rows=[replace(row, text={}) for row in found])


@folder
def logprobs_forged(rng: np.random.Generator) -> Made:
    """A build behind log-probabilities of the published weights, beside a control in doubt."""
    found = [
        s.greedy(rng, f"p{n:02}", scale=0.6, served=[INT4], logprob_scale=0.9, outranked=n % 3)
        for n in range(5)
    ]
    return Made(
        plan={"policy": POLICY, "top_logprobs": 5}, rows=found,
        answers={"p01": {"tokens": 500}},
        files={
            "control.json": s.control("inconsistent"),
            "capabilities.json": s.capabilities(forged_log_e=12.5, parameters=s.ignored("stop")),
            "shown.json": s.shown(["system-ignored"]),
        },
    )  # fmt: skip


# -- beside the verdict ------------------------------------------------------------------------


@folder
def forged(rng: np.random.Generator) -> Made:
    """Tokens that the endpoint's own words contradict, in replies of a build."""
    found = [
        s.greedy(rng, f"p{n:02}", scale=0.6, served=[INT4], outranked=n % 3, logprob_scale=0.05)
        for n in range(7)
    ]
    return Made(
        plan={"policy": POLICY, "top_logprobs": 5}, rows=found,
        files={"control.json": s.control("failed")},
    )  # fmt: skip


@folder
def parameters_ignored(rng: np.random.Generator) -> Made:
    """Samples that do not follow what is reported, and parameters that are ignored, both named."""
    found = s.capabilities(
        forged_log_e=9.75, parameters=s.ignored("stop", "seed", "n"), temperature_zero=False,
        greedy_fields={"temperature": 0.01, "top_k": 1}, repeatable=False, alike=0.4,
        problems=["request 4: HTTP 400: no stream"], grid=0.125, reasoning=None,
    )  # fmt: skip
    return Made(
        rows=quiet(rng),
        files={"capabilities.json": found, "control.json": s.control("inconclusive")},
    )


@folder
def counts_beyond(rng: np.random.Generator) -> Made:
    """Counts that nobody believes, requests without an answer, and a prompt that is shown."""
    found = rows(rng, 8, scale=0.03, prompt_tokens=21, tokens=28)
    return Made(
        plan={"prices": {"prompt": 1.0, "completion": 2.0}}, rows=found,
        answers={"p03": {"tokens": 900}, "p04": {"prompt_tokens": 90_000},
                 "p05": {"tokens": 45}},
        lines={"sent.jsonl": s.unanswered("p00", "p20", "p21")},
        files={"shown.json": s.shown([], [s.PUBLISHED])},
    )  # fmt: skip


@folder
def counts_shifted(rng: np.random.Generator) -> Made:
    """Each prompt counts one more than it is rendered to, and some answers are set aside."""
    found = [
        s.templated(rng, n, served=s.PUBLISHED, scale=0.04, columns=(), counts=True, offset=1,
                    panel=False, tokens=30)
        for n in range(9)
    ]  # fmt: skip
    found = [replace(r, rendered=r.rendered | {"bos-doubled": r.rendered["reference"] + 4})
             for r in found]  # fmt: skip
    found[2] = replace(found[2], text={}, unjudged="a thought out of its place", tokens=0)
    return Made(
        rows=found, answers={"q00": {"text": "", "prompt_tokens": 41, "finish": "stop"}},
    )  # fmt: skip


@folder
def thinking_off(rng: np.random.Generator) -> Made:
    """Thoughts are hidden, and the rest was asked without."""
    found = quiet(rng)
    return Made(
        plan={"thinking": THINKING,
              "configuration": {"endpoint": {"dialect": "chat"}, "audit": {}}},
        rows=found,
        answers={"q00": {"text": "", "tokens": 30}, "q01": {"tokens": 400, "allowed": 500}},
        settings={row.probe_id: {"enable_thinking": False} for row in found},
        files={"shown.json": s.shown([s.PUBLISHED], [s.PUBLISHED, "leading-whitespace-stripped"])},
    )  # fmt: skip


@folder
def thinking_wished_off(rng: np.random.Generator) -> Made:
    """The run file asked for it, so there is nothing to say."""
    found, wished = quiet(rng), {"enable_thinking": False}
    audit = {"template_settings": wished}
    return Made(
        plan={"thinking": THINKING,
              "configuration": {"endpoint": {"dialect": "chat"}, "audit": audit}},
        rows=found, settings={row.probe_id: wished for row in found},
    )  # fmt: skip


@folder
def control_pending(rng: np.random.Generator) -> Made:
    """A named build and its share, of which nothing is said before the control is judged."""
    return Made(
        plan={"policy": POLICY}, rows=rows(rng, 6, scale=0.6, served=[INT4]),
        files={"control.json": s.control("pending")},
    )  # fmt: skip


@folder
def control_differs_beside_an_honest_host(rng: np.random.Generator) -> Made:
    """The endpoint is consistent, and its control is not."""
    return Made(rows=quiet(rng), files={"control.json": s.control("inconsistent")})


# -- the template ------------------------------------------------------------------------------


def panel(
    rng: np.random.Generator,
    served: str,
    *,
    count: int = 6,
    scale: float = 0.05,
    columns: tuple[str, ...] = ("system-ignored", "no-template"),
    **more: Any,
) -> list[Any]:
    """Replies to a panel."""
    return [
        s.templated(rng, n, served=served, scale=scale, columns=columns, **more)
        for n in range(count)
    ]


@folder
def template_named(rng: np.random.Generator) -> Made:
    """A fault by replies and counts; noise is judged under it, builds and shares are not."""
    found = panel(rng, "system-ignored", counts=True)
    return Made(
        plan={"policy": POLICY},
        rows=[*(s.greedy(rng, f"p{n:02}", scale=0.9, tokens=8) for n in range(2)), *found],
        files={"shown.json": s.shown(["system-ignored"], ["system-ignored", "bos-missing"])},
    )


@folder
def template_group(rng: np.random.Generator) -> Made:
    """Two that are the same everywhere."""
    return Made(
        rows=panel(rng, "no-template", columns=("no-template", "space-added"),
                   twins={"family-gemma": "no-template"}),
    )  # fmt: skip


@folder
def template_and_noise(rng: np.random.Generator) -> Made:
    """A fault, and weights that differ under it."""
    found = [
        *panel(rng, "no-template", count=9, scale=0.4, columns=("no-template",)),
        *panel(rng, "no-template", count=3, scale=0.4, columns=("no-template",), panel=False),
    ]
    return Made(plan={"policy": POLICY}, rows=found)


@folder
def template_and_little_noise(rng: np.random.Generator) -> Made:
    """A fault, and noise under it that may be honest: the weights are not named."""
    found = panel(rng, "no-template", count=7, scale=0.15, columns=("no-template",), tokens=9)
    return Made(plan={"policy": ONLY_NOISE}, rows=found)


@folder
def template_of_unknown_words(rng: np.random.Generator) -> Made:
    """A hidden prompt."""
    return Made(
        plan={"top_logprobs": 5},
        rows=panel(rng, "system-injected-2", count=7,
                   columns=("system-injected", "system-injected-2")),
    )  # fmt: skip


@folder
def template_suspected(rng: np.random.Generator) -> Made:
    """Counts look like another rendering, replies do not tell."""
    found = panel(rng, "bos-doubled", count=6, scale=0.05, columns=(), counts=True, apart=0.0,
                  panel=False)  # fmt: skip
    found = [replace(row, rendered=row.rendered | {"bos-doubled": row.rendered["bos-doubled"]})
             for row in found]  # fmt: skip
    return Made(rows=found)


@folder
def panel_under_a_build(rng: np.random.Generator) -> Made:
    """What a panel says of a build is not read: calibration knows ordinary probes alone."""
    ordinary = rows(rng, 4, scale=0.1, same=[INT4], tokens=8)
    asked = [replace(row, probe_id=f"t{n:02}", panel=True, rendered={"reference": 40})
             for n, row in enumerate(rows(rng, 4, scale=0.6, served=[INT4]))]  # fmt: skip
    return Made(plan={"policy": POLICY}, rows=[*ordinary, *asked])


@folder
def template_or_other_weights(rng: np.random.Generator) -> Made:
    """A suspect explains ordinary replies better than the rendering that leads the panel."""
    found = []
    for row in [s.greedy(rng, f"p{n:02}", scale=0.9, served=["sibling"]) for n in range(8)]:
        leads = s.rounded(cell + 3.0 for cell in row.text["reference"])
        found.append(replace(row, text=row.text | {"template:family-llama3": leads},
                               rendered={"reference": 20, "family-llama3": 30}))  # fmt: skip
    return Made(plan={"suspects": {"sibling": "a sibling of it"}}, rows=found)


@folder
def template_rather_than_two_suspects(rng: np.random.Generator) -> Made:
    """One of two suspects leads by almost enough to be named instead of the template."""
    return Made(plan=TWO, rows=between_two(rng, LEAD))


#: By how much a template column leads, at which suspects fall short of being named by a third of a
#: nat: less than the price of there being two.
LEAD = -1.1
TWO = {"suspects": {"sibling": "a sibling of it", "cousin": "a cousin of it"}}


def between_two(rng: np.random.Generator, lead: float) -> list[Any]:
    """Replies of a suspect, which a rendering explains almost as well."""
    found = []
    for n in range(6):
        row = s.greedy(rng, f"p{n:02}", scale=0.6, served=["sibling"], other=["cousin"])
        leads = s.rounded(cell + lead for cell in row.text["sibling"])
        found.append(replace(row, text=row.text | {"template:family-llama3": leads},
                             rendered={"reference": 20, "family-llama3": 30}))  # fmt: skip
    return found


@folder
def shown_alone(rng: np.random.Generator) -> Made:
    """A prompt of no known rendering is shown, and the replies are honest: nobody is accused."""
    return Made(rows=quiet(rng), files={"shown.json": s.shown([], [s.PUBLISHED])})


@folder
def shown_fault(rng: np.random.Generator) -> Made:
    """The replies differ, and the prompts that are shown say why."""
    return Made(
        plan={"policy": POLICY}, rows=rows(rng, 6, scale=0.6),
        files={"shown.json": s.shown(["system-ignored", "bos-missing"], ["system-ignored"])},
    )  # fmt: skip


@folder
def shown_fault_scored(rng: np.random.Generator) -> Made:
    """The same, where replies were scored under it: noise is left there too."""
    found = [
        s.templated(rng, n, served="system-ignored", scale=0.35, columns=("system-ignored",),
                    panel=False, apart=0.3, tokens=16)
        for n in range(6)
    ]  # fmt: skip
    return Made(
        plan={"policy": POLICY, "top_logprobs": 5}, rows=found,
        files={"shown.json": s.shown(["system-ignored"])},
    )  # fmt: skip


@folder
def shown_hidden_prompt(rng: np.random.Generator) -> Made:
    """A hidden prompt is shown, and the replies under it leave open what its words are."""
    found = [
        s.templated(rng, n, served="system-injected", scale=0.4, columns=("system-injected",),
                    panel=False, apart=0.15, tokens=16)
        for n in range(5)
    ]  # fmt: skip
    return Made(rows=found, files={"shown.json": s.shown(["system-injected"])})


def completed(rng: np.random.Generator, scale: float, count: int = 8, **more: Any) -> Made:
    """Text completions."""
    found = [
        s.greedy(rng, f"p{n:02}", scale=scale, prompt_tokens=21, rendered={"reference": 20})
        for n in range(count)
    ]
    return Made(rows=[replace(row, **more) for row in found])


@folder
def rendering_not_known(rng: np.random.Generator) -> Made:
    """Chats differ, and the same prompts completed as text do not."""
    return Made(
        plan={"policy": POLICY}, rows=rows(rng, 6, scale=0.7, other=[INT4]),
        completions=completed(rng, 0.03, 10),
    )  # fmt: skip


@folder
def completions_differ(rng: np.random.Generator) -> Made:
    """The weights are at fault, whatever the template; a hidden prompt of no known words is not."""
    found = [
        replace(s.greedy(rng, f"p{n:02}", scale=0.5, served=["template:system-injected"]),
                  rendered={"reference": 20, "system-injected": 30})
        for n in range(5)
    ]  # fmt: skip
    return Made(rows=found, completions=completed(rng, 0.6, 4))


@folder
def completions_open(rng: np.random.Generator) -> Made:
    """A hidden prompt, and too few completions to say more; one request has no answer."""
    completions = completed(rng, 0.05, 1)
    completions.lines["sent.jsonl"] = s.unanswered("p00", "p01")
    return Made(
        rows=panel(rng, "system-injected", count=7, columns=("system-injected",)),
        completions=completions,
    )


@folder
def completions_fit_under_a_template(rng: np.random.Generator) -> Made:
    """A hidden prompt, and completions that fit: the noise is theirs, and may be judged."""
    return Made(
        rows=panel(rng, "system-injected", count=7, columns=("system-injected",)),
        completions=completed(rng, 0.03, 10),
    )


@folder
def completions_made_into_chats(rng: np.random.Generator) -> Made:
    """The prompts arrived longer than they were sent."""
    made = completed(rng, 0.03, 4)
    made.rows[1] = replace(made.rows[1], prompt_tokens=34)
    return Made(rows=rows(rng, 4, scale=0.7), completions=made)


@folder
def completions_refused(rng: np.random.Generator) -> Made:
    """There is no such endpoint, and the chats are honest."""
    refused = {"status": 404, "said": "no such path"}
    return Made(
        rows=rows(rng, 4, scale=0.7),
        completions=Made(answers={f"p{n:02}": refused for n in range(4)}),
        lines={"sent.jsonl": s.unanswered("c01", of="capabilities.jsonl")},
    )


# -- ways of asking ----------------------------------------------------------------------------

LABELS = (
    (), ("streamed",), ("without log-probabilities",), ("streamed", "short"),
    ("streamed", "without log-probabilities"), ("short",),
)  # fmt: skip


def varied(
    rng: np.random.Generator, count: int, label: str, scale: float, **more: Any
) -> list[Any]:
    """Replies asked in ways that vary, of which one differs."""
    found = []
    for n in range(count):
        labels = LABELS[int(rng.integers(len(LABELS)))] + (("late",) if n >= 8 else ())
        odd = label in labels
        at = scale if odd else 0.05
        columns: dict[str, Any] = {"served": [INT4]} if odd and more.get("build") else {}
        columns |= {} if odd or not more.get("build") else {"other": [INT4]}
        columns |= {"outranked": int(odd)} if more.get("build") else {}
        found.append(s.greedy(rng, f"p{n:02}", scale=at, strata=labels, tokens=18, **columns))
    return found


def no_stratum(rng: np.random.Generator) -> list[Any]:
    """Replies that all differ a little; drawn so that the leading one falls just short."""
    return [
        replace(row, strata=LABELS[n % 4])
        for n, row in enumerate(rows(rng, 5, scale=0.25, tokens=20))
    ]


@folder
def streams_differ(rng: np.random.Generator) -> Made:
    """One way of asking stands out, and its own replies have a cause by name."""
    return Made(
        plan={"varies": True, "policy": POLICY},
        rows=varied(rng, 16, "streamed", 0.7, build=True),
    )


@folder
def a_stratum_is_open(rng: np.random.Generator) -> Made:
    """One way of asking leads, and a random labelling does as well now and then."""
    return Made(plan={"varies": True}, rows=varied(rng, 9, "without log-probabilities", 0.5))


@folder
def no_stratum_stands_out(_: np.random.Generator) -> Made:
    """One leads, and no noise apart from the others explains the replies as one for all does."""
    return Made(plan={"varies": True}, rows=no_stratum(np.random.default_rng(56)))


@folder
def all_asked_alike_differ(rng: np.random.Generator) -> Made:
    """However it is asked."""
    found = [replace(row, strata=("late",) if n % 2 else ("streamed",))
             for n, row in enumerate(rows(rng, 8, scale=0.6, served=[INT4]))]  # fmt: skip
    return Made(plan={"varies": True}, rows=found)


# -- samples -----------------------------------------------------------------------------------

FEW = ("temperature 0.7", "temperature 0.98", "temperature 1", "temperature 1.02",
       "temperature 1.2", "top-k 4", "top-k 10", "top-p 0.7", "top-p 0.9",
       "temperature 0.7, top-p 0.8")  # fmt: skip
SOME = SAMPLERS | {"samplers": {name: s.SAMPLERS[name] for name in FEW}}


def samples(rng: np.random.Generator, count: int, **truth: Any) -> list[Any]:
    return [s.drawn(rng, f"s{n:02}", **({"sampler": {}, "columns": FEW} | truth))
            for n in range(count)]  # fmt: skip


@folder
def sampled_as_asked(rng: np.random.Generator) -> Made:
    """All marks are excluded, repeats are open."""
    return Made(
        plan=SOME, rows=quiet(rng), sampled=samples(rng, 6, tokens=600),
        repeats=[s.again("s00", -1.5), s.again("s00", -30.0, came=False, otherwise=True)],
    )  # fmt: skip


@folder
def sampled_too_little(rng: np.random.Generator) -> Made:
    """A few samples leave milder settings open."""
    return Made(plan=SOME, rows=quiet(rng), sampled=samples(rng, 4, tokens=50))


@folder
def no_sample_yet(rng: np.random.Generator) -> Made:
    """None was scored."""
    return Made(plan=SOME, rows=quiet(rng))


@folder
def samples_unread(rng: np.random.Generator) -> Made:
    """The endpoint does not name its tokens, so they were not judged."""
    found = [s.unread(f"s{n:02}", "the endpoint does not name the tokens of its replies")
             for n in range(2)]  # fmt: skip
    return Made(plan=SOME, rows=quiet(rng), sampled=found)


@folder
def samples_not_understood(rng: np.random.Generator) -> Made:
    """Few could not be read, so more may be."""
    found = [s.unread(f"s{n:02}", "two spellings") for n in range(3)]
    return Made(plan=SOME, rows=quiet(rng), sampled=found)


@folder
def many_samples_not_understood(rng: np.random.Generator) -> Made:
    """As many as suffice to say that none can be read."""
    found = [s.unread(f"s{n:02}", "two spellings") for n in range(8)]
    return Made(plan=SOME, rows=quiet(rng), sampled=found)


@folder
def top_k_forced(rng: np.random.Generator) -> Made:
    """A truncation by name."""
    return Made(
        plan=SOME, rows=quiet(rng),
        sampled=samples(rng, 6, sampler={"top_k": 4}, tokens=60),
        repeats=[s.again(f"s{n:02}", -40.0) for n in range(2)],
    )  # fmt: skip


@folder
def temperature_forced(rng: np.random.Generator) -> Made:
    """A temperature with its interval."""
    return Made(
        plan=SOME, rows=quiet(rng),
        sampled=samples(rng, 6, sampler={"temperature": 0.7}, tokens=100),
    )  # fmt: skip


@folder
def settings_forced(rng: np.random.Generator) -> Made:
    """Several at once."""
    return Made(
        plan=SOME, rows=quiet(rng),
        sampled=samples(rng, 6, sampler={"temperature": 0.7, "top_p": 0.8}, tokens=100),
    )  # fmt: skip


@folder
def hot_or_noisy(rng: np.random.Generator) -> Made:
    """Samples that noise of the weights may explain, while replies leave that open."""
    return Made(
        plan=SOME, rows=rows(rng, 2, scale=0.05, tokens=6),
        sampled=samples(rng, 6, sampler={"top_k": 4}, tokens=60),
    )  # fmt: skip


@folder
def hot_within_noise(rng: np.random.Generator) -> Made:
    """Nothing is left open of the weights, but noise that would make samples as hot as they are."""
    hot = {f"temperature {t:g}": {"temperature": t} if t != 1 else {}
           for t in (0.8, 0.98, 1, 1.02, 1.1, 1.2)}  # fmt: skip
    return Made(
        plan=SAMPLERS | {"samplers": hot, "policy": ONLY_NOISE | {"noise": [OTHER]}},
        rows=rows(rng, 3, scale=0.15, tokens=5),
        sampled=samples(rng, 10, sampler={"temperature": 1.1}, tokens=400, columns=tuple(hot)),
    )


@folder
def other_weights_sampled(rng: np.random.Generator) -> Made:
    """The greedy replies differ first; a store is not accused then."""
    return Made(
        plan=SOME, rows=rows(rng, 6, scale=0.6, served=[INT4]),
        sampled=samples(rng, 6, scale=0.6),
        repeats=[s.again(f"s{n:02}", -40.0) for n in range(2)],
    )  # fmt: skip


@folder
def replies_from_a_store(rng: np.random.Generator) -> Made:
    """What was asked before comes again word by word."""
    return Made(
        plan=SOME, rows=quiet(rng), sampled=samples(rng, 6),
        repeats=[s.again("s00", -40.0), s.again("s00", -35.0, otherwise=True),
                 s.again("s08", -50.0), s.again("s08", -20.0, came=False, otherwise=True)],
    )  # fmt: skip


@folder
def store_behind_unread_samples(rng: np.random.Generator) -> Made:
    """The same of samples whose tokens are not named; no cause is sought among the weights."""
    found = [s.unread("s00", "the endpoint does not name the tokens of its replies")]
    return Made(
        plan=SOME, rows=[replace(row, text=row.text | {INT4: row.text["reference"]})
                         for row in quiet(rng)],
        sampled=found, repeats=[s.again("s00", -40.0), s.again("s00", -35.0, otherwise=True)],
    )  # fmt: skip


# -- greedy replies that are not ---------------------------------------------------------------


@folder
def penalty_named(rng: np.random.Generator) -> Made:
    """A penalty on greedy replies; builds are not judged before it is mended."""
    found = [s.penalized(rng, f"p{n:02}", penalty=1.0) for n in range(5)]
    found = [replace(row, text=row.text | {INT4: row.text["reference"]}) for row in found]
    return Made(plan={"policy": POLICY, "top_logprobs": 5}, rows=found)


@folder
def penalty_or_shown_fault(rng: np.random.Generator) -> Made:
    """What the endpoint shows of its prompts comes before a penalty."""
    found = [s.penalized(rng, f"p{n:02}", penalty=1.0, columns=(1.0,)) for n in range(5)]
    return Made(rows=found, files={"shown.json": s.shown(["system-ignored"])})


@folder
def penalty_of_two(rng: np.random.Generator) -> Made:
    """Two settings of it that nothing tells apart, in samples as well."""
    found = [
        s.penalized(rng, f"p{n:02}", penalty=1.0, columns=(1.0, 1.02), tokens=20) for n in range(5)
    ]
    return Made(plan={"bank": []} | SOME, rows=found, sampled=samples(rng, 3))


@folder
def tokens_dropped(rng: np.random.Generator) -> Made:
    """By name, once the replies were scored under it."""
    found = [s.single(rng, f"p{n:02}", share=0.06, named=True) for n in range(7)]
    return Made(plan={"bank": []}, rows=found)


@folder
def tokens_suspected(rng: np.random.Generator) -> Made:
    """Single tokens look odd, and the audit goes on."""
    found = [s.single(rng, f"p{n:02}", share=0.09 if n == 9 else 0.0, outranked=int(n in (3, 9)))
             for n in range(12)]  # fmt: skip
    found = [replace(row, single={n: row.single[n] for n in list(row.single)[:2]})
             for row in found]  # fmt: skip
    return Made(plan={"policy": POLICY | {"builds": []}}, rows=found)


@folder
def tokens_contradicted(rng: np.random.Generator) -> Made:
    """Single tokens, beyond doubt by the endpoint's own words; they have no name yet."""
    found = [s.greedy(rng, f"p{n:02}", scale=0.03, outranked=int(n % 3 == 0)) for n in range(12)]
    return Made(rows=found)


# -- what is long ------------------------------------------------------------------------------

LONG = {"context_tokens": 900, "output_tokens": 200}


@folder
def long_is_whole(rng: np.random.Generator) -> Made:
    """Prompts are read and replies come at full length."""
    return Made(
        plan=LONG, rows=quiet(rng),
        lines={"context_scores.jsonl": [
            *s.long_prompt(1, 890, reads=True, cuts=s.marks(890, s.UNREAD)),
            s.long_reply(1, 200, 200, None),
        ]},
    )  # fmt: skip


@folder
def long_is_cut(rng: np.random.Generator) -> Made:
    """A window by its place and size, and a ceiling.

    All evidence is just enough to be said as 42.5: less of it would show.
    """
    cuts = {f"{place}@{n}": s.READ if (place, n) == ("front-kept", 500) else s.UNREAD
            for place in ("front-kept", "end") for n in (400, 500, 600)}  # fmt: skip
    return Made(
        plan=LONG, rows=quiet(rng),
        answers={"context-1": {"prompt_tokens": 500}, "output-2": {"finish": "stop"}},
        lines={"context_scores.jsonl": [
            *s.long_prompt(1, 890, reads=False, cuts=cuts, whole=s.curve(-90, -40.01)),
            *s.long_prompt(2, 450, reads=True, cuts=s.marks(890, s.UNREAD)
                           | {"front-kept@400": s.UNREAD, "end@400": s.UNREAD}),
            s.long_reply(1, 90, 200, s.curve(-30, -14)),
            s.long_reply(2, 91, 200, s.curve(-30, -14)),
        ]},
    )  # fmt: skip


@folder
def replies_are_cut(rng: np.random.Generator) -> Made:
    """A ceiling that nothing is said of."""
    return Made(
        plan={**LONG, "context_tokens": 0}, rows=quiet(rng),
        answers={"output-1": {"finish": "stop"}, "output-2": {"finish": "stop"}},
        lines={"context_scores.jsonl": [
            s.long_reply(1, 90, 200, s.curve(-30, -14)),
            s.long_reply(2, 91, 200, s.curve(-30, -14)),
        ]},
    )  # fmt: skip


@folder
def long_is_open(rng: np.random.Generator) -> Made:
    """Prompts that do not fit and no cut explains, and a reply that ends as it may."""
    return Made(
        plan=LONG, rows=quiet(rng),
        lines={"context_scores.jsonl": [
            *s.long_prompt(1, 890, reads=False, cuts=s.marks(890, s.UNREAD)),
            *s.long_prompt(2, 450, reads=True, cuts=s.marks(890, s.UNREAD)
                           | s.marks(450, s.UNREAD)),
            s.long_reply(1, 90, 200, s.curve(-2, -1)),
        ]},
    )  # fmt: skip


@folder
def long_is_unasked(rng: np.random.Generator) -> Made:
    """Nothing long was asked yet; the rest is excluded, so only that is open."""
    return Made(plan=LONG, rows=quiet(rng))


@folder
def long_tells_nothing(rng: np.random.Generator) -> Made:
    """A prompt that fits and depends on no part of it, one that is refused, an empty reply."""
    return Made(
        plan=LONG, rows=quiet(rng),
        answers={
            "context-2": {"status": 422, "said": "maximum context length is 700 tokens"},
            "output-1": {"text": "", "finish": "stop"},
        },
        lines={"context_scores.jsonl": s.long_prompt(
            1, 890, reads=True, cuts=s.marks(890, s.curve(-1.1, -20)))},
    )  # fmt: skip


@folder
def long_is_refused(rng: np.random.Generator) -> Made:
    """The endpoint says what it does not take: a limit, and no fault."""
    return Made(
        plan={"context_tokens": 900}, rows=quiet(rng),
        answers={"context-1": {"status": 422, "said": "maximum context length is 700 tokens"}},
    )  # fmt: skip


@folder
def long_is_silent(rng: np.random.Generator) -> Made:
    """An empty answer to a long prompt, and a limit of which no number is said."""
    return Made(
        plan={"context_tokens": 900}, rows=quiet(rng),
        answers={"context-1": {"text": "", "finish": "stop"}},
    )  # fmt: skip


@folder
def long_after_other_weights(rng: np.random.Generator) -> Made:
    """Ordinary replies differ already."""
    return Made(
        plan=LONG, rows=rows(rng, 6, scale=0.6, served=[INT4]),
        lines={"context_scores.jsonl": [s.long_reply(1, 90, 200, s.curve(-2, -1))]},
    )  # fmt: skip


# -- several targets ---------------------------------------------------------------------------

TARGETS = """\
targets:
  far: {base_url: "http://127.0.0.1:3/v1", model: tiny}
  near: {base_url: "http://127.0.0.1:4/v1", model: tiny}
  mixed: {base_url: "http://127.0.0.1:8/v1", model: tiny}
  between: {base_url: "http://127.0.0.1:7/v1", model: tiny}
  dead: {base_url: "http://127.0.0.1:5/v1", model: tiny}
  late: {base_url: "http://127.0.0.1:6/v1", model: tiny}
control: {base_url: "http://127.0.0.1:2/v1", model: tiny}
reference: {card: tiny}
audit: {alpha: 0.001}
prices: {prompt: 1.0, completion: 2.0}
out: hosts
"""


#: All evidence but that of what is long; a summary says what it adds up to by four decimals.
MIXED: dict[str, Any] = SOME | {"policy": POLICY, "top_logprobs": 5, "varies": True}


def mixed(rng: np.random.Generator) -> list[Any]:
    """Replies that say a little of everything, and a panel that says a little more."""
    found = []
    for n in range(6):
        row = s.single(rng, f"p{n:02}", share=0.02, outranked=n // 5, tokens=20)
        other = s.greedy(rng, "", scale=0.1, tokens=20, same=[INT4], logprob_scale=0.12)
        text = row.text | {INT4: s.rounded(cell + 0.4 for cell in row.text["reference"])}
        labels = ("streamed",) if n % 2 else ("short",)
        found.append(replace(row, text=text, logprob=other.logprob, strata=labels))
    return [*found, *panel(rng, "no-template", count=2, tokens=5, apart=0.6)]


def make_fleet(out: Path) -> None:
    """Six targets beside a control: accused, not accused, with all kinds of evidence, accused alone
    but not among so many, one that could not be judged, and one of which nothing is scored yet."""
    rng = np.random.default_rng(77)
    usual = {"prices": {"prompt": 1.0, "completion": 2.0}, "min_replies": LEAST}
    made = {
        "far": Made(plan=usual, rows=rows(rng, 5, scale=0.6, served=[INT4])),
        "near": Made(plan=usual, rows=quiet(rng)),
        "mixed": Made(plan=usual | MIXED, rows=mixed(rng), sampled=samples(rng, 3),
                      repeats=[s.again("s00", -6.0), s.again("s01", -2.0, came=False)]),
        "between": Made(plan=usual, rows=doubtful(usual)),
        "dead": Made(plan=usual, answers={"p00": {"status": None, "said": "reset", "tries": 4}},
                     lines={"sent.jsonl": s.unanswered("p01")}),
        "late": Made(plan=usual, answers={"p00": {"tokens": 12, "prompt_tokens": 20}}),
        "control": Made(plan=usual, rows=quiet(rng)),
    }  # fmt: skip
    for name, one in made.items():
        s.write(out / name, one)
    (out / "late" / "ledger.json").unlink()
    (out / "targets.yaml").write_text(TARGETS)
    (out / "errors.json").write_text('{"errors": {"dead": "cannot reach 127.0.0.1:5"}}\n')
    summarise(out)
    for name in ("summary.json", "report.json", "control.json"):
        for path in list(out.rglob(name)):
            path.rename(path.with_name(f"expected-{name}"))


def doubtful(plan: dict[str, Any]) -> list[Any]:
    """Replies whose evidence just suffices for one endpoint alone."""
    for seed in range(1000):
        found = rows(np.random.default_rng(seed), 4, scale=0.22)
        with tempfile.TemporaryDirectory() as folder:
            s.write(Path(folder) / "run", Made(plan=plan, rows=found))
            said = decide_folder(Path(folder) / "run").summary
        told = re.search(r"evidence log e (7\.[1-6]),", said)
        if told:
            return found
    raise AssertionError("no such replies")


def digest_cases() -> None:
    """Write the digest of the report of each simulated case."""
    found = {}
    for number in range(s.CASES):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            s.write(run, s.random_case(number))
            decide_folder(run)
            found[f"{number:03}"] = sha256((run / "report.json").read_bytes()).hexdigest()
    DIGESTS.write_text(json.dumps(found, indent=0) + "\n")


def decide_anew(run: Path) -> None:
    """Decide a folder again, from what it holds."""
    with tempfile.TemporaryDirectory() as folder:
        left_out = shutil.ignore_patterns("expected-*")
        copy = Path(shutil.copytree(run, Path(folder) / run.name, ignore=left_out))
        decide_folder(copy)
        shutil.copyfile(copy / "report.json", run / "expected-report.json")


def summarise_anew(out: Path) -> None:
    """Say again where several targets stand, from what their folders hold."""
    with tempfile.TemporaryDirectory() as folder:
        left_out = shutil.ignore_patterns("expected-*")
        copy = Path(shutil.copytree(out, Path(folder) / out.name, ignore=left_out))
        summarise(copy)
        for path in sorted(out.rglob("expected-*")):
            made = copy / path.parent.relative_to(out) / path.name.removeprefix("expected-")
            shutil.copyfile(made, path)


def main(names: list[str]) -> None:
    """Make the folders of these names, or all that are missing; `anew`: decide them all again."""
    if names == ["anew"]:
        for run in sorted(FOLDERS.iterdir()):
            decide_anew(run)
        summarise_anew(FLEET)
        digest_cases()
        return
    for name, maker in MAKERS.items():
        run = FOLDERS / name
        if name in names:
            shutil.rmtree(run, ignore_errors=True)
        if run.exists():
            continue
        made = maker(np.random.default_rng([*name.encode()]))
        made.plan = {"min_replies": LEAST} | made.plan
        s.write(run, made)
        decide_folder(run)
        (run / "report.json").rename(run / "expected-report.json")
        print(f"made {run}")  # noqa: T201
    if "fleet" in names or not FLEET.exists():
        shutil.rmtree(FLEET, ignore_errors=True)
        make_fleet(FLEET)
    if "cases" in names or not DIGESTS.exists():
        digest_cases()


if __name__ == "__main__":
    main(sys.argv[1:])
