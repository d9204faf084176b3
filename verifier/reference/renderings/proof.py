"""Direct proof: where a host shows the prompt that it rendered, compare it with the catalogue.

vLLM returns ids when asked with `return_token_ids`, others a prompt text or an echo. What a host
says of itself can be forged, so a match is no acquittal; a difference needs no statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verifier.records import REFERENCE, Probe
from verifier.reference.reader import Renderer
from verifier.reference.renderings.catalogue import Rendering, render_probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A prompt that a host showed, against the renderings of the catalogue."""

    names: tuple[str, ...]  # renderings that give exactly this prompt, valid ones first
    differs_at: int | None  # first token that is not the published one's; None: the same prompt
    published: tuple[int, ...]
    shown: tuple[int, ...]

    @property
    def agrees(self) -> bool:
        """Whether the prompt is the published one."""
        return self.differs_at is None


def compare_ids(
    shown: Sequence[int], probe: Probe, entries: Mapping[str, Rendering], renderer: Renderer
) -> Proof | None:
    """Compare the prompt ids that a host reported; None when the template refuses the probe."""
    published = render_probe(entries[REFERENCE], probe, renderer)
    if published is None:
        return None
    ids = tuple(shown)
    same = [
        entry for entry in entries.values()
        if not entry.past_end
        and (made := render_probe(entry, probe, renderer)) is not None and made.ids == ids
    ]  # fmt: skip
    ordered = sorted(same, key=lambda entry: entry.kind != "valid")
    return Proof(
        names=tuple(entry.name for entry in ordered),
        differs_at=_first_difference(published.ids, ids),
        published=published.ids,
        shown=ids,
    )


def compare_text(
    shown: str, probe: Probe, entries: Mapping[str, Rendering], renderer: Renderer
) -> Proof | None:
    """The same of a prompt text or an echo, control tokens by their names."""
    return compare_ids(renderer.encode_prompt(shown), probe, entries, renderer)


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    pairs = enumerate(zip(one, other, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
    return None if at == len(one) == len(other) else at
