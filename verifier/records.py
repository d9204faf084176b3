"""The values that flow from step to step: data only, frozen, standard library only.

Knows nothing of files, HTTP, models or statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Decision = Literal["consistent", "inconsistent", "inconclusive"]
Status = Literal["detected", "excluded", "undecided", "not run"]
Channel = Literal["text", "logprob"]

#: A text to the number of tokens that the published tokenizer makes of it.
CountTokens = Callable[[str], int]

#: The name of the published weights among the weights of a ledger.
REFERENCE = "reference"


# -- what a record read from a file may hold ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Between:
    """Bounds of a number, or of the length of a list; both ends are allowed.

    Checked by whoever reads a record from a file (`stored`), not when one is made.
    """

    least: float
    most: float

    def __get_pydantic_core_schema__(
        self, kind: object, handler: Callable[[object], dict[str, Any]]
    ) -> dict[str, Any]:
        schema = handler(kind)
        names = ("ge", "le") if schema["type"] in ("int", "float") else ("min_length", "max_length")
        return {**schema, **dict(zip(names, (self.least, self.most), strict=True))}


@dataclass(frozen=True, slots=True)
class Plain:
    """Any value of JSON whose numbers a program can compute with."""

    def __get_pydantic_core_schema__(
        self, kind: object, handler: Callable[[object], dict[str, Any]]
    ) -> dict[str, Any]:
        checked = {"type": "no-info", "function": _plain}
        return {"type": "function-after", "function": checked, "schema": handler(kind)}


def _plain(value: Any) -> Any:
    """Raise ValueError for a number that is not finite, or has too many digits."""
    if isinstance(value, Mapping):
        for part in value.values():
            _plain(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _plain(part)
    elif isinstance(value, int | float) and not abs(value) < 1e300:
        raise ValueError("holds a number that is not finite, or too large")
    return value


Version = Annotated[int, Between(1, 1)]  # of a file's form
Count = Annotated[int, Between(0, 10**15)]
Whole = Annotated[int, Between(-(10**15), 10**15)]
TokenId = Annotated[int, Between(0, 2**31)]
Nats = Annotated[float, Between(-1e12, 1e12)]
Scale = Annotated[float, Between(0, 1e6)]  # of noise, in logits
Share = Annotated[float, Between(0, 1)]
Amount = Annotated[float, Between(0, 1e30)]  # USD
Seconds = Annotated[float, Between(-1e12, 1e12)]  # a clock may be set back


# -- what is asked and answered ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that an assistant made."""

    id: str
    name: str
    arguments: str  # a JSON object, as it travels


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the assistant may call."""

    name: str
    description: str
    parameters: str  # a JSON schema as text, so that the order of its keys is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat message. A result of a tool has the role `tool` and the id of its call."""

    role: Role
    content: str
    reasoning: str | None = None  # what the assistant thought before it answered
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question, asked once: at temperature 0, unless its samples are what is judged."""

    id: str
    kind: str
    messages: tuple[Message, ...]
    max_tokens: Count
    tools: tuple[Tool, ...] = ()
    settings: tuple[tuple[str, bool | str], ...] = ()  # of the template, e.g. enable_thinking
    today: str | None = None  # the day a template may print, ISO 8601; None: whenever it is read
    temperature: Annotated[float, Between(0, 100)] = 0.0  # above 0: asked with top_p 1 as well
    logprobs: bool = True  # False: log-probabilities are not asked for, whatever the run file says
    stream: bool = False  # True: an event stream is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation on its way through a chat template, in the shapes that templates read."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template: str | None = None  # the text of another template; None: the model's own
    generation_prompt: bool = True  # whether the assistant's reply is begun
    settings: Mapping[str, bool | str] = field(default_factory=dict)
    today: str | None = None  # ISO 8601; None: the day of rendering


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One HTTP exchange, whatever came of it. A retry is another attempt."""

    probe_id: str
    number: Count  # 1 is the first attempt for this probe
    started_at: str  # UTC, ISO 8601
    elapsed_s: Seconds
    request: str  # the JSON body sent, without headers, so never a key
    status: Whole | None  # None: no HTTP response at all
    body: str  # response body, unpacked; a byte that is not UTF-8 is the surrogate U+DC80 + byte
    error: str | None  # the transport error, when there was no whole response
    headers: Mapping[str, str] = field(default_factory=dict)  # response headers that tell something
    dialect: str = "chat"  # how it was asked, see `dialects`
    first_s: Seconds | None = None  # until the first bytes of the body came; None: none did


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is noted of a request before it is sent."""

    of: str  # the file of the run folder that its attempt belongs to
    probe_id: str
    number: Count  # of the attempt
    sent_at: str  # UTC, ISO 8601
    max_tokens: Annotated[int, Between(0, 10**9)]  # completion tokens that it allows
    prompt_tokens: Annotated[int, Between(0, 10**9)]  # the most that its prompt can count


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A token the endpoint named, with the log-probability it claims (nats)."""

    token: str
    bytes: bytes | None  # None: the endpoint did not send them
    logprob: float
    token_id: int | None = None  # None: the endpoint did not send it


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedToken:
    """One position of the logprobs an endpoint returned."""

    chosen: Candidate
    top: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer, exactly as the endpoint gave it."""

    probe_id: str
    text: str
    finish_reason: str | None  # None: the endpoint sent none
    prompt_tokens: int | None  # None: the endpoint sent no usage
    completion_tokens: int | None
    logprobs: tuple[ReportedToken, ...] | None  # None: not returned, or not finite everywhere
    logprobs_problem: str | None  # why `logprobs` is None although they were asked for
    thought: str | None = None  # shown apart from the text, as it was generated; None: none was
    token_ids: tuple[int, ...] | None = None  # of all that was generated; None: not sent
    named: str | None = None  # the model that the endpoint says gave it; None: it does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A probe that got no usable answer. Counted in the report, never scored."""

    probe_id: str
    status: int | None  # None: no HTTP response at all
    reason: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotJudged:
    """An answer that says nothing about the weights (empty, refused, filtered)."""

    probe_id: str
    reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    counts_prompt: bool = False  # whether `prompt_tokens` is a count of what was rendered for it
    named: str | None = None  # the model that the endpoint says gave it; None: it does not say


