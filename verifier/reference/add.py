"""A card from the weights themselves: what lies in a directory, or a repository of the hub, read
into a card that can be pinned, planned with, calibrated and audited.

Nothing is guessed: what could not be read stands under `unchecked`. Nothing is written before all
of it is known, and no card is written over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.files.run_folder import write_whole
from verifier.files.strict_yaml import dump_yaml
from verifier.reference.cards import (
    NAME,
    Card,
    Digests,
    find_card,
    list_shipped,
    own_folder,
    read_card,
)
from verifier.reference.defaults import (
    default_bank,
    default_engine_args,
    default_stacks,
    obstacles_to_calibrating,
    published_of,
)
from verifier.reference.describe import Described, describe
from verifier.reference.digests import digests_of, shows_tools
from verifier.reference.hub import SMALL_FILES, commit_of, fetch_snapshot, read_repository
from verifier.reference.installed import by_transformers, by_vllm
from verifier.reference.licences import read_licence
from verifier.reference.markup import find_thinking, hints_at_thinking, suggest_parsers
from verifier.reference.memory import missing_facts
from verifier.reference.pin import GENERATION_CONFIG, generation_defaults
from verifier.reference.snapshot import (
    CONFIG,
    MAX_LARGE_BYTES,
    TOKENIZER,
    read_object,
    read_tensors,
)
from verifier.reference.tokenizer import Tokenizer
from verifier.reference.weights import Tell

_RULES: Final = "the rules in reference/README.md"

#: What PyTorch reads by running what stands in it.
_PICKLES: Final = ("*.bin", "*.pt", "*.pth")

#: Comments before the sections of a card, by the key that each begins with.
_COMMENTS: Final[Mapping[str, str]] = {
    "digests": "Filled by `verifier reference pin` where they are null.",
    "sampling": "The publisher's sampling defaults.",
    "thinking": "The tags around a thought, and the template's setting that turns thinking off.",
    "engine_args": "Passed to vLLM as they are, under what a run file gives.",
    "architecture": "What the model is, and what memory is planned from.",
    "bank": "Builds that may be columns of the ledger, and honest stacks: by " + _RULES + ".",
    "sources": "Where each of these was read; what could not be is listed below as unchecked.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A card that was made."""

    path: Path
    card: Card
    remarks: tuple[str, ...]  # on what was found amiss, one line each
    obstacles: tuple[str, ...]  # why it cannot be calibrated; (): it can


def add_card(
    what: str,
    *,
    name: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    digests: bool = True,
    tell: Tell,
) -> Added:
    """Write the card of a directory, or of REPO or REPO@REVISION on the hub.

    It goes to `out`, else among the user's own cards. Raises ConfigError or ReferenceMismatch, in
    one line, for what no card can be made of, and writes nothing then.
    """
    directory, repo = Path(what), None
    if not (what and directory.is_dir()):
        repo, revision = _on_the_hub(what)
    name = name or _name_of(repo.rpartition("/")[2] if repo else directory.resolve().name)
    path = _place(name, out)
    if repo is not None:
        small = fetch_snapshot(repo, revision, tell=tell, only=SMALL_FILES)
        refuse_unfit(small)  # before what is large
        directory = fetch_snapshot(repo, commit_of(small) or revision, tell=tell)
    refuse_unfit(directory)
    found = describe(directory)
    raw, remarks = _compose(directory, found, name=name, model=model, repo=repo)
    card = read_card(raw, where=str(path))
    published = published_of(
        card, widths=found.widths,
        by_transformers=by_transformers(found.model_type) is not False,
    )  # fmt: skip
    calibration, held_out = default_stacks(published)
    raw |= {
        "bank": list(default_bank(published)), "engine_args": default_engine_args(card),
        "calibration_stacks": list(calibration), "held_out_stacks": list(held_out),
        "unchecked": sorted({*raw["unchecked"], *missing_facts(card)}),
    }  # fmt: skip
    if digests:
        tell("computing digests; this reads every tensor")
        raw["digests"] = digests_of(directory).model_dump()
    card = read_card(raw, where=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _text(card, raw))
    obstacles = obstacles_to_calibrating(card, seen=found)
    return Added(path=path, card=card, remarks=remarks, obstacles=obstacles)


# -- where from, where to ----------------------------------------------------------------------


def _on_the_hub(what: str) -> tuple[str, str | None]:
    named = read_repository(what)
    if named is None or Path(what).is_file():
        kind = "is a file" if Path(what).is_file() else "is neither a directory nor on the hub"
        raise ConfigError(
            f"{what!r} {kind}; give a directory of safetensors with its tokenizer, or REPO or "
            "REPO@REVISION, such as owner/name"
        )
    return named


