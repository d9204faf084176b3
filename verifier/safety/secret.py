"""What looks like a key, or like the name of one: so that none is kept or shown by mistake.

Knows no key. It errs towards taking words for words: what a request really needs stays allowed.
"""

from __future__ import annotations

import re
from typing import Final

#: How hosts begin their keys, and what follows in every one of them.
_KEY: Final = re.compile(
    r"(?:Bearer\s+|Basic\s+)?"
    r"(?:sk|pk|rk|gsk|hf|csk|fw|xai|nvapi|tgp|r8|ghp|gho|glpat|pplx|dsk|sess|AIza|AKIA|eyJ)"
    r"(?:[-_]|(?<=AIza)|(?<=AKIA)|(?<=eyJ))[A-Za-z0-9_.=+/-]{10,}"
)
_LONG: Final = 16  # signs of a stretch that mixes letters and digits as no word does
_LONGER: Final = 28  # and of one that mixes capitals and small letters

#: Words that name a secret wherever they stand in a name, and such as do at its end alone.
_SECRET: Final = re.compile(
    r"(^|[-_.])(auth|authorization|authentication|authenticate|bearer|cookies?|credentials?|creds"
    r"|jwt|passwords?|passwd|passphrase|pwd|secrets?|apikeys?|signature)(?=$|[-_.])"
)
_LAST: Final = re.compile(r"(^|[-_.])(keys?|token)$")
_JOINED: Final = re.compile(r"apikey|accesskey|authkey|secret|password|credential|accesstoken"
                            r"|authtoken|authorization")  # fmt: skip

#: Fields of real requests and templates that the words above would catch.
_HARMLESS: Final = re.compile(
    r"prompt_cache_key|cache_key|extra_key"
    r"|(additional_)?(bos|eos|pad|unk|sep|cls|mask|stop|special|image|audio|video|think\w*|start\w*"
    r"|end\w*|max|min|per|next|last|first)_token"
)


def is_key(text: str) -> bool:
    """Whether a text begins as hosts begin the keys they give out, and goes on as these do."""
    text = text.strip()
    if not _KEY.fullmatch(text):
        return False
    rest = text.replace("_", "-").partition("-")[2] or text
    return bool(re.search(r"\d|[a-z][A-Z]", rest)) or len(rest) >= 20


def looks_like_key(text: str) -> bool:
    """Whether a name may be a key given by mistake: what is one, and what no words make."""
    text = text.strip()
    if is_key(text):
        return True
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,4096}", text):
        return False
    return any(map(_is_random, re.split(r"[_-]", text)))


def shows_a_key(text: str) -> bool:
    """Whether anything in a text may be a key."""
    return any(map(looks_like_key, re.findall(r"[A-Za-z0-9_.=+/-]+", text)))


def _is_random(part: str) -> bool:
    """Whether letters and digits, or capitals and small letters, are mixed as in no word."""
    digits, letters = re.findall(r"\d", part), re.findall(r"[A-Za-z]", part)
    changes = re.findall(r"\d(?=[A-Za-z])|[A-Za-z](?=\d)", part)
    if len(part) >= _LONG and len(digits) >= 3 and len(letters) >= 3 and len(changes) >= 3:
        return True
    turns = re.findall(r"[a-z](?=[A-Z])|[A-Z](?=[a-z])", part)
    return len(part) >= _LONGER and len(turns) >= 0.42 * len(part)  # random ones turn half the time


def names_a_secret(name: str) -> bool:
    """Whether a header or a field of this name is where a key would stand."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_").replace(" ", "_")
    if _HARMLESS.fullmatch(words):
        return False
    joined = re.sub(r"[^a-z0-9]", "", words)
    return bool(_SECRET.search(words) or _LAST.search(words) or _JOINED.search(joined))
