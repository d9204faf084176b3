"""Run files and policies: what the operator asked for, validated before anything is sent.

Reads the folder `configs/`. Holds no secrets: a key is named by its environment variable.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from verifier.errors import ConfigError
from verifier.files.run_folder import CONTROL, RESERVED, RUN
from verifier.files.strict_yaml import dump_yaml, read_yaml
from verifier.safety.secret import is_key, looks_like_key, names_a_secret, shows_a_key
from verifier.shipped import shipped
from verifier.wording import did_you_mean

T = TypeVar("T", bound=BaseModel)

#: What computes the reference's likelihoods; auto is vLLM on a GPU, else transformers.
EngineName = Literal["auto", "vllm", "transformers", "remote", "echo"]

#: Those that ask a server of someone else's: the weights are not on this machine.
ELSEWHERE: Final[tuple[EngineName, ...]] = ("remote", "echo")

#: Precision of an engine's arithmetic; auto: float32 for transformers, as published for vLLM.
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

#: A commit of a repository on the hub.
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
#: owner/name on the hub.
Repo = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]

#: What a suspect is to the published model.
Relation = Literal[
    "base", "instruct", "older", "newer", "another size", "fine-tune", "pruned", "merged",
    "another family",
]  # fmt: skip

POLICIES = "policies.yaml"
HOSTS = "hosts.yaml"


#: What a wrong URL is told; the URL itself is not shown, for a key may stand anywhere in it.
_A_URL = "expected http(s)://host/path, usually ending in /v1"


def _without_secret(url: str) -> str:
    """Refuse a key in the URL here already: the run folder would keep it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises when it is no port
        has_secret = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:
        raise PydanticCustomError("secret", f"{_A_URL}; it cannot be read") from None
    if has_secret:
        raise PydanticCustomError(
            "secret",
            "must not hold a user name, a password, ? or #; a key is named by endpoint.api_key_env",
        )
    return url