def _name_of(title: str) -> str:
    """What a card is called after a directory or a repository."""
    return re.sub(r"[^a-z0-9._-]+", "-", title.casefold()).strip("-._") or "model"


def _place(name: str, out: Path | None) -> Path:
    """The file that a card goes to. Raises ConfigError where it may not."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(
            f"--name: {name!r} is no name of a card; take small letters, digits, dots and dashes"
        )
    if out is None and name in list_shipped():
        raise ConfigError(
            f"a card {name!r} ships with this package: pin that one (`verifier reference pin "
            f"{name} --weights DIR`), or give this one another --name"
        )
    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--file: {out}: a card is a file that ends in .yaml")
    path = own_folder() / f"{name}.yaml" if out is None else out
    if path.exists():
        raise ConfigError(f"{path}: exists; remove it, or give another --name or --file")
    return path


# -- what no card can be made of ---------------------------------------------------------------


def refuse_unfit(directory: Path) -> None:
    """Raise ReferenceMismatch for what cannot be loaded, or its replies not read; where only the
    small files are there, for what they show."""
    config = read_object(directory / CONFIG) if (directory / CONFIG).is_file() else None
    whole = config is None or _holds_weights(directory)
    if whole and not any(directory.glob("*.safetensors")):
        raise ReferenceMismatch(f"{directory}: {_instead_of_safetensors(directory)}")
    if config is not None:
        _refuse_unknown(directory, config)
    if whole:
        read_tensors(directory)
    _refuse_tokenizer(directory)


def _holds_weights(directory: Path) -> bool:
    """Whether anything there may be weights: of what is fetched first nothing is."""
    kinds = ("*.safetensors", "*.gguf", *_PICKLES)
    return any(any(directory.glob(kind)) for kind in kinds)


def _instead_of_safetensors(directory: Path) -> str:
    """What lies in a directory without safetensors, and what to do."""
    if any(directory.glob("*.gguf")):
        return (
            "holds GGUF files only, which are builds of a model; give the repository that its "
            "publisher released as safetensors"
        )
    if any(any(directory.glob(kind)) for kind in _PICKLES):
        return (
            "holds pickles only, which run code when they are loaded and are never read; give the "
            "model as safetensors"
        )
    return "no safetensors files; give a directory of weights, with config.json and tokenizer"


def _refuse_unknown(directory: Path, config: Mapping[str, Any]) -> None:
    """What neither engine can load without code of the checkpoint's own."""
    kind = str(config.get("model_type") or "")
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else None
    known = by_transformers(kind)
    if known is None or known or by_vllm(architecture):
        return
    if config.get("auto_map"):
        raise ReferenceMismatch(
            f"{directory}: the model {architecture or kind!r} needs code of its own, which comes "
            "with it and is not run; give a checkpoint that transformers or vLLM knows"
        )
    raise ReferenceMismatch(
        f"{directory / CONFIG}: the architecture {architecture or kind!r} (model_type {kind!r}) is "
        "no language model that the installed transformers or vLLM knows; a newer one may"
    )


