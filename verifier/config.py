"""Run files and policies: what the operator asked for, validated before anything is sent.

Reads the folder `configs/`. Holds no secrets: a key is named by its environment variable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verifier.errors import ConfigError
from verifier.shipped import shipped

T = TypeVar("T", bound=BaseModel)

POLICIES = "policies.yaml"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointSection(_Section):
    """Where to ask. `api_key_env` names the variable that holds the key."""

    base_url: str
    model: str
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 4
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None


class ReferenceSection(_Section):
    """What to hold the endpoint to."""

    card: str
    weights: Path | None = None  # a directory that already holds the card's weights
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class Policy(_Section):
    """The departures that a consistent verdict must exclude.

    `noise` are classes of the card's calibration, excluded by the bound on the noise scale;
    `builds` are exact builds of the card's bank, or ["all"], each tested by its own column.
    """

    noise: tuple[str, ...]
    builds: tuple[str, ...] = ()


class AuditSection(_Section):
    """How to ask and how sure to be."""

    policy: str | Policy = "screen"
    alpha: Annotated[float, Field(ge=1e-9, lt=0.5)] = 0.001
    beta: Annotated[float, Field(ge=1e-9, lt=0.5)] = 0.001
    seed: Annotated[int, Field(ge=0)] | None = None  # None: drawn, kept secret until the report
    budget_completion_tokens: Annotated[int, Field(ge=1)] = 6000
    max_tokens: Annotated[int, Field(ge=8, le=4096)] = 48
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 5
    min_replies: Annotated[int, Field(ge=5)] = 10
    kinds: tuple[str, ...] | None = None  # kinds of probes; None: all


class Prices(_Section):
    """USD per million tokens."""

    prompt: Annotated[float, Field(ge=0)]
    completion: Annotated[float, Field(ge=0)]


class RunFile(_Section):
    """One reproducible run."""

    endpoint: EndpointSection
    reference: ReferenceSection
    audit: AuditSection = AuditSection()
    prices: Prices | None = None
    out: Path


def load_run_file(path: Path) -> RunFile:
    """A run file. Raises ConfigError that names the file, the key and what is wrong."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such run file")
    return validated(RunFile, _read_yaml(path), where=str(path))


def dump_run_file(config: RunFile) -> str:
    """The run file with every default written out; `load_run_file` gives it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_policies() -> dict[str, Policy]:
    """The policies that ship, by name."""
    path = shipped("configs") / POLICIES
    return {
        str(name): validated(Policy, raw, where=f"{path}: {name}")
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
            "noise and builds"
        )
    return asked, policies[asked]


def validated(kind: type[T], raw: object, *, where: str) -> T:
    """A checked record. Raises ConfigError for the first key that is wrong."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"]) or "the whole file"
        match first["type"]:
            case "extra_forbidden":
                known = ", ".join(_keys_beside(kind, first["loc"]))
                raise ConfigError(f"{where}: {key}: unknown key; known are {known}") from error
            case "missing":
                raise ConfigError(f"{where}: {key}: missing; add it") from error
            case _:
                got = repr(first["input"])[:80]
                raise ConfigError(f"{where}: {key}: {first['msg']}; got {got}") from error


def _keys_beside(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that may stand where an unknown one stood."""
    fields: Any = kind.model_fields
    for step in loc[:-1]:
        section = fields[step].annotation if step in fields else None
        fields = getattr(section, "model_fields", {})
    return list(fields)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(raw).__name__}")
    return raw