def _of_http(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise PydanticCustomError("secret", _A_URL)
    return url


def _variable(name: str) -> str:
    if not (name.isascii() and name.isidentifier()):
        raise PydanticCustomError(
            "secret",
            "expected the name of an environment variable: letters, digits and _; never the key",
        )
    if looks_like_key(name):
        raise PydanticCustomError(
            "secret", "looks like a key; name the environment variable that holds it instead"
        )
    return name


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_or_no(cls, value: object, info: ValidationInfo) -> object:
        takes = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (takes, *get_args(takes)):  # yes would be 1
            raise PydanticCustomError("bool", "takes no yes or no")
        return value


#: Headers that say how a request is framed, or what travels in it: those are ours to write.
_FRAMING = frozenset({
    "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect",
    "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip


def _header(name: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", name):
        raise PydanticCustomError("secret", "expected the name of a header: letters, digits and -")
    if name.lower() in _FRAMING:
        raise PydanticCustomError(
            "secret", "frames the request, and is written by the verifier alone; take it out"
        )
    return name


def _plain_header(name: str) -> str:
    _header(name)
    if names_a_secret(name):
        raise PydanticCustomError(
            "secret",
            "a header that may hold a secret; a key is named by endpoint.api_key_env, and its "
            "header by endpoint.api_key_header",
        )
    return name


def _key_header(name: str) -> str:
    if looks_like_key(name):
        raise PydanticCustomError(
            "secret", "looks like a key; name the header, and the key's variable in api_key_env"
        )
    return _header(name)


def _header_value(value: str) -> str:
    if not re.fullmatch(r"[\t -~]{0,4000}", value):
        raise PydanticCustomError("secret", "expected a header's text: plain ASCII on one line")
    if is_key(value):
        raise PydanticCustomError(
            "secret", "looks like a key; a key is named by endpoint.api_key_env"
        )
    return value


def _plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse what JSON has not: it would be found out only when it is sent."""
    if not _is_plain(values):
        raise PydanticCustomError(
            "secret", "expected what JSON has: texts, finite numbers, yes or no, lists and sections"
        )
    return values


def _is_plain(value: object) -> bool:
    match value:
        case dict():
            known = all(isinstance(key, str | int) for key in value)
            return known and all(map(_is_plain, value.values()))
        case list() | tuple():
            return all(map(_is_plain, value))
        case float():
            return math.isfinite(value)
    return value is None or isinstance(value, str | int)


def _without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse a field whose name or text says that it is a key: the run folder would keep it."""
    found = _secret_in(values, described=False)
    if found is not None:
        raise PydanticCustomError(
            "secret",
            "{name} may hold a secret; a key is named by endpoint.api_key_env",
            {"name": "a field" if looks_like_key(found) else repr(found[:40])},
        )
    return values


def _secret_in(value: object, *, described: bool, at: str = "a value") -> str | None:
    """The name of the first field that may hold a secret; `described`: names of a JSON schema."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = str(key)
            is_section = described and isinstance(inner, dict)
            if not is_section and inner not in (None, False, True) and names_a_secret(name):
                return name
            found = _secret_in(inner, described=name in _DESCRIBING, at=name)
            if found is not None:
                return found
    if isinstance(value, list | tuple):
        return next(filter(None, (_secret_in(v, described=False, at=at) for v in value)), None)
    return at if isinstance(value, str) and is_key(value) else None


#: Under these a JSON schema describes fields, and holds none.
_DESCRIBING = ("properties", "patternProperties", "$defs", "definitions")

PlainValues = Annotated[dict[str, Any], AfterValidator(_plain_values)]


class _HostFacts(_Section):
    """What a run file says of a host, and `configs/hosts.yaml` for the common ones."""

    base_url: Annotated[str, AfterValidator(_without_secret)] | None = None
    api_key_env: Annotated[str, AfterValidator(_variable)] | None = None
    api_key_file: Path | None = None  # a file that holds the key alone, outside the run folder
    #: The header that carries the key, as it is; None: as the dialect sends it.
    api_key_header: Annotated[str, AfterValidator(_key_header)] | None = None
    dialect: Literal["chat", "completions", "messages", "responses"] = "chat"
    logprobs_form: Literal["boolean", "integer"] = "boolean"
    most_top_logprobs: Annotated[int, Field(ge=0, le=20)] = 20
    #: What a chat's limit is called; None: max_tokens, or the other name where that is refused.
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    extra_body: Annotated[PlainValues, AfterValidator(_without_secrets)] = {}  # of every request
    headers: dict[
        Annotated[str, AfterValidator(_plain_header)],
        Annotated[str, AfterValidator(_header_value)],
    ] = {}  # and of every request, too
    router: bool = False  # passes questions on; `provider` says to whom


def _same_host(one: str, other: str) -> bool:
    """Whether two URLs lead to one host, by the same scheme and port."""
    try:
        parts = [urlsplit(url.strip().lower()) for url in (one, other)]
        ports = {part.port or {"http": 80, "https": 443}.get(part.scheme) for part in parts}
    except ValueError:
        return False
    return len(ports) == len({(part.scheme, part.hostname) for part in parts}) == 1


class HostPreset(_HostFacts):
    """What is known of a common host, with where each fact was read."""

    sources: Annotated[tuple[str, ...], Field(min_length=1)]


class EndpointSection(_HostFacts):
    """Where to ask. `api_key_env` names the variable that holds the key.

    With a `host` of `configs/hosts.yaml`, what is known of it stands where nothing else is said.
    """

    host: str | None = None
    base_url: Annotated[str, AfterValidator(_without_secret)]
    model: str
    provider: str | None = None  # a router's host, and the only one whose answers count
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    connect_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    read_timeout_s: Annotated[float, Field(gt=0)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 8
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    stream: bool = False
    ca_file: Path | None = None  # PEM; its certificates alone are trusted. None: the system's
    client_certificate: Path | None = None  # PEM
    client_key: Path | None = None  # PEM, outside the run folder. None: beside the certificate

    @model_validator(mode="before")
    @classmethod
    def _know_the_host(cls, raw: Any) -> Any:
        name = raw.get("host") if isinstance(raw, dict) else None
        if not isinstance(name, str):
            return raw
        presets = load_hosts()
        if name not in presets:
            raise PydanticCustomError(
                "value_error",
                "host: no host {name}; there are {known}{meant}",
                {
                    "name": repr(name[:40]),
                    "known": ", ".join(presets),
                    "meant": did_you_mean(name, presets),
                },
            )
        known = presets[name].model_dump(exclude={"sources"}, exclude_defaults=True)
        if raw.get("api_key_file") is not None and raw.get("api_key_env") is None:
            known.pop("api_key_env", None)  # the file stands for the variable of the preset
        base_url = raw.get("base_url")
        if isinstance(base_url, str) and not _same_host(base_url, str(known.get("base_url"))):
            variable = known.pop("api_key_env", None)
            if variable and not raw.keys() & {"api_key_env", "api_key_file"}:
                raise PydanticCustomError(
                    "value_error",
                    "api_key_env: missing; {variable} is for the host {name} alone, and base_url "
                    "is of another; name the variable of its key, or null where it asks for none",
                    {"variable": variable, "name": name},
                )
        return known | {key: value for key, value in raw.items() if value is not None}

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.api_key_env and self.api_key_file:
            raise PydanticCustomError(
                "value_error", "api_key_file: give the key's variable or its file, not both"
            )
        if self.api_key_header and not (self.api_key_env or self.api_key_file):
            raise PydanticCustomError(
                "value_error", "api_key_header: needs a key; name its variable in api_key_env"
            )
        if (self.api_key_header or "").lower() in {name.lower() for name in self.headers}:
            raise PydanticCustomError(
                "value_error", "api_key_header: stands among the headers too; take it out there"
            )
        if self.client_key and not self.client_certificate:
            raise PydanticCustomError(
                "value_error", "client_certificate: missing; client_key is the key of one"
            )
        if self.max_tokens_field and self.dialect != "chat":
            raise PydanticCustomError(
                "value_error", "max_tokens_field: only chats have two names for it; take it out"
            )
        if self.router and not self.provider:
            raise PydanticCustomError(
                "value_error",
                "provider: missing; a router passes questions on, so name the one host to ask",
            )
        if self.provider and not self.router:
            raise PydanticCustomError(
                "value_error",
                "provider: only a router takes one; leave it out, or name the router as host",
            )
        return self


class Prices(_Section):
    """USD per million tokens."""

    prompt: Annotated[float, Field(ge=0, le=1e9)]
    completion: Annotated[float, Field(ge=0, le=1e9)]


class TargetSection(EndpointSection):
    """One of several endpoints: its own prices come before the run file's."""

    prices: Prices | None = None

    @property
    def endpoint(self) -> EndpointSection:
        """Where to ask, less what it costs."""
        return EndpointSection.model_validate(self.model_dump(exclude={"prices"}))


class Hardware(_Section):
    """The GPUs that the reference will run on, so that `verifier plan` can say what fits."""

    gpus: Annotated[int, Field(ge=1)]  # of one machine
    memory_gib: Annotated[float, Field(gt=0)]  # of one GPU
    nodes: Annotated[int, Field(ge=1)] = 1  # machines


class Checkpoint(_Section):
    """Weights that may be served in the place of the published ones: a column of their own."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    repo: Repo | None = None
    revision: Revision | None = None
    path: Path | None = None  # a directory; in a card relative to it

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if (self.repo is None) == (self.path is None):
            raise ValueError("names a repo or a path, one of them")
        if self.path is not None and self.revision is not None:
            raise ValueError("a path has no revision")
        return self


class Suspect(Checkpoint):
    """Another model that a host may serve: it may have a tokenizer and a template of its own."""

    relation: Relation | None = None  # None: not said

    @property
    def title(self) -> str:
        """What it is, in words; where it lies here is nobody else's business."""
        where = "" if self.repo is None else f"{self.repo}@{self.revision or 'newest'}"
        return ", ".join(part for part in (self.relation, where) if part) or "another model"


class ReferenceSection(_Section):
    """What to hold the endpoint to: a card's weights, a pack of what some said, or both."""

    card: str  # "": the pack has its own
    #: A file that `verifier pack make` wrote: no weights are needed. With a card half of the
    #: questions are the pack's, and the weights judge all of them.
    pack: Path | None = None
    pack_key: Path | None = None  # PEM: the public key that must have signed the pack
    engine: EngineName = "auto"
    weights: Path | None = None  # a directory that already holds the card's weights
    dtype: Dtype = "auto"
    engine_args: PlainValues = {}  # passed to vLLM as they are, over the card's own
    # of the engines remote and echo
    url: Annotated[str, AfterValidator(_without_secret), AfterValidator(_of_http)] | None = None
    url_key_env: Annotated[str, AfterValidator(_variable)] | None = None
    url_model: Annotated[str, Field(min_length=1)] | None = None  # None: the only one there
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None  # of the CPU; None: a fair share
    hardware: Hardware | None = None  # None: nothing is refused for want of memory
    suspects: tuple[Suspect, ...] = ()  # other models that the replies are compared with

    @model_validator(mode="before")
    @classmethod
    def _pack_has_a_card(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("pack") is None:
            return raw
        return {"card": ""} | {key: value for key, value in raw.items() if value is not None}

    @model_validator(mode="after")
    def _is_weights_or_pack(self) -> Self:
        if self.pack is None:
            if self.pack_key is not None:
                raise PydanticCustomError("value_error", "pack_key: without a pack; give both")
            return self
        beside = {
            "weights": self.weights is not None, "url": self.url is not None,
            "suspects": bool(self.suspects),
        }  # fmt: skip
        taken = next((name for name, given in beside.items() if given), None)
        if taken is not None and not self.card:
            raise PydanticCustomError(
                "value_error",
                "{name}: beside a pack alone, which has no weights; name their card too, or leave "
                "it out",
                {"name": taken},
            )
        return self

    @property
    def has_weights(self) -> bool:
        """Whether weights judge the replies; else a pack does."""
        return bool(self.card)


class Policy(_Section):
    """The departures that a consistent verdict must exclude.

    `noise` are classes of the card's calibration, excluded by the bound on the noise scale;
    `builds` are exact builds of the card's bank, or ["all"], each tested by its own column;
    `routed` are classes of the calibration with the share of requests, as a fraction, above which a
    model of that class or worse must not have answered.
    """

    noise: tuple[str, ...]
    builds: tuple[str, ...] = ()
    routed: dict[str, Annotated[float, Field(gt=0, lt=1)]] = {}


def _seconds(value: object) -> object:
    """A span of time such as 90m, in seconds; anything else as it is."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smhd]?)\s*", value, re.ASCII)
    if found is None:
        raise PydanticCustomError(
            "value_error", "expected a span of time such as 90m, 2h or 45s, or seconds"
        )
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}[found[2]]


def _form_of_policy(value: object) -> str:
    return "written out" if isinstance(value, dict | Policy) else "name"


#: The fewest replies before "consistent" where the run file says none.
LEAST_REPLIES: Final = 10


class AuditSection(_Section):
    """How to ask and how sure to be."""

    policy: Annotated[
        Annotated[str, Tag("name")] | Annotated[Policy, Tag("written out")],
        Discriminator(_form_of_policy),
    ] = "screen"
    alpha: Annotated[float, Field(ge=1e-9, lt=0.5)] = 0.001
    beta: Annotated[float, Field(ge=1e-9, lt=0.5)] = 0.001
    seed: Annotated[int, Field(ge=0)] | None = None  # None: drawn, kept secret until the report
    budget_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 6000
    budget_usd: Annotated[float, Field(gt=0)] | None = None  # None: bounded by tokens alone
    max_tokens: Annotated[int, Field(ge=8, le=4096)] = 48
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 5
    #: Before "consistent" may be said; None: drawn from the seed, LEAST_REPLIES or more.
    min_replies: Annotated[int, Field(ge=5)] | None = None
    after: Path | None = (
        None  # the run folder of an earlier audit, whose evidence this goes on from
    )
    kinds: tuple[str, ...] | None = None  # kinds of probes; None: all
    template_settings: dict[str, bool | str] = {}  # of every probe, e.g. enable_thinking
    sampler: bool = False  # ask some probes at temperature 1, and judge how they are sampled
    vary: bool = False  # ask with and without log-probabilities, streams, short and long, at random
    context: Annotated[int, Field(ge=256, le=2_000_000)] | None = None  # window held to, in tokens
    output: Annotated[int, Field(ge=64, le=100_000)] | None = None  # tokens of a reply held to
    streaming: bool = False  # ask a few questions as streams and whole, and compare the answers
    #: Offer tools with some questions; None: where the card says that its template shows them.
    tools: bool | None = None
    speed: bool = False  # tell how fast the endpoint answered, and what it billed
    capabilities: bool = False  # find out what the endpoint can do, before the first probe
    #: The longest that one command may take, in seconds, or as text such as 6h.
    deadline: Annotated[
        float,
        Field(ge=60, le=30 * 86_400),
        BeforeValidator(_seconds, json_schema_input_type=float | str),
    ] = 21_600.0

    @property
    def least_replies(self) -> int:
        """The fewest replies on which "consistent" may be said."""
        return LEAST_REPLIES if self.min_replies is None else self.min_replies


def _printable(path: Path) -> Path:
    if not str(path).isprintable():
        raise PydanticCustomError("secret", "expected a folder whose name can be printed")
    return path


class RunFile(_Section):
    """One reproducible run."""

    endpoint: EndpointSection
    reference: ReferenceSection
    audit: AuditSection = AuditSection()
    prices: Prices | None = None
    out: Annotated[Path, AfterValidator(_printable)]


def _folder_names(targets: dict[str, T]) -> dict[str, T]:
    """Each names a folder: safe in a path, alone on any file system, no other file of `out`."""
    if not targets:
        raise PydanticCustomError("value_error", "names no endpoint; add one")
    seen: dict[str, str] = {}
    for name in targets:
        shown = repr(name[:40])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise PydanticCustomError(
                "value_error",
                "{name} cannot name a folder; take letters, digits and . _ -",
                {"name": shown},
            )
        folded = name.casefold()
        if folded.removesuffix(".partial") in RESERVED:
            raise PydanticCustomError(
                "value_error",
                "{name} names something else in the folder; take another name",
                {"name": shown},
            )
        if folded in seen:
            raise PydanticCustomError(
                "value_error",
                "{name} and {other} differ in case alone; take another name",
                {"name": shown, "other": repr(seen[folded][:40])},
            )
        seen[folded] = name
    return targets


class Fleet(_Section):
    """A run file of any kind: one endpoint or several, perhaps beside a control."""

    endpoint: EndpointSection | None = None
    targets: Annotated[dict[str, TargetSection], AfterValidator(_folder_names)] | None = None
    control: TargetSection | None = None  # a trusted endpoint, asked the same
    reference: ReferenceSection
    audit: AuditSection = AuditSection()
    prices: Prices | None = None
    out: Annotated[Path, AfterValidator(_printable)]

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.endpoint is None) == (self.targets is None):
            raise PydanticCustomError(
                "value_error", "give endpoint or targets, exactly one of the two"
            )
        if self.targets is not None and self.audit.after is not None:
            raise PydanticCustomError(
                "value_error", "audit.after: an earlier audit is of one endpoint; leave out targets"
            )
        return self

    @property
    def run_files(self) -> dict[str, RunFile]:
        """Each target's own run file, by its name; of a sole endpoint, it has none: ""."""
        if self.targets is None:
            assert self.endpoint is not None
            return {"": self._of(self.endpoint, self.prices, out=self.out)}
        return {
            name: self._of(target.endpoint, target.prices or self.prices, out=self.out / name)
            for name, target in self.targets.items()
        }

    @property
    def control_file(self) -> RunFile | None:
        """The control's own run file."""
        if self.control is None:
            return None
        prices = self.control.prices or self.prices
        made = self._of(self.control.endpoint, prices, out=self.out / CONTROL)
        return made.model_copy(update={"audit": made.audit.model_copy(update={"after": None})})

    @property
    def every_run_file(self) -> dict[str, RunFile]:
        """Those of the targets, then the control's under its own name."""
        control = self.control_file
        return self.run_files | ({} if control is None else {CONTROL: control})

    def _of(self, endpoint: EndpointSection, prices: Prices | None, *, out: Path) -> RunFile:
        return RunFile(
            endpoint=endpoint, reference=self.reference, audit=self.audit, prices=prices, out=out
        )


def load_run_file(
    path: Path, *, below: Path | None = None, defaults: Mapping[str, Any] | None = None
) -> RunFile:
    """The run file of one endpoint; with `below`, no link is followed under that run folder.

    `defaults` stand for what the file leaves out of what every other command needs.
    Raises ConfigError that names file, key and what is wrong.
    """
    raw = read_run_file(path, below=below)
    for key in ("targets", "control"):
        if raw.get(key) is not None:
            raise ConfigError(
                f"{path}: {key}: this command takes one endpoint; run `verifier plan` on this run "
                f"file, and give the {RUN} of one of the run folders that it writes"
            )
    rest = {key: value for key, value in raw.items() if key not in ("targets", "control")}
    return validated(RunFile, {**(defaults or {}), **rest}, where=str(path))


def load_fleet(path: Path, *, below: Path | None = None) -> Fleet:
    """A run file of any kind; with `below`, no link is followed under that run folder.

    Raises ConfigError that names the file, the key and what is wrong.
    """
    return validated(Fleet, read_run_file(path, below=below), where=str(path))


def example_run_file(*, targets: bool) -> str:
    """A run file with a word on every key, of one endpoint or of several `targets`."""
    text = (shipped("configs") / ("targets.yaml" if targets else "example.yaml")).read_text("utf-8")
    lines = [line for line in text.splitlines() if "yaml-language-server" not in line]
    return "\n".join(lines) + "\n"


def read_run_file(path: Path, *, below: Path | None = None) -> dict[str, Any]:
    """What a run file says, before any of it is checked. Raises ConfigError when it is no YAML."""
    if not path.is_file() and not path.is_symlink():
        raise ConfigError(f"{path}: {'is not a' if path.exists() else 'no such'} run file")
    return _read_keys(path, below=below)


def dump_run_file(config: RunFile | Fleet) -> str:
    """The run file with every default written out; loading it gives it back."""
    return dump_yaml(config.model_dump(mode="json"))


def load_policies() -> dict[str, Policy]:
    """The policies that ship, by name."""
    path = shipped("configs") / POLICIES
    return {
        str(name): validated(Policy, raw, where=f"{path}: {name}")
        for name, raw in _read_keys(path).items()
    }


@cache
def load_hosts() -> dict[str, HostPreset]:
    """What is known of the common hosts, by name."""
    path = shipped("configs") / HOSTS
    return {
        str(name): validated(HostPreset, raw, where=f"{path}: {name}")
        for name, raw in _read_keys(path).items()
    }


def resolve_policy(asked: str | Policy) -> tuple[str, Policy]:
    """Name and content of a policy. Raises ConfigError for an unknown name."""
    if isinstance(asked, Policy):
        return "custom", asked
    policies = load_policies()
    if asked not in policies:
        raise ConfigError(
            f"audit.policy: no policy {asked!r}; there are {', '.join(policies)}, or write out "
            f"noise, builds and routed{did_you_mean(asked, policies)}"
        )
    return asked, policies[asked]


def validated(kind: type[T], raw: object, *, where: str) -> T:
    """A checked record. Raises ConfigError for the first key that is wrong."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = _first_told(error.errors(include_url=False))
        key, known = _place(kind, first["loc"], first["type"])
        match first["type"]:
            case "extra_forbidden":
                meant = did_you_mean(key.rpartition(".")[2], known)
                complaint = f"unknown key; known are {', '.join(known)}{meant}"
            case "missing":
                complaint = "missing; add it"
            case "secret" | "value_error":  # what was got is not shown
                complaint = first["msg"].removeprefix("Value error, ")
            case _:
                wrong = first["msg"].replace("Input should be", "expected")
                wrong = wrong.replace("a valid tuple", "a list")
                complaint = f"{wrong}{_got(key, first['input'])}"
        raise ConfigError(f"{where}: {key or 'the whole file'}: {complaint}") from error


def _first_told(errors: list[Any]) -> Any:
    """The first error; of a section that lacks a key, the key that it does not know, if it has one:
    that is likely the same one, misspelled."""
    first = errors[0]
    if first["type"] != "missing":
        return first
    unknown = (e for e in errors if e["type"] == "extra_forbidden")
    return next((e for e in unknown if e["loc"][:-1] == first["loc"][:-1]), first)


def _got(key: str, value: object) -> str:
    """What came, where no key can have been pasted."""
    where = key.split(".")
    if any("key" in step or step in ("base_url", "url", "headers", "extra_body") for step in where):
        return ""
    shown = reprlib.repr(value)[:80]
    return "" if shows_a_key(shown) else f"; got {shown}"


def _place(kind: type[BaseModel], loc: tuple[int | str, ...], wrong: str) -> tuple[str, list[str]]:
    """The key that pydantic complains of, as the file spells it, and the keys that may stand there.

    Pydantic also counts the members of a union as steps; a file has no such keys.
    """
    steps: list[str] = []
    here: list[type[BaseModel]] = [kind]
    strange = len(loc) - 1 if wrong in ("extra_forbidden", "invalid_key") else None
    named = False
    for number, step in enumerate(loc):
        fields = {name: field for model in here for name, field in model.model_fields.items()}
        if named:
            named = False  # the file chose this key
        elif step in fields:
            here = list(_models_in(fields[str(step)].annotation))
            named = _is_by_name(fields[str(step)].annotation)
        elif here and number != strange:
            continue  # which member of a union was tried
        steps.append(_spelled(str(step)))
    names = dict.fromkeys(name for model in here for name in model.model_fields)
    return ".".join(steps), list(names)


def _spelled(step: str) -> str:
    """A key of a file on one line, unless somebody pasted another kind of key there."""
    if looks_like_key(step):
        return "(a key)"
    return step[:100] if step.isprintable() else ascii(step[:100])


def _is_by_name(annotation: object) -> bool:
    """Whether a value of this type holds records under names of the file's own."""
    if get_origin(annotation) is dict:
        return any(True for _ in _models_in(annotation))
    return any(_is_by_name(part) for part in get_args(annotation))


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The records that a value of this type may be made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _read_keys(path: Path, *, below: Path | None = None) -> dict[str, Any]:
    raw = read_yaml(path, below=below)
    if not isinstance(raw, dict):
        got = "nothing" if raw is None else type(raw).__name__
        raise ConfigError(f"{path}: expected keys and values, got {got}")
    return raw
