"""Signatures of what is published: Ed25519 (RFC 8032), by `cryptography`.

Keys are PEM files, as `openssl genpkey -algorithm ed25519` writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from verifier.errors import ConfigError
from verifier.files.strict_yaml import read_bounded

_LONGEST: Final = 16_384  # bytes of a file that holds a key


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs. Raises ConfigError for what is none."""
    raw = read_bounded(path, limit=_LONGEST)
    try:
        key = load_pem_private_key(raw, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private")
    return key


def read_public_key(path: Path) -> str:
    """The key that must have signed, in hexadecimal. Raises ConfigError for what is none."""
    raw = read_bounded(path, limit=_LONGEST)
    try:
        key = load_pem_public_key(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public")
    return key.public_bytes_raw().hex()


def _no_key(path: Path, kind: str) -> ConfigError:
    """What is wrong with a file of a key: nothing of it is shown."""
    out = " -pubout" if kind == "public" else ""
    how = f"openssl pkey -in KEY{out}" if out else "openssl genpkey -algorithm ed25519"
    return ConfigError(
        f"{path}: holds no {kind} Ed25519 key as an unencrypted PEM; `{how}` writes one"
    )


def sign(text: bytes, key: Ed25519PrivateKey) -> tuple[str, str]:
    """The signature of a text and the public key that it is checked with, in hexadecimal."""
    return key.sign(text).hex(), key.public_key().public_bytes_raw().hex()


def is_signed(text: bytes, *, signature: str, public_key: str) -> bool:
    """Whether the holder of a key signed a text."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), text)
    except (ValueError, InvalidSignature):
        return False
    return True
