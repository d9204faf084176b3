"""The text of a card with values set in it: comments, quotes and the order of keys stay."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from verifier.reference.cards import Digests


def set_values(text: str, values: Mapping[str, str | float]) -> str:
    """A card's text with values by dotted key."""
    yaml = _yaml()
    raw: Any = yaml.load(text)
    for key, value in values.items():
        section, _, field = key.partition(".")
        if not field:
            raw[key] = value
            continue
        raw.setdefault(section, {})
        if section == "digests" and field not in raw[section]:  # at its place: not below comments
            place = list(Digests.model_fields).index(field)
            raw[section].insert(min(place, len(raw[section])), field, value)
        raw[section][field] = value
    return _dumped(yaml, raw)


def append_values(text: str, key: str, values: Sequence[Mapping[str, str]]) -> str:
    """A card's text with more at the end of the list that stands under a key."""
    yaml = _yaml()
    raw: Any = yaml.load(text)
    if raw.get(key):
        raw[key].extend(dict(one) for one in values)
    else:  # one that is empty is written in one line, and would be however long it grows
        raw[key] = [dict(one) for one in values]
    return _dumped(yaml, raw)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Representer = _WithNull
    yaml.preserve_quotes = True
    yaml.width = 4096  # never breaks a line
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _dumped(yaml: YAML, raw: object) -> str:
    text = io.StringIO()
    yaml.dump(raw, text)
    return text.getvalue()


class _WithNull(RoundTripRepresenter):
    """Writes null as the cards do; ruamel would leave the place empty."""

    def represent_null(self, _: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_WithNull.add_representer(type(None), _WithNull.represent_null)
