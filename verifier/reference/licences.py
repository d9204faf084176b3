"""Whether a licence lets anyone host a model for money, read in its text where that is certain.

A text is known by sentences that no other has; the free ones word by word, for a clause that was
added is a text of its own. Whatever else stands there is for a person to read: no guess is made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verifier.errors import ConfigError, ReferenceMismatch
from verifier.files.strict_yaml import parse_yaml
from verifier.reference.cards import Hosting, Licence
from verifier.reference.snapshot import read_raw, read_text

#: Where a repository keeps the licence of its weights, the first that is there.
LICENCE_FILES: Final = ("LICENSE-MODEL", "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")

README: Final = "README.md"

#: sha256 of Apache-2.0 from its title to "END OF TERMS AND CONDITIONS", in single spaces.
_APACHE: Final = "2e2b94025b4c2fdb1864973c1497dd82e21bbfe3225d27d52c8c7e8792240b7a"
_APACHE_BEGINS: Final = "Apache License Version 2.0, January 2004"
_APACHE_ENDS: Final = "END OF TERMS AND CONDITIONS"

_MIT: Final = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software "
    'and associated documentation files (the "Software"), to deal in the Software without '
    "restriction, including without limitation the rights to use, copy, modify, merge, publish, "
    "distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the "
    "Software is furnished to do so, subject to the following conditions: The above copyright "
    "notice and this permission notice shall be included in all copies or substantial portions of "
    'the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR '
    "IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A "
    "PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE "
    "LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR "
    "OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER "
    "DEALINGS IN THE SOFTWARE."
)

_FREE: Final = "free to use, change and host, with the notices kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A licence that limits hosting: all of its marks stand in the text, as patterns."""

    name: str  # \\1: what the first mark caught
    hosting: Hosting
    marks: tuple[str, ...]
    terms: str


_KNOWN: Final = (
    _Known(
        name=r"Llama \1 Community License", hosting="conditional",
        marks=(
            r"LLAMA (3|3\.1|3\.2|3\.3|4) COMMUNITY LICENSE AGREEMENT",
            r"Built with (?:Meta )?Llama", r"700 million monthly active users",
        ),
        terms=(
            'a product or service must show "Built with Llama"; above 700 million monthly users it '
            "needs a licence from Meta"
        ),
    ),
    _Known(
        name="Gemma Terms of Use", hosting="conditional",
        marks=(r"Gemma Terms of Use", r"Prohibited Use Policy", r"Hosted Service"),
        terms="whoever hosts it passes on the terms and Google's prohibited uses",
    ),
    _Known(
        name="Qwen Research License", hosting="written authorization",
        marks=(r"Qwen RESEARCH LICENSE AGREEMENT", r"non-commercial"),
        terms="research and evaluation only; commercial use needs a licence from Alibaba",
    ),
    _Known(
        name="Qwen License", hosting="conditional",
        marks=(
            r"(?:Qwen|Tongyi Qianwen) LICENSE AGREEMENT", r"100 million monthly active users",
        ),
        terms="above 100 million monthly users it needs a licence from Alibaba",
    ),
    _Known(
        name="MiniMax non-commercial licence", hosting="written authorization",
        marks=(r"MiniMax", r"non-commercial", r"prior written authori[sz]ation"),
        terms=(
            "any commercial use, hosted APIs for a fee among them, needs MiniMax's prior written "
            "authorization"
        ),
    ),
    _Known(
        name="DeepSeek License Agreement", hosting="conditional",
        marks=(r"DEEPSEEK LICENSE AGREEMENT", r"Use[ -](?:based )?restrictions", r"Attachment A"),
        terms="whoever hosts it passes on the restrictions of use of its attachment A",
    ),
    _Known(
        name="Modified MIT", hosting="conditional",
        marks=(
            r"Modified MIT License", r"100 million monthly active users",
            r"prominently display",
        ),
        terms=(
            "above 100 million monthly users, or 20 million dollars a month, a product must show "
            "the model's name"
        ),
    ),
)  # fmt: skip


