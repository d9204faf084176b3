"""A card for tests: of no model, pinned to digests of zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from simulate import SHA

CARD: dict[str, Any] = {
    "name": "tiny",
    "model": "someone/tiny",
    "publisher": "someone",
    "licence": {"name": "none", "hosting": "allowed"},
    "precision": "float32",
    "layers": 2,
    "source": {"kind": "directory", "path": "weights"},
    "digests": {
        "rules": 2, "tensors_sha256": SHA, "config_sha256": SHA, "tokenizer_sha256": SHA,
        "template_sha256": SHA,
    },
    "bank": ["int4-sym-g64"],
    "calibration_stacks": ["float32-batch1"],
    "held_out_stacks": [],
}  # fmt: skip


def write_card(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(CARD | changes))
    return path
