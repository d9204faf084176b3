"""Run files and policies: what the operator asked for, validated before anything is sent.

Reads the folder `configs/`. Holds no secrets: a key is named by its environment variable.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

import yaml
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
from verifier.folder import CONTROL, RESERVED, RUN
from verifier.shipped import shipped

T = TypeVar("T", bound=BaseModel)

#: What computes the reference's likelihoods; auto is vLLM on a GPU, else transformers.
EngineName = Literal["auto", "vllm", "transformers", "remote"]

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


def _without_secret(url: str) -> str:
    """Refuse a key in the URL here already: the run folder would keep it."""
    try:
        parts = urlsplit(url)
        has_secret = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:
        return url  # the endpoint says what is wrong with it
    if has_secret:
        raise PydanticCustomError(
            "secret",
            "must not hold a user name, a password, ? or #; a key is named by endpoint.api_key_env",
        )
    return url


def _variable(name: str) -> str:
    if not (name.isascii() and name.isidentifier()):
        raise PydanticCustomError(
            "secret",
            "expected the name of an environment variable: letters, digits and _; never the key",
        )
    return name


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_or_no(cls, value: object, info: ValidationInfo) -> object:
        takes = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and takes is not bool:  # pydantic would take yes for 1
            raise PydanticCustomError("bool", "takes no yes or no")
        return value


def _plain_header(name: str) -> str:
    if re.search(r"authorization|cookie|key|token|secret", name, re.IGNORECASE):
        raise PydanticCustomError(
            "secret", "a header that may hold a secret; a key is named by endpoint.api_key_env"
        )
    return name


class _HostFacts(_Section):
    """What a run file says of a host, and `configs/hosts.yaml` for the common ones."""

    base_url: Annotated[str, AfterValidator(_without_secret)] | None = None
    api_key_env: Annotated[str, AfterValidator(_variable)] | None = None
    api_key_file: Path | None = None  # a file that holds the key alone, outside the run folder
    dialect: Literal["chat", "completions", "messages", "responses"] = "chat"
    logprobs_form: Literal["boolean", "integer"] = "boolean"
    most_top_logprobs: Annotated[int, Field(ge=0, le=20)] = 20
    extra_body: dict[str, Any] = {}  # further fields of every request
    headers: dict[Annotated[str, AfterValidator(_plain_header)], str] = {}  # and headers
    router: bool = False  # passes questions on; `provider` says to whom


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
                "host: no host {name}; there are {known}",
                {"name": repr(name[:40]), "known": ", ".join(presets)},
            )
        known = presets[name].model_dump(exclude={"sources"}, exclude_defaults=True)
        return known | {key: value for key, value in raw.items() if value is not None}

    @model_validator(mode="after")
    def _pin_the_host(self) -> Self:
        if self.api_key_env and self.api_key_file:
            raise PydanticCustomError(
                "value_error", "api_key_file: give the key's variable or its file, not both"
            )
        if self.router and not self.provider:
            raise PydanticCustomError(
                "value_error",
                "provider: missing; a router passes questions on, so name the one host to ask",
            )
        if self.provider and not self.router:
            raise PydanticCustomError("value_error", "provider: only a router takes one")
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
    """What to hold the endpoint to."""

    card: str
    engine: EngineName = "auto"
    weights: Path | None = None  # a directory that already holds the card's weights
    dtype: Dtype = "auto"
    engine_args: dict[str, Any] = {}  # passed to vLLM as they are, over the card's own
    url: Annotated[str, AfterValidator(_without_secret)] | None = None  # of the remote engine
    url_key_env: Annotated[str, AfterValidator(_variable)] | None = None
    hardware: Hardware | None = None  # None: nothing is refused for want of memory
    suspects: tuple[Suspect, ...] = ()  # other models that the replies are compared with


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
    min_replies: Annotated[int, Field(ge=5)] = 10
    kinds: tuple[str, ...] | None = None  # kinds of probes; None: all
    template_settings: dict[str, bool | str] = {}  # of every probe, e.g. enable_thinking
    sampler: bool = False  # ask some probes at temperature 1, and judge how they are sampled
    vary: bool = False  # ask with and without log-probabilities, streams, short and long, at random
    context: Annotated[int, Field(ge=256, le=2_000_000)] | None = None  # window held to, in tokens
    output: Annotated[int, Field(ge=64, le=100_000)] | None = None  # tokens of a reply held to
    capabilities: bool = False  # find out what the endpoint can do, before the first probe
    #: The longest that one command may take, in seconds, or as text such as 6h.
    deadline: Annotated[float, BeforeValidator(_seconds), Field(ge=60, le=30 * 86_400)] = 21_600.0


class RunFile(_Section):
    """One reproducible run."""

    endpoint: EndpointSection
    reference: ReferenceSection
    audit: AuditSection = AuditSection()
    prices: Prices | None = None
    out: Path


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
    out: Path

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.endpoint is None) == (self.targets is None):
            raise PydanticCustomError(
                "value_error", "give endpoint or targets, exactly one of the two"
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
        return self._of(self.control.endpoint, prices, out=self.out / CONTROL)

    @property
    def every_run_file(self) -> dict[str, RunFile]:
        """Those of the targets, then the control's under its own name."""
        control = self.control_file
        return self.run_files | ({} if control is None else {CONTROL: control})

    def _of(self, endpoint: EndpointSection, prices: Prices | None, *, out: Path) -> RunFile:
        return RunFile(
            endpoint=endpoint, reference=self.reference, audit=self.audit, prices=prices, out=out
        )