def read_licence(directory: Path) -> Licence:
    """The licence of a directory's weights, as far as its own text says it for certain."""
    front = _front_matter(directory)
    said = str(front.get("license_name") or front.get("license") or "")[:100]
    link = front.get("license_link")
    url = link if isinstance(link, str) and link.startswith("https://") else None
    name = next((n for n in LICENCE_FILES if (directory / n).is_file()), None)
    if name is None:
        where = f"{README} names {said!r}, and" if said else "nothing names one, and"
        return Licence(
            name=said or "not named", hosting="unchecked", url=url,
            terms=f"read it yourself: {where} no text of a licence lies beside the weights",
        )  # fmt: skip
    digest = licence_sha256(directory)
    known = _recognise(" ".join(read_text(directory / name).split()))
    if known is not None:
        title, hosting, terms = known
        return Licence(name=title, hosting=hosting, url=url, sha256=digest, terms=terms)
    return Licence(
        name=said or f"of {name}", hosting="unchecked", url=url, sha256=digest,
        terms=f"read it yourself: {name}, which lies beside the weights, is no text known here",
    )  # fmt: skip


def licence_sha256(directory: Path) -> str | None:
    """Digest of the licence text that travels with the weights, if one does."""
    for name in LICENCE_FILES:
        if (directory / name).is_file():
            return hashlib.sha256(read_raw(directory / name)).hexdigest()
    return None


def _recognise(text: str) -> tuple[str, Hosting, str] | None:
    """Name, hosting and terms of a text in single spaces; None: it is not known for certain."""
    if _is_apache(text):
        return "Apache-2.0", "allowed", _FREE
    if _is_mit(text):
        return "MIT", "allowed", _FREE.replace("notices", "notice")
    for known in _KNOWN:
        found = [re.search(mark, text, re.IGNORECASE) for mark in known.marks]
        if all(found):
            first = found[0]
            return (first.expand(known.name) if first else known.name), known.hosting, known.terms
    return None


def _is_apache(text: str) -> bool:
    """Nothing stands before it, and behind it at most how to apply it and a notice of copyright."""
    begin, end = text.find(_APACHE_BEGINS), text.find(_APACHE_ENDS)
    if begin < 0 or end < begin:
        return False
    before, behind = text[:begin], text[end + len(_APACHE_ENDS) :].strip()
    body = text[begin : end + len(_APACHE_ENDS)].replace("http://", "https://")
    appendix = not behind or (
        behind.startswith(("APPENDIX: How to apply", "Copyright"))
        and behind.endswith("limitations under the License.")
    )
    same = hashlib.sha256(body.encode()).hexdigest() == _APACHE
    return same and appendix and len(behind) < 1500 and _is_notice(before)


def _is_mit(text: str) -> bool:
    before, found, behind = text.partition(_MIT)
    return bool(found) and not behind.strip() and _is_notice(before)


def _is_notice(text: str) -> bool:
    """Whether nothing but a title and a notice of copyright can stand there."""
    plain = re.sub(r"(?i)^\W*(?:(?:the )?MIT License(?: \(MIT\))?)?\W*", "", text)
    plain = re.sub(r"(?i)all rights reserved\.?", "", plain).strip()
    return len(plain) < 200 and (not plain or plain.casefold().startswith("copyright"))


def _front_matter(directory: Path) -> Mapping[str, Any]:
    """What a model's page says of itself in its head; {} where there is none to be read."""
    path = directory / README
    if not path.is_file():
        return {}
    try:
        head = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", read_text(path), re.DOTALL)
        found = parse_yaml(head[1].encode(), where=str(path)) if head else {}
    except (ConfigError, ReferenceMismatch):
        return {}
    return found if isinstance(found, dict) else {}
