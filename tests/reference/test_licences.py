"""Licences, read where their text is certain, and left to a person where it is not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from source import ROOT

from verifier.reference.licences import read_licence

APACHE = (ROOT / "LICENSE").read_text(encoding="utf-8")
MIT = """MIT License

Copyright (c) 2026 Somebody

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
CLAUSE = (
    "Our only modification part is that, if the Software is used for any of your commercial "
    "products that have more than 100 million monthly active users, you shall prominently display "
    '"Model" on the user interface.'
)
LLAMA = (
    "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n... prominently display “Built with Llama” on a\n"
    "related website ... the monthly active users ... is greater than 700 million\nmonthly active "
    "users in the preceding calendar month ..."
)
MINIMAX = (
    "MiniMax-M2.7 NON-COMMERCIAL LICENSE ... any commercial use needs prior written authorization "
    "from MiniMax."
)


def write(directory: Path, text: str, *, name: str = "LICENSE", readme: str = "") -> Path:
    (directory / name).write_text(text)
    if readme:
        (directory / "README.md").write_text(readme)
    return directory


@pytest.mark.parametrize(
    ("text", "title", "hosting", "terms"),
    [
        (APACHE, "Apache-2.0", "allowed", "with the notices kept"),
        (APACHE.replace("http://www", "https://www"), "Apache-2.0", "allowed", "notices kept"),
        (MIT, "MIT", "allowed", "with the notice kept"),
        ("# The MIT License (MIT)\n" + MIT.partition("\n")[2], "MIT", "allowed", "free to use"),
        (LLAMA, "Llama 3.1 Community License", "conditional", 'show "Built with Llama"'),
        (f"Modified MIT License\n{MIT}\n{CLAUSE}", "Modified MIT", "conditional", "100 million"),
        (MINIMAX, "MiniMax non-commercial licence", "written authorization", "any commercial use"),
    ],
    ids=["apache", "apache by https", "mit", "mit with a heading", "llama", "modified mit",
         "non-commercial"],
)  # fmt: skip
def test_a_text_that_is_certain_says_its_terms(
    tmp_path: Path, text: str, title: str, hosting: str, terms: str
) -> None:
    """With the digest of the file, whatever a page beside it says."""
    found = read_licence(write(tmp_path, text, readme="---\nlicense: other\n---\n"))

    assert (found.name, found.hosting) == (title, hosting)
    assert found.terms is not None
    assert terms in found.terms
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        f"{MIT}\n{CLAUSE}",
        MIT.replace("sublicense, and/or sell", "sublicense"),
        MIT + "\nCommercial hosting needs our permission.",
        "Not for commercial use.\n" + MIT,
        APACHE.replace("royalty-free, irrevocable", "irrevocable"),
        APACHE.replace("END OF TERMS", "11. Hosting. Ask first.\n\nEND OF TERMS"),
        APACHE + "\nAdditional terms: no hosting.",
        "Commons Clause\n" + APACHE,
        "Llama 3.1 is licensed by Meta.",
        "",
    ],
    ids=["a clause more", "a right less", "a line behind", "a line before", "another apache",
         "a section more", "terms behind", "a clause before", "half a text", "empty"],
)  # fmt: skip
def test_a_text_that_is_changed_is_for_a_person_to_read(tmp_path: Path, text: str) -> None:
    """A guess that hosting is allowed would be a false one."""
    found = read_licence(write(tmp_path, text, readme="---\nlicense: mit\n---\n"))

    assert (found.name, found.hosting) == ("mit", "unchecked")
    assert (
        found.terms
        == "read it yourself: LICENSE, which lies beside the weights, is no text " + ("known here")
    )


@pytest.mark.parametrize(
    ("readme", "name", "url"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0", None),
        ("---\nlicense: other\nlicense_name: llama3.1\nlicense_link: https://x.example/L\n---\n",
         "llama3.1", "https://x.example/L"),
        ("---\nlicense: [\n---\n", "not named", None),
        ("# Model", "not named", None),
        ("", "not named", None),
    ],
    ids=["name", "other", "broken", "no head", "no page"],
)  # fmt: skip
def test_a_name_alone_says_nothing_of_hosting(
    tmp_path: Path, readme: str, name: str, url: str | None
) -> None:
    """It is written down, and the text is for a person to find and read."""
    if readme:
        (tmp_path / "README.md").write_text(readme)
    found = read_licence(tmp_path)

    assert (found.name, found.hosting, found.url, found.sha256) == (name, "unchecked", url, None)
    assert found.terms is not None
    assert found.terms.startswith("read it yourself: ")
