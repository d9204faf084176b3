"""Prompts that a host shows when asked to: direct proof of how it renders a chat.

Asked once there is cause, a few of a panel's probes at one token each. vLLM gives the prompt's ids
and text beside a chat's answer (`return_token_ids`, `return_prompt_text`) and from its tokenize
endpoint; Together gives its text (`echo`). What a host shows may be forged, so a prompt that is as
published acquits nothing and no verdict rests on one that differs; but it names the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from verifier.files.run_folder import SHOWN, SHOWN_EXCHANGES, write_json
from verifier.files.stored import read_record
from verifier.host.budget import Purse, believed_completion, believed_prompt
from verifier.host.collect import ask_once, read_attempts
from verifier.host.dialects import items, member
from verifier.host.endpoint import SPELLED, Endpoint
from verifier.host.exchange import asked_tokens, body_of, most_prompt
from verifier.records import REFERENCE, Attempt, Count, Probe
from verifier.reference.reader import Renderer
from verifier.reference.renderings.catalogue import Rendering, entries_named, refuse_unknown
from verifier.reference.renderings.proof import Proof, compare_ids, compare_text
from verifier.safety import sieve

#: Probes whose prompts are asked for: enough to part what a panel's first probes part.
PROBES: Final = 4

#: What a prompt holds at most; a folder may come from a stranger.
_MOST_TOKENS: Final = 100_000

#: Tokens of a prompt that a message shows.
_AROUND: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPrompt:
    """A prompt that a host showed, against the catalogue."""

    probe_id: str
    names: tuple[str, ...]  # renderings that give this prompt, valid ones first; (): none does
    differs_at: Count | None  # first token that is not the published one's; None: the same prompt
    published: str  # the words around that token, as published and as shown; "" when the same
    shown: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """All that a host showed, and what asking cost."""

    prompts: tuple[ShownPrompt, ...]  # (): it showed none
    requests: Count
    prompt_tokens: Count  # as far as the host counted
    completion_tokens: Count

    @property
    def faults(self) -> tuple[str, ...]:
        """Faults that give every prompt that is not rendered in a valid way; (): none is known."""
        wrong = [set(prompt.names) for prompt in self.prompts if not is_valid(prompt)]
        common = set.intersection(*wrong) if wrong else set()
        return tuple(sorted(name for name in common if entries_named([name])[name].kind == "fault"))

    @property
    def differs(self) -> bool:
        """Whether any prompt is rendered in no valid way."""
        return any(not is_valid(prompt) for prompt in self.prompts)


def ask_for_prompts(
    run: Path,
    endpoint: Endpoint,
    probes: Sequence[Probe],
    *,
    entries: Mapping[str, Rendering],
    renderer: Renderer,
    purse: Purse,
    max_tokens: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Shown | None:
    """Ask for the prompts of the first PROBES probes, in the ways that hosts know.

    The way that shows the first prompt is kept to; when none does, three requests were made. Each
    is paid for from `purse` before it is sent, and none is sent that it cannot pay. `max_tokens`
    is the least that the host takes. Attempts and result go into the run folder, and a result that
    is there is not asked for again. None, and no result, when `stopped` says so in between.
    """
    known = read_shown(run)
    if known is not None:
        return known

    def strike(attempt: Attempt) -> Attempt:
        spelled = _spells_key(attempt, renderer)
        return replace(attempt, body="", error=SPELLED) if spelled else attempt

    attempts = read_attempts(run, name=SHOWN_EXCHANGES)  # of an audit that was stopped
    prompts: list[ShownPrompt] = []
    ways: tuple[Way, ...] = _WAYS
    for probe in probes[:PROBES]:
        shortest = replace(probe, max_tokens=max_tokens)
        for way in ways:
            sent = ask_once(
                run, SHOWN_EXCHANGES, way(endpoint), shortest, number=1, logprobs=False,
                purse=purse, stopped=stopped, strike=strike,
            )  # fmt: skip
            if sent is None:
                if stopped():
                    return None
                ways = ()
                break
            attempt = sent.attempt
            attempts.append(attempt)
            found = _compare(attempt, probe, entries, renderer)
            if found is not None:
                prompts.append(found)
                ways = (way,)
                break
        else:
            break
    made = _sum_up(prompts, attempts)
    write_json(run / SHOWN, asdict(made))
    return made


def _sum_up(prompts: Sequence[ShownPrompt], attempts: Sequence[Attempt]) -> Shown:
    """What was shown, and what asking cost as far as counts are believed."""
    return Shown(
        prompts=tuple(prompts),
        requests=len(attempts),
        prompt_tokens=sum(
            believed_prompt(_count(attempt, "prompt_tokens"), most_prompt(attempt))
            for attempt in attempts
        ),
        completion_tokens=sum(
            believed_completion(_count(attempt, "completion_tokens"), asked_tokens(attempt))
            for attempt in attempts
        ),
    )


def read_shown(run: Path) -> Shown | None:
    """What a run folder's host showed; None when it was not asked. Raises ConfigError."""
    path = run / SHOWN
    if not path.exists():
        return None
    found = read_record(path, Shown, advice="remove it and audit again")
    names = (name for prompt in found.prompts for name in prompt.names)
    refuse_unknown(names, where=f"{path}: prompts")
    return found


