"""Whole audits of a model that thinks: the embedded one, by a template that begins a thought."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import pytest
import yaml
from engines import Remembering, few_renderings, prompts_of
from models import EMBEDDED
from recorded import Recorded

from verifier.audit import audit
from verifier.config import RunFile
from verifier.lab.testbed.app import create_app
from verifier.lab.testbed.host import Host, Thoughts
from verifier.lab.testbed.server import running
from verifier.progress import Show
from verifier.records import Report
from verifier.reference.calibrations import calibration_path
from verifier.reference.cards import Thinking, find_card
from verifier.reference.engines.transformers import TransformersEngine
from verifier.reference.loaded import Reference
from verifier.reference.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

#: Of all audits, so that the host can answer ahead.
SEED = 20261126

TAGS = Thinking(open="<think>", close="</think>")

#: Turns as the model knows them; a reply is begun with a thought.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning %}<think>\n{{ m.reasoning }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def thinker(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's directory with another template."""
    directory = tmp_path_factory.mktemp("thinker")
    for path in embedded.iterdir():
        if path.suffix == ".safetensors":
            (directory / path.name).symlink_to(path)
        else:
            shutil.copy(path, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's card, calibrated as it is, that knows the tags."""
    folder = tmp_path_factory.mktemp("card")
    raw = yaml.safe_load(find_card(EMBEDDED).read_text())
    raw["digests"] |= {"tokenizer_sha256": None, "template_sha256": None}
    raw |= {"thinking": TAGS.model_dump(), "bank": ["fp8-channel", "int4-asym-g64"]}
    shutil.copy(calibration_path(EMBEDDED), folder / f"{EMBEDDED}.calibration.json")
    path = folder / f"{EMBEDDED}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def reference(thinker: Path) -> Reference:
    """In float32."""
    tokenizer = Tokenizer(thinker)
    engine = Remembering(TransformersEngine(thinker, eos_ids=(tokenizer.eos_id,)))
    return Reference(engine=engine, tokenizer=tokenizer, catalogue=few_renderings())


@pytest.fixture(scope="module")
def served(thinker: Path, recorded: Recorded) -> Remembering:
    """What the host runs, in bfloat16."""
    tokenizer = Tokenizer(thinker)
    return Remembering(
        TransformersEngine(
            thinker, eos_ids=(tokenizer.eos_id,), dtype="bfloat16", decode=tokenizer.decode
        ),
        coming=prompts_of(tokenizer, seed=SEED),
        recorded=recorded,
    )


@pytest.mark.parametrize(
    ("shown", "weights", "decision"),
    [
        ("apart", "reference", "consistent"),
        ("stripped", "reference", "consistent"),
        ("stripped", "int4-asym-g48", "inconsistent"),
        ("hidden", "reference", "inconclusive"),
    ],
)
def test_an_audit_by_thoughts(
    tmp_path: Path,
    card: Path,
    thinker: Path,
    reference: Reference,
    served: Remembering,
    shown: Literal["apart", "stripped", "hidden"],
    weights: str,
    decision: str,
) -> None:
    """An honest host is never accused, 4 bits are found, and hidden thoughts are said to be so."""
    served.load_variant(weights)
    app = create_app(Host(
        engine=served, tokenizer=Tokenizer(thinker), model=EMBEDDED,
        thoughts=Thoughts(tags=TAGS, shown=shown),
    ))  # fmt: skip
    with running(app) as url:
        report: Report = audit(
            RunFile.model_validate(
                {
                    "endpoint": {"base_url": url, "model": EMBEDDED, "max_attempts": 1},
                    "reference": {"card": str(card)},
                    "audit": {
                        "seed": SEED, "max_tokens": 32, "top_logprobs": 0,
                        "budget_completion_tokens": 400 if shown == "hidden" else 2400,
                    },
                    "out": tmp_path / "run",
                }
            ),
            api_key=None,
            load_reference=lambda: reference,
            show=Show(tell=lambda _line: None, step=lambda _name, _done, _of: None),
        )  # fmt: skip

    assert report.decision == decision
    if shown == "hidden":
        assert "not testable by text" in report.summary
    else:
        assert report.usage.not_judged < report.usage.replies  # an empty thought tells nothing