def _refuse_tokenizer(directory: Path) -> None:
    """A tokenizer that loses text, and prompts that nothing renders."""
    path = directory / TOKENIZER
    if path.is_file():
        raw = read_object(path, limit=MAX_LARGE_BYTES)
        model = raw.get("model")
        falls_back = isinstance(model, dict) and model.get("byte_fallback") is True
        parts = [raw.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
        if not falls_back and not any("ByteLevel" in _kinds(part) for part in parts):
            raise ReferenceMismatch(
                f"{path}: has no pieces for single bytes, so it loses text that it does not know, "
                "and replies could not be read back to what was generated; no card is made of it"
            )
    if _template_source(directory, Tokenizer(directory)) is None:
        raise ReferenceMismatch(
            f"{directory}: the tokenizer has no chat template; put the publisher's "
            "chat_template.jinja beside it"
        )


def _kinds(part: object) -> set[str]:
    """Types of a part of a tokenizer and of the parts in it."""
    if isinstance(part, list):
        return {kind for inner in part for kind in _kinds(inner)}
    if not isinstance(part, dict):
        return set()
    inner = {kind for value in part.values() for kind in _kinds(value)}
    return inner | {str(part.get("type"))}


def _template_source(directory: Path, tokenizer: Tokenizer) -> str | None:
    """What renders conversations; None: nothing does."""
    if tokenizer.special_id("<|channel|>") is not None:
        return "harmony"
    if tokenizer.template is not None:
        return "repository"
    if (directory / "tekken.json").is_file():
        return "mistral-common"
    return "encoding script" if any((directory / "encoding").glob("*.py")) else None


# -- the card ----------------------------------------------------------------------------------


def _compose(
    directory: Path, found: Described, *, name: str, model: str | None, repo: str | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a card says, in its order, but for what the rules make of it; and remarks."""
    tokenizer, licence = Tokenizer(directory), read_licence(directory)
    template = tokenizer.template or ""
    thinking, hint = find_thinking(tokenizer), hints_at_thinking(tokenizer)
    parsers, sampling = suggest_parsers(template), generation_defaults(directory)
    model = model or repo
    doubts = dict(_doubts(directory, found, licence.hosting, model))
    remarks = [*_never_run(directory), *found.remarks]
    if thinking is None and hint is not None:
        doubts["thinking"] = True
        remarks.append(f"the tokenizer has {hint}, and the template does not write both")
    source: dict[str, Any] = {"kind": "directory", "path": str(directory.resolve())}
    if repo is not None:
        source = {"kind": "hub", "repo": repo, "revision": commit_of(directory)}
    raw: dict[str, Any] = {
        "name": name,
        "model": model or directory.resolve().name,
        "publisher": model.partition("/")[0] if model and "/" in model else "not known",
        "licence": licence.model_dump(),
        "precision": found.precision,
        "layers": found.layers,
        "source": source,
        "digests": Digests().model_dump(),
        "sampling": sampling,
        "template_source": _template_source(directory, tokenizer),
        "parsers": parsers.model_dump(),
        "takes_tools": shows_tools(directory),
        "thinking": None if thinking is None else thinking.model_dump(),
        "engine_args": {},
        "architecture": found.architecture.model_dump(exclude_none=True),
        "bank": [],
        "calibration_stacks": [],
        "held_out_stacks": [],
        "sources": _sources(directory, licence.sha256 is not None),
        "unchecked": sorted(doubts),
    }
    return raw, tuple(remarks)


def _doubts(
    directory: Path, found: Described, hosting: str, model: str | None
) -> Iterator[tuple[str, bool]]:
    """Fields that nobody has checked, or that could not be read."""
    yield from ((field, True) for field in found.unchecked)
    yield "parsers", True  # suggested by marks in the template
    if model is None:
        yield from (("model", True), ("publisher", True))
    if hosting == "unchecked":
        yield "licence", True
    if not (directory / GENERATION_CONFIG).is_file():
        yield "sampling", True


def _never_run(directory: Path) -> Iterator[str]:
    """What lies beside the weights and would be code."""
    pickles = sorted(path.name for kind in _PICKLES for path in directory.glob(kind))
    if pickles:
        yield f"{pickles[0]} is a pickle, which is code; it is never read"
    if read_object(directory / CONFIG).get("auto_map"):
        yield f"{CONFIG} names code of the model's own (auto_map), which is never run"


def _sources(directory: Path, licence: bool) -> dict[str, str]:
    """Where a field was read."""
    template = "the chat template"
    found = {
        "precision": f"{CONFIG}, and the headers of the safetensors files",
        "layers": CONFIG,
        "template_source": "the tokenizer",
        "takes_tools": template,
        "thinking": template,
        "engine_args": _RULES,
        "architecture": f"{CONFIG}, and the headers of the safetensors files",
        "bank": _RULES,
        "calibration_stacks": _RULES,
        "held_out_stacks": _RULES,
    }
    if licence:
        found["licence"] = "the text that lies beside the weights"
    if (directory / GENERATION_CONFIG).is_file():
        found["sampling"] = GENERATION_CONFIG
    return found


def _text(card: Card, raw: Mapping[str, Any]) -> str:
    """The file of a card: its values in their order, a comment before each section."""
    lines = [f"# {card.model}, as its weights say. Made by `verifier reference add`."]
    for key, value in raw.items():
        if key in _COMMENTS:
            lines += ["", f"# {_COMMENTS[key]}"]
        elif key == "source":
            lines.append("")
        lines.append(dump_yaml({key: value}).rstrip("\n"))
    return "\n".join(lines).replace("# \n", "#\n") + "\n"


def where_it_is(added: Added) -> str:
    """How a new card is named to other commands."""
    try:
        mine = find_card(added.card.name) == added.path
    except ConfigError:
        mine = False
    return added.card.name if mine else str(added.path)