def is_valid(prompt: ShownPrompt) -> bool:
    """Whether a valid rendering gives this prompt."""
    entries = entries_named(prompt.names)
    return any(entries[name].kind == "valid" for name in prompt.names)


# -- ways to ask -------------------------------------------------------------------------------

Way = Callable[[Endpoint], Endpoint]


def _beside_the_answer(endpoint: Endpoint) -> Endpoint:
    fields = {"return_token_ids": True, "return_prompt_text": True}
    return replace(endpoint, stream=False, extra_body={**endpoint.extra_body, **fields})


def _as_an_echo(endpoint: Endpoint) -> Endpoint:
    fields = {"echo": True, "logprobs": 1}
    return replace(endpoint, stream=False, extra_body={**endpoint.extra_body, **fields})


def _from_tokenize(endpoint: Endpoint) -> Endpoint:
    return replace(
        endpoint, stream=False, dialect="tokenize", extra_body={},
        base_url=endpoint.base_url.removesuffix("/v1"),
    )  # fmt: skip


_WAYS: Final = (_beside_the_answer, _as_an_echo, _from_tokenize)


# -- what came back ----------------------------------------------------------------------------


def _compare(
    attempt: Attempt, probe: Probe, entries: Mapping[str, Rendering], renderer: Renderer
) -> ShownPrompt | None:
    """The prompt in an answer, compared; None when there is none, or it cannot be rendered."""
    ids, text = _prompt_in(attempt)
    if ids is not None:
        proof = compare_ids(ids, probe, entries, renderer)
    elif text is not None:
        proof = compare_text(text, probe, entries, renderer)
    else:
        return None
    if proof is None:
        return None
    names = proof.names
    if ids is None and "bos-missing" in names:
        # a text does not tell whether the token that begins it is added in front of it
        names = (REFERENCE, *(name for name in names if name != REFERENCE))
    return ShownPrompt(
        probe_id=probe.id,
        names=names,
        differs_at=proof.differs_at,
        published=_around(proof, proof.published, renderer),
        shown=_around(proof, proof.shown, renderer),
    )


def _prompt_in(attempt: Attempt) -> tuple[tuple[int, ...] | None, str | None]:
    """Ids or text of the prompt that an answer shows; ids where it shows both."""
    if attempt.status != 200 or attempt.error is not None:
        return None, None
    body = body_of(attempt)
    for value in _values(body, "prompt_token_ids", "tokens"):
        ids = tuple(items(value))[:_MOST_TOKENS]
        if ids and all(type(one) is int and 0 <= one < 2**31 for one in ids):
            return ids, None
    for value in _values(body, "prompt_text", "prompt"):
        text = value if isinstance(value, str) else member(next(iter(items(value)), None), "text")
        if isinstance(text, str) and text:
            return None, text
    return None, None


def _spells_key(attempt: Attempt, renderer: Renderer) -> bool:
    """Whether a prompt that was shown as ids spells an API key once it is read."""
    ids, _ = _prompt_in(attempt)
    return ids is not None and sieve.holds(renderer.decode_prompt(ids))


def _values(body: object, *names: str) -> Iterator[object]:
    for holder in (body, next(iter(items(member(body, "choices"))), None)):
        yield from (member(holder, name) for name in names)


def _around(proof: Proof, ids: Sequence[int], renderer: Renderer) -> str:
    """The words around the first token that differs."""
    if proof.differs_at is None:
        return ""
    start = max(0, proof.differs_at - 2)
    return renderer.decode_prompt(ids[start : start + _AROUND])


def _count(attempt: Attempt, name: str) -> int:
    found = member(member(body_of(attempt), "usage"), name)
    return found if type(found) is int and 0 <= found <= 10**9 else 0
