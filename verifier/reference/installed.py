"""What the installed engines say that they know: architectures, and parsers of replies.

Read in their source files, since importing either takes seconds and starts much.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

#: Where each keeps its tables, and what those are called.
_TRANSFORMERS: Final = (
    "transformers", "models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
)  # fmt: skip
_VLLM_MODELS: Final = ("vllm", "model_executor/models/registry.py", "_TEXT_GENERATION_MODELS")
_VLLM_PICTURES: Final = ("vllm", "model_executor/models/registry.py", "_MULTIMODAL_MODELS")
_PARSERS: Final = {
    "reasoning": ("vllm", "reasoning/__init__.py", "_REASONING_PARSERS_TO_REGISTER"),
    "tool": ("vllm", "tool_parsers/__init__.py", "_TOOL_PARSERS_TO_REGISTER"),
}


def by_transformers(model_type: str) -> bool | None:
    """Whether transformers has a causal language model of a type; None: it does not say."""
    known = _keys(*_TRANSFORMERS)
    return None if known is None else model_type in known


def by_vllm(kind: str | None) -> bool | None:
    """Whether vLLM has an architecture; None: it is not installed, or does not say."""
    text, pictures = _keys(*_VLLM_MODELS), _keys(*_VLLM_PICTURES)
    return None if text is None else kind in text | (pictures or frozenset())


def parsers(what: Literal["reasoning", "tool"]) -> frozenset[str] | None:
    """Names of vLLM's parsers; None: it is not installed, or does not say."""
    return _keys(*_PARSERS[what])


@cache
def _keys(package: str, file: str, table: str) -> frozenset[str] | None:
    """The keys of a table in a package's source: a literal, or an OrderedDict of pairs."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / file
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.AnnAssign):
            target = node.target
        if isinstance(target, ast.Name) and target.id == table:
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            return frozenset(_first_strings(node.value)) or None
    return None


def _first_strings(value: ast.expr | None) -> Iterator[str]:
    """Keys of a dict, and the first of each pair of a list in a call."""
    match value:
        case ast.Dict(keys=keys):
            named: list[ast.expr | None] = list(keys)
        case ast.Call(args=[ast.List(elts=pairs), *_]):
            named = [pair.elts[0] for pair in pairs if isinstance(pair, ast.Tuple) and pair.elts]
        case _:
            named = []
    for key in named:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value
