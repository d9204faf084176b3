"""Write into every card that ships what the rules give it: its builds and its honest stacks.

    python reference/recipes/default_banks.py

The rules are those of `verifier/reference/defaults.py`. A card that is calibrated is left alone: it
says itself where it differs, and why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from verifier.reference.calibrations import is_calibrated
from verifier.reference.cards import find_card, list_shipped, load_card
from verifier.reference.defaults import default_bank, default_stacks, published_of


def block(key: str, names: Sequence[str]) -> str:
    """A list of names as a card has it, one a line."""
    return f"{key}: []\n" if not names else f"{key}:\n" + "".join(f"  - {n}\n" for n in names)


def main() -> None:
    """Replace the lists, and nothing else."""
    for name in list_shipped():
        if is_calibrated(name):
            continue
        published = published_of(load_card(name))
        calibration, held_out = default_stacks(published)
        path = find_card(name)
        text = path.read_text(encoding="utf-8")
        for key, names in (
            ("bank", default_bank(published)),
            ("calibration_stacks", calibration),
            ("held_out_stacks", held_out),
        ):
            lists = rf"^{key}:(?: \[.*\]\n|\n(?:  - .*\n)+)"
            text, found = re.subn(lists, block(key, names), text, flags=re.MULTILINE)
            assert found == 1, (path, key)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
