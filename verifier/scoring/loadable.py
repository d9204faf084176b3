"""Which builds and suspects of a plan can be loaded to score replies, and why others cannot."""

from __future__ import annotations

from typing import Literal

from verifier.config import ELSEWHERE, EngineName
from verifier.errors import ConfigError, VerifierError
from verifier.plan_file import Plan
from verifier.progress import Show
from verifier.reference.engines import Engine
from verifier.reference.loaded import Reference
from verifier.reference.reader import Suspected


def nameable(plan: Plan, reference: Reference, show: Show) -> tuple[str, ...]:
    """The builds and suspects of a plan that can be loaded, for a cause to be named."""
    builds = (name for name in plan.bank if reference.engine.can_load(name))
    return (*builds, *read_suspects(plan, reference, show))


def read_suspects(plan: Plan, reference: Reference, show: Show) -> dict[str, Suspected]:
    """Those suspects of a plan that can be had; of the others it is told why not.

    A card's siblings are fetched when they are needed first, and a verdict must not wait for them.
    """
    found = {}
    for name in plan.suspects:
        if name not in reference.suspects or not reference.engine.can_load(name):
            continue
        try:
            found[name] = reference.suspects[name]()
        except VerifierError as problem:
            show.tell(f"going on without the suspect {name}: {problem}")
    return found


def refuse_unknown_builds(plan: Plan, engine: Engine) -> None:
    """Before anything is spent on an audit whose policy cannot be scored."""
    unknown = [name for name in plan.policy.builds if not engine.can_load(name)]
    if unknown:
        raise ConfigError(
            f"audit.policy: builds: {', '.join(unknown)} cannot be loaded by the engine "
            f"{engine.versions['engine']}; take a policy without builds, or another --engine"
        )


def refuse_engine_of_name(plan: Plan, name: EngineName | Literal["pack"]) -> None:
    """The same before any weights are loaded, as far as an engine's name tells."""
    if name in ("vllm", "pack") or name in ELSEWHERE:
        _refuse_defaults(plan, name, able=False)


def refuse_unscored_defaults(plan: Plan, engine: Engine) -> None:
    """Before an honest host is held to less than its card lets it do."""
    _refuse_defaults(plan, engine.versions["engine"], able=engine.scores_samplers)


def _refuse_defaults(plan: Plan, engine: str, *, able: bool) -> None:
    if plan.greedy_defaults and not able:
        raise ConfigError(
            "the card's publisher has defaults that a host may apply to greedy requests "
            f"({', '.join(plan.greedy_defaults)}), and the engine {engine} "
            "cannot score under them: take --engine transformers, or have the run file send the "
            "neutral value of each (endpoint.extra_body, such as repetition_penalty: 1.0)"
        )