Outcome = Reply | Failure | NotJudged


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Token ids to score by teacher forcing: log p(reply | prompt), position by position."""

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...] | None = None  # further ids to score, per position


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerRequest:
    """A sampled reply to score under many samplers, by the positions `kept` of it."""

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyScore:
    """What an engine says of one reply; every tuple has one entry per reply token (nats)."""

    logprobs: tuple[Nats, ...]
    ranks: tuple[Count, ...]  # 1 is the most likely token
    entropies: tuple[Nats, ...]  # exact, or a lower bound where an engine sees the k largest only
    top_ids: tuple[TokenId, ...]  # the most likely token at each position
    top_logprobs: tuple[tuple[Nats, ...], ...]  # the k largest, descending
    candidate_logprobs: tuple[tuple[Nats, ...], ...] | None  # parallel to `candidates`
    #: Whether fewer than the k largest are known than a normaliser needs: then a token speaks only
    #: among them, and one beyond has the rank k + 1. See `ledger.text_cells`.
    few: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """What to generate and how to sample. temperature 0 is greedy."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    seed: int | None = None  # None: the engine draws one
    top_logprobs: int = 0  # how many alternatives to return per position
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()  # added to the logits of tokens
    past_end: bool = False  # whether to run on past the end of the turn: a fault to serve
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    drop_best: float = 0.0  # how often the likeliest token is passed over: a fault to serve
    rare: float = 0.0  # how often any token at all is put in its place: a fault to serve


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an engine generated. `token_ids` ends with the end-of-turn token if it stopped there."""

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    logprobs: tuple[float, ...]  # of the chosen tokens, at temperature 1
    top: tuple[tuple[tuple[int, float], ...], ...]  # (id, logprob) per position; () when not asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the evidence says of one departure that the policy names, or of the best name."""

    aspect: str  # the name of one of `checks.ASPECTS`
    decision: Status
    name: str
    log_e: Nats | None  # natural log of the e-value for the departure; None: not run
    detail: str  # one readable sentence
    tokens_needed: Count | None  # further completion tokens to decide it; None: decided or unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """The logit-noise scale (logits, nats) with a confidence sequence at its stopping time."""

    estimate: Scale | None  # None: nothing was scored
    lower: Scale | None
    upper: Scale | None  # None: not bounded by this evidence
    level: Share  # coverage of the interval, e.g. 0.999
    equivalent: str  # the rounding it is equivalent to on this model
    honest: Scale  # the largest scale that honest serving reaches (calibrated)
    marks: tuple[tuple[str, Scale], ...]  # (variant or class, its own scale), ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitution:
    """How many of the replies come from something else than the published weights."""

    suspect: str  # a build, or "unknown": noise of any scale above the honest one
    share: Share  # of largest likelihood
    lower: Share  # confidence sequence at its stopping time
    upper: Share
    level: Share  # coverage of the interval, e.g. 0.95
    replies: tuple[tuple[str, Share], ...]  # probe and the probability that its reply is one
    #: Each suspect that all replies were scored under, with its own share, lower and upper.
    suspects: tuple[tuple[str, Share, Share, Share], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a greedy reply leaves what the published weights would have said there."""

    probe_id: str
    asked: str  # the end of the question
    position: Count  # of the token in the reply, from 0
    after: str  # the end of the reply up to there; "": this is its first token
    published: str | None  # the weights' own choice; None: they end the reply
    log_p_published: Nats  # under the published weights
    served: str | None  # what came; None: the reply ended
    log_p_served: Nats  # under the published weights too


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the ordinary replies look like beside the published weights: no test of its own."""

    log_e: Nats  # of all evidence, against honest serving, rounded down
    tokens: Count  # scored, of the ordinary replies
    differing: Count  # of these, where the weights' own choice is another
    #: How many would differ on average at these places, with the noise of the noisiest stack that
    #: was measured, and with the most that is held against nobody.
    honest: Annotated[float, Between(0, 10**15)]
    tolerated: Annotated[float, Between(0, 10**15)]
    worst: tuple[Place, ...]  # of replies, one of each; the least likely first


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """Earlier audits of the same endpoint, whose evidence a run goes on from."""

    report_sha256: str  # of the last one's report, as decided when this run was planned
    decisions: tuple[Decision, ...]  # of all of them, the first one first
    log_e: Nats  # of all of them together, against honest serving

    @property
    def audits(self) -> int:
        """How many there were."""
        return len(self.decisions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What a consistent verdict rests on, and how far it reaches."""

    #: Class of departures, and the share of requests that may have met it or worse at most.
    shares: tuple[tuple[str, Share], ...]
    level: Share  # coverage of each bound, at its stopping time
    replies: Count  # that the verdict rests on
    stop: Count  # replies before which none is given, drawn from the seed
    positions: Count  # tokens of a reply that were looked at, at most
    kinds: tuple[str, ...]  # of probes


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was asked and spent."""

    requests: Count  # sent, those without an answer on record among them
    replies: Count  # replies scored
    failures: Count  # probes without an answer
    not_judged: Count  # answers that say nothing about the weights
    prompt_tokens: Count
    completion_tokens: Count
    tokens_scored: Count
    tokens_left_out: Count  # ambiguous after re-tokenization
    cost_usd: Amount | None  # None: no prices were given


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A trusted endpoint that was asked the same probes, and what came of it."""

    base_url: str
    model: str
    finding: Literal["consistent", "inconsistent", "inconclusive", "failed", "pending"]
    summary: str  # one line: what was found, or why it could not be judged
    usage: Usage | None  # None: not judged
    replies: Count = 0  # that `text` is of
    #: Total log-likelihood of its replies at each scale of the text channel, read as calibrated;
    #: (): not kept, as in a report, or in a folder of an older version.
    text: tuple[Nats, ...] = ()
    noisier: Nats | None = None  # log e that the endpoint is noisier than it; None: not compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """When the probes of a run were asked, by the exchanges: UTC, ISO 8601, whole seconds."""

    first: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The verdict of one audit: everything `report.json` holds."""

    schema_version: Version
    decision: Decision
    summary: str  # one line: what was found
    findings: tuple[Finding, ...]
    noise_scale: NoiseScale
    usage: Usage
    notes: tuple[str, ...]  # what a reader must know: channels not run, shares not judged
    policy: str
    alpha: Share  # false-alarm rate of "inconsistent"
    beta: Share  # error rate of each exclusion
    signature: Annotated[dict[str, object], Plain()]
    capabilities: tuple[tuple[str, str], ...] = ()  # label and finding; (): not probed
    substitution: Substitution | None = None  # None: not asked for, and no cause to show it
    control: Control | None = None  # None: there is none
    certificate: Certificate | None = None  # None: it is not consistent
    asked: Asked | None = None  # None: nothing was, or an older version wrote it
    evidence: Evidence | None = None  # None: nothing was scored, or by an older version


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where one of several targets stands, or their control."""

    name: str
    base_url: str
    model: str
    decision: Decision | None  # None: not judged
    summary: str  # one line: its report's, or why it was not judged
    best_name: str | None  # for what was found; None: nothing was, or it has no name
    noise_scale: NoiseScale | None  # None: not judged
    log_e: Nats | None  # against honest serving, in nats, rounded down; None: not judged
    accusation: Literal["stands", "does not stand"] | None  # among all targets; None: none is made
    usage: Usage | None  # None: it was never planned
    asked: Asked | None = None  # None: nothing was


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Where all targets of a run file stand: everything `summary.json` holds."""

    schema_version: Version
    summary: str  # one line
    alpha: Share  # false-discovery rate of the accusations that stand
    log_e_needed: Nats  # for one more accusation to stand, in nats
    targets: tuple[Standing, ...]
    control: Standing | None  # None: there is none
    cost_usd: Amount | None  # of all; None: the prices of some are not known


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a record that holds no other, by name.

    As `asdict` has them, but not copied: of thousands of numbers that takes longer than all else.
    """
    return {one.name: getattr(record, one.name) for one in fields(record)}
