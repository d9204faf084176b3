"""The local weights, loaded: what scores replies, what reads texts, and what may be a suspect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache as cache_once
from functools import partial
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING

from verifier.config import ELSEWHERE, ReferenceSection, RunFile
from verifier.errors import ConfigError, VerifierError
from verifier.progress import Show
from verifier.prompts import Render, make_prompt
from verifier.records import Message
from verifier.reference.cards import load_card, load_templates
from verifier.reference.digests import vocabulary_sha256
from verifier.reference.engines import Engine
from verifier.reference.reader import Reader, Suspected
from verifier.reference.renderings.catalogue import Rendering, catalogue
from verifier.reference.weights import check_weights, fetch_checkpoint, fetch_variant, fetch_weights

if TYPE_CHECKING:
    from verifier.reference.pack_file import Pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The local weights, loaded: what scores, and what reads texts."""

    engine: Engine
    tokenizer: Reader
    catalogue: Mapping[str, Rendering] = field(default_factory=catalogue)
    #: How each suspect reads prompts and replies; called once the suspect is to be scored.
    suspects: Mapping[str, Callable[[], Suspected]] = field(default_factory=dict)
    #: Held for one whole scoring step, so that audits side by side never meet in the engine, which
    #: changes its weights in place. Never held while an endpoint is asked.
    busy: AbstractContextManager[object] = field(default_factory=RLock)


LoadReference = Callable[[], Reference]


def load_once(load: LoadReference) -> LoadReference:
    """The same, loaded by whoever needs it first; what that raises is raised to all who come later.

    Whoever comes meanwhile waits.
    """
    lock, found = Lock(), list[Reference | VerifierError]()

    def loaded() -> Reference:
        with lock:
            if not found:
                try:
                    found.append(load())
                except VerifierError as error:
                    found.append(error)
        (only,) = found
        if isinstance(only, VerifierError):
            raise only
        return only

    return loaded


def reference_loader(
    config: RunFile, *, cache: Path, show: Show, api_key: str | None = None, fetch: bool = True
) -> LoadReference:
    """Loads the card's weights with the engine asked for, once they are fetched and checked.

    `api_key` is that of the server that a remote or echo engine asks. What it scores with is taken
    on its word: the weights are not checked here. Without `fetch` nothing is fetched: what is not
    on this machine is a ConfigError that says what would be.
    """
    section = config.reference

    def load() -> Reference:
        card = load_card(section.card)
        weights = section.weights
        if weights is None:
            weights = fetch_weights(card, cache=cache, tell=show.tell, fetch=fetch)
        elif not weights.is_dir():
            raise ConfigError(f"reference.weights: no directory {weights}")
        check_weights(card, weights, tensors=section.engine not in ELSEWHERE)
        show.tell(f"loading {card.name}")
        from verifier.reference.engines.load import load_engine
        from verifier.reference.tokenizer import Tokenizer

        tokenizer = Tokenizer(weights)
        builds = {
            v.name: partial(fetch_variant, card, v, weights, tell=show.tell, fetch=fetch)
            for v in card.variants
        }
        others = {
            s.name: partial(fetch_checkpoint, s, where=where, tell=show.tell, fetch=fetch)
            for where, some in (
                (f"card {card.name}: siblings", card.siblings),
                ("reference.suspects", section.suspects),
            )
            for s in some
        }
        for suspect in (*card.siblings, *section.suspects):
            asked_for = suspect in section.suspects  # a card's may be large, and never needed
            if suspect.path is not None or asked_for:  # what is missing is said before all else
                others[suspect.name]()
        engine = load_engine(
            section.engine, weights, tokenizer, dtype=section.dtype, threads=section.threads,
            engine_args={**card.engine_args, **section.engine_args},
            checkpoints={**builds, **others}, url=section.url, api_key=api_key,
            model=section.url_model,
        )  # fmt: skip

        def read_as(fetch: Callable[[], Path]) -> Suspected:
            directory = fetch()
            same = vocabulary_sha256(directory) == vocabulary_sha256(weights)
            return Suspected(tokenizer=Tokenizer(directory), same=same)

        earlier, valid = load_templates(section.card, card)
        return Reference(
            engine=engine, tokenizer=tokenizer, catalogue=catalogue(earlier=earlier, valid=valid),
            suspects={name: cache_once(partial(read_as, f)) for name, f in others.items()},
        )  # fmt: skip

    return load


def open_pack(section: ReferenceSection) -> Pack | None:
    """The pack that a run file names, in the place of weights or beside them; None: it names none.

    Raises ConfigError for a pack that is not as it was made, or not signed as it must be.
    """
    if section.pack is None:
        return None
    from verifier.reference.pack_file import read_pack
    from verifier.reference.signing import read_public_key

    key = None if section.pack_key is None else read_public_key(section.pack_key)
    return read_pack(section.pack, key=key)


def render_as_ids(tokenizer: Reader) -> Render:
    """Messages to the published prompt, for endpoints that complete texts."""
    return lambda messages: tokenizer.encode_prompt(tokenizer.render_text(make_prompt(messages)))


def render_as_text(tokenizer: Reader) -> Render:
    """The same as text where a server's tokenizer makes the same ids of it, else as ids.

    More hosts take texts. Where control tokens in them are not heeded, prompts are longer than they
    should be, and counts show it.
    """

    def spell(messages: tuple[Message, ...]) -> str | tuple[int, ...]:
        text = tokenizer.render_text(make_prompt(messages))
        ids = tokenizer.encode_prompt(text)
        for spelled in (text, text.removeprefix(tokenizer.bos)):
            if tokenizer.encode_completion(spelled) == ids:
                return spelled
        return ids

    return spell
