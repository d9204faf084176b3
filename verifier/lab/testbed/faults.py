"""Faults by name: what a testbed host serves in the place of what was published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from verifier.errors import ConfigError
from verifier.evidence.samplers import read_sampler
from verifier.lab.testbed.behaviours import KINDS, PLAIN, TRICKS, Tricks, read_trick
from verifier.records import REFERENCE
from verifier.reference.renderings.catalogue import Rendering, catalogue, served, with_template
from verifier.reference.variants import VARIANTS, find_variant

#: How the names of faults begin that are no variants (a file follows the second, a directory the
#: last), and what stands between faults served together.
_TEMPLATE: Final = "template:"
_JINJA: Final = "jinja:"
_SAMPLER: Final = "sampler:"
_MODEL: Final = "weights:"
_PREFIXES: Final = (_TEMPLATE, _JINJA, _SAMPLER, _MODEL, *(f"{kind}:" for kind in KINDS))
_AND: Final = "+"

#: The kind of a fault, where that is not what its name begins with.
_OTHER_KINDS: Final = {_MODEL: "model", _JINJA: "template"}

#: Sampler faults that `list_faults` shows; any other number may be given.
_SAMPLERS: Final = {
    "temperature=0.9": "samples are drawn at this temperature, whatever was asked",
    "top-k=40": "samples are drawn from so many tokens, whatever was asked",
    "top-p=0.95": "samples are drawn from this share of the distribution",
    "min-p=0.05": "tokens below this share of the likeliest are never drawn",
    "repetition-penalty=1.1": "tokens of prompt and reply are penalized, in greedy replies too",
    "presence-penalty=0.5": "tokens of the reply are penalized once, in greedy replies too",
    "frequency-penalty=0.5": "tokens of the reply are penalized each time, in greedy replies too",
    "drop-best=0.02": "the likeliest token is passed over now and then, in greedy replies too",
    "rare=0.01": "any token at all is put in now and then, in greedy replies too",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a host serves: weights of the bank, a rendering of the catalogue, sampler and tricks.

    The weights are those of another model where `directory` names one.
    """

    weights: str
    rendering: Rendering
    sampler: tuple[tuple[str, float], ...] = ()  # settings that stand for what was asked
    directory: Path | None = None  # of a whole other model; None: the published one
    tricks: Tricks = PLAIN


def list_faults() -> list[tuple[str, str]]:
    """Name and one-line summary of everything the testbed can serve; "none" is honest.

    One fault of each kind can be served together, with a plus sign between them. A template that
    is not in the catalogue is served by its file, as jinja:FILE.
    """
    honest = ("none", "the published weights, as they are")
    other = (f"{_MODEL}DIR", "the model of a directory, with its own tokenizer and template")
    weights = [(variant.name, variant.summary) for variant in VARIANTS.values()]
    renderings = [
        (_TEMPLATE + entry.name, entry.summary)
        for entry in catalogue().values()
        if entry.name != REFERENCE and entry.stands_for in (None, entry.name)
    ]
    samplers = [(_SAMPLER + name, summary) for name, summary in _SAMPLERS.items()]
    return [honest, *weights, other, *renderings, *samplers, *TRICKS.items()]


def read_fault(name: str, *, layers: int, catalogue: Mapping[str, Rendering]) -> Fault:
    """A fault by its name, such as int4-sym-g64+template:bos-doubled.

    Raises ConfigError for a name that is not there, or two of one kind.
    """
    found: dict[str, str] = {}
    for part in name.split(_AND):
        prefix = next((p for p in _PREFIXES if part.startswith(p)), "")
        kind = _OTHER_KINDS.get(prefix, prefix.removesuffix(":") or "weights")
        if kind in found:
            raise ConfigError(f"fault {name!r}: names two of the kind {kind}; give one of each")
        found[kind] = part if prefix == _JINJA else part.removeprefix(prefix)
    weights, tricks = found.get("weights", "none"), PLAIN
    for kind in KINDS:
        tricks = read_trick(kind, found[kind], tricks) if kind in found else tricks
    return Fault(
        directory=Path(found["model"]) if "model" in found else None,
        weights=REFERENCE if weights == "none" else find_variant(weights, layers=layers).name,
        rendering=_read_rendering(found.get("template", REFERENCE), catalogue),
        sampler=tuple(read_sampler(found["sampler"]).items()) if "sampler" in found else (),
        tricks=tricks,
    )


def _read_rendering(name: str, catalogue: Mapping[str, Rendering]) -> Rendering:
    """A rendering of the catalogue, or one by the template of a file."""
    if not name.startswith(_JINJA):
        return served(name, catalogue)
    path = Path(name.removeprefix(_JINJA))
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"fault {name!r}: cannot be read as a template: {error}") from None
    return Rendering(
        name=name, summary="the chat template of a file", advice="load the published template",
        change=with_template(source),
    )  # fmt: skip