def load_run_file(path: Path) -> RunFile:
    """The run file of one endpoint. Raises ConfigError that names file, key and what is wrong."""
    raw = _read_run_file(path)
    for key in ("targets", "control"):
        if raw.get(key) is not None:
            raise ConfigError(
                f"{path}: {key}: this command takes one endpoint; run `verifier plan` on this run "
                f"file, and give the {RUN} of one of the run folders that it writes"
            )
    rest = {key: value for key, value in raw.items() if key not in ("targets", "control")}
    return validated(RunFile, rest, where=str(path))


def load_fleet(path: Path) -> Fleet:
    """A run file of any kind. Raises ConfigError that names the file, the key and what is wrong."""
    return validated(Fleet, _read_run_file(path), where=str(path))


def _read_run_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: {'is not a' if path.exists() else 'no such'} run file")
    return _read_yaml(path)


def dump_run_file(config: RunFile | Fleet) -> str:
    """The run file with every default written out; loading it gives it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_policies() -> dict[str, Policy]:
    """The policies that ship, by name."""
    path = shipped("configs") / POLICIES
    return {
        str(name): validated(Policy, raw, where=f"{path}: {name}")
        for name, raw in _read_yaml(path).items()
    }


@cache
def load_hosts() -> dict[str, HostPreset]:
    """What is known of the common hosts, by name."""
    path = shipped("configs") / HOSTS
    return {
        str(name): validated(HostPreset, raw, where=f"{path}: {name}")
        for name, raw in _read_yaml(path).items()
    }


def resolve_policy(asked: str | Policy) -> tuple[str, Policy]:
    """Name and content of a policy. Raises ConfigError for an unknown name."""
    if isinstance(asked, Policy):
        return "custom", asked
    policies = load_policies()
    if asked not in policies:
        raise ConfigError(
            f"audit.policy: no policy {asked!r}; there are {', '.join(policies)}, or write out "
            "noise, builds and routed"
        )
    return asked, policies[asked]


def validated(kind: type[T], raw: object, *, where: str) -> T:
    """A checked record. Raises ConfigError for the first key that is wrong."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, known = _place(kind, first["loc"], first["type"])
        match first["type"]:
            case "extra_forbidden":
                complaint = f"unknown key; known are {', '.join(known)}"
            case "missing":
                complaint = "missing; add it"
            case "secret" | "value_error":  # what was got is not shown
                complaint = first["msg"].removeprefix("Value error, ")
            case _:
                wrong = first["msg"].replace("Input should be", "expected")
                wrong = wrong.replace("a valid tuple", "a list")
                complaint = f"{wrong}; got {reprlib.repr(first['input'])[:80]}"
        raise ConfigError(f"{where}: {key or 'the whole file'}: {complaint}") from error


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
        steps.append(str(step))
    names = dict.fromkeys(name for model in here for name in model.model_fields)
    return ".".join(steps), list(names)


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


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: YAML would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen: set[str] = set()
        for key in keys:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        # without the text around it, where a key may stand
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigError(f"{path}: not YAML ({error.problem}{line})") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        got = "nothing" if raw is None else type(raw).__name__
        raise ConfigError(f"{path}: expected keys and values, got {got}")
    return raw
