"""Digests of a published model: of all that the loaders read in its directory, by content.

They hold whatever library wrote the files. Each is made of parts, a file or a key of one, so that
what differs can be named where it can be known. Knows no engine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from verifier.errors import ReferenceMismatch
from verifier.reference.cards import Digests, digest_of
from verifier.reference.snapshot import (
    CONFIG,
    MAX_LARGE_BYTES,
    TOKENIZER,
    read_object,
    read_raw,
    read_tensors,
    read_text,
)

TOKENIZER_CONFIG: Final = "tokenizer_config.json"

#: How many bytes of a tensor are held at once.
PIECE: Final = 16 * 2**20

#: Settings of quantization that checkpoints keep beside config.json, and vLLM reads.
_QUANTIZATION = (
    "hf_quant_config.json", "quant_config.json", "quantization_config.json", "quantize_config.json",
)  # fmt: skip

#: Vocabularies beside tokenizer.json: SentencePiece's, tiktoken's, Mistral's, and those of
#: tokenizers in Python. Which is read depends on the tokenizer's class and on what is installed.
_VOCABULARIES = (
    "*.model", "*.spm", "*.tiktoken", "*tekken*.json", "*vocab*.json", "*vocab*.txt", "merges*.txt",
    "tokenizer.*.json", "bpe.codes", "dict.txt",
)  # fmt: skip

#: Keys of config.json that say only what wrote it.
_WRITER = frozenset({"transformers_version"})

#: Where processors keep a chat template.
_TEMPLATE_JSON = "chat_template.json"

#: Keys of tokenizer_config.json that say only what wrote it, or that the loader sets itself;
#: the template has a digest of its own.
_ASIDE = frozenset(
    {"chat_template", "is_local", "local_files_only", "name_or_path", "transformers_version"}
)

Parts = dict[str, str]  # sha256 by file, or by file and key


# -- tensors -----------------------------------------------------------------------------------


def tensors_sha256(directory: Path) -> str:
    """Digest of every tensor's name, dtype, shape and bytes, however they are split into files.

    Raises ReferenceMismatch where the files are malformed, or loaders would take others.
    """
    tensors = read_tensors(directory)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        stored = tensors[name]
        digest.update(f"{name}|{stored.dtype}|{list(stored.shape)}|".encode())
        with stored.shard.open("rb") as file:
            file.seek(stored.begin)
            left = stored.end - stored.begin
            while left:
                piece = file.read(min(left, PIECE))
                if not piece:
                    raise ReferenceMismatch(f"{stored.shard}: changes while it is read")
                digest.update(piece)
                left -= len(piece)
    return digest.hexdigest()


# -- parts of the other digests ----------------------------------------------------------------


def config_parts(directory: Path) -> Parts:
    """What shapes the computation: config.json, quantization beside it, and code that lies there.

    Code is never run; a checkpoint that ships some is pinned with it. generation_config.json is
    left out: replies are scored, and what probes leave unsaid of sampling is the card's to say.
    """
    path = directory / CONFIG
    config = read_object(path)
    if "configuration_files" in config:
        raise ReferenceMismatch(
            f"{path}: configuration_files names other files by transformers' version; take it out"
        )
    parts = _keys(path, config, leaving=_WRITER)
    for name in _QUANTIZATION:
        if (directory / name).is_file():
            parts[name] = _digest(directory / name, read_object(directory / name))
    return parts | _bytes(directory, directory.glob("*.py"))


def tokenizer_parts(directory: Path) -> Parts:
    """What turns text into ids and back: tokenizer.json, its configuration, special and added
    tokens, and every other vocabulary that lies there."""
    parts: Parts = {}
    if (directory / TOKENIZER).is_file():
        parts |= _tokenizer(directory / TOKENIZER)
    parts |= _bytes(directory, (path for name in _VOCABULARIES for path in directory.glob(name)))
    if not parts:
        raise ReferenceMismatch(f"{directory}: no tokenizer.json")
    config = _tokenizer_config(directory)
    if "fast_tokenizer_files" in config:
        raise ReferenceMismatch(
            f"{directory / TOKENIZER_CONFIG}: fast_tokenizer_files names other files by "
            "transformers' version; take it out"
        )
    parts |= _keys(directory / TOKENIZER_CONFIG, config, leaving=_ASIDE)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if (directory / name).is_file():
            parts |= _keys(directory / name, read_object(directory / name))
    return parts


def _tokenizer(path: Path) -> Parts:
    """tokenizer.json by its sections; how merges are spelled and defaults written out is left."""
    raw = read_object(path, limit=MAX_LARGE_BYTES)
    model = _model(path, raw)
    sections = {key: value for key, value in raw.items() if key != "model" and value is not None}
    return _keys(path, sections | {f"model.{key}": value for key, value in model.items()})


def _model(path: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What holds the vocabulary, with merges as pairs and without defaults that are written out."""
    model = raw.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise ReferenceMismatch(
            f"{path}: not a tokenizer file (no vocabulary); remove the directory to fetch it anew"
        )
    found = {key: v for key, v in model.items() if v is not None and v is not False}
    if isinstance(found.get("merges"), list):
        found["merges"] = [m.split(" ") if isinstance(m, str) else m for m in found["merges"]]
    return found


def template_parts(directory: Path) -> Parts:
    """Every chat template that a loader could read, and the scripts that stand for one.

    A text alone has one digest, whether it has a file of its own or stands in the tokenizer's
    configuration.
    """
    parts = {name: _sha256(text.encode()) for name, text in _template_texts(directory).items()}
    beside = directory / _TEMPLATE_JSON
    if beside.is_file():
        parts[beside.name] = _digest(beside, read_object(beside))
    return parts | _bytes(directory, (directory / "encoding").glob("*.py"))


def shows_tools(directory: Path) -> bool:
    """Whether any of the chat templates of a directory reads the tools of a request."""
    texts, beside = [*_template_texts(directory).values()], directory / _TEMPLATE_JSON
    if beside.is_file():
        texts.append(read_text(beside))
    return any(re.search(r"\btools\b", text) for text in texts)


def _template_texts(directory: Path) -> dict[str, str]:
    """Chat templates as they are written: in the tokenizer's configuration, and in files."""
    texts = dict(_inner_templates(directory))
    for folder in (directory, directory / "additional_chat_templates", directory / "encoding"):
        for path in folder.glob("*.jinja"):
            name = str(path.relative_to(directory))
            alone = name == "chat_template.jinja" and "chat_template" not in texts
            texts["chat_template" if alone else name] = read_text(path)
    return texts


def _inner_templates(directory: Path) -> dict[str, str]:
    """The templates in a tokenizer's configuration: one, or several under names."""
    found = _tokenizer_config(directory).get("chat_template")
    match found:
        case None:
            return {}
        case str():
            texts: dict[Any, Any] = {"chat_template": found}
        case list() if all(isinstance(one, dict) for one in found):
            texts = {f"chat_template {one.get('name')}": one.get("template") for one in found}
        case dict():
            texts = {f"chat_template {name}": text for name, text in found.items()}
        case _:
            texts = {"chat_template": None}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ReferenceMismatch(
            f"{directory / TOKENIZER_CONFIG}: chat_template is neither a text nor a list of named "
            "ones; remove the directory to fetch it anew"
        )
    return texts


def _tokenizer_config(directory: Path) -> dict[str, Any]:
    path = directory / TOKENIZER_CONFIG
    return read_object(path) if path.is_file() else {}


def _keys(path: Path, values: Mapping[str, Any], *, leaving: Iterable[str] = ()) -> Parts:
    kept = values.keys() - set(leaving)
    return {f"{path.name}: {key}": _digest(path, values[key]) for key in sorted(kept)}


def _digest(path: Path, value: object) -> str:
    try:
        return digest_of(value)
    except (ValueError, RecursionError) as error:  # lone surrogates; nested too deep
        raise ReferenceMismatch(
            f"{path}: holds what no text can ({type(error).__name__}); remove the directory to "
            "fetch it anew"
        ) from error


def _bytes(directory: Path, paths: Iterable[Path]) -> Parts:
    return {
        str(path.relative_to(directory)): _sha256(read_raw(path, limit=MAX_LARGE_BYTES))
        for path in paths
        if path.is_file()
    }


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


# -- the digests -------------------------------------------------------------------------------


#: What each digest is made of, but for that of the tensors.
PARTS: Final[Mapping[str, Callable[[Path], Parts]]] = {
    "config_sha256": config_parts,
    "tokenizer_sha256": tokenizer_parts,
    "template_sha256": template_parts,
}


def config_sha256(directory: Path) -> str:
    """Digest of what shapes the computation; see `config_parts`."""
    return digest_of(config_parts(directory))


def tokenizer_sha256(directory: Path) -> str:
    """Digest of what turns text into ids and back; see `tokenizer_parts`."""
    return digest_of(tokenizer_parts(directory))


def template_sha256(directory: Path) -> str:
    """Digest of every template, that of nothing where there is none; see `template_parts`."""
    return digest_of(template_parts(directory))


def digests_of(directory: Path) -> Digests:
    """Digests of what lies in a directory."""
    return Digests(
        rules=2,
        tensors_sha256=tensors_sha256(directory),
        config_sha256=config_sha256(directory),
        tokenizer_sha256=tokenizer_sha256(directory),
        template_sha256=template_sha256(directory),
    )


def explain(parts: Parts, pinned: str) -> str:
    """What differs from a pinned digest: by name if one part is too many, else where it must be."""
    for name in parts:
        if digest_of({part: value for part, value in parts.items() if part != name}) == pinned:
            return f"{name} is no part of what was pinned"
    files = list(dict.fromkeys(part.partition(": ")[0] for part in parts))
    if len(files) > 6:
        files[6:] = [f"{len(files) - 6} more"]
    return f"made of {', '.join(files)}" if files else "there is nothing of it"


def vocabulary_sha256(directory: Path) -> str:
    """Digest of what makes ids of a text: two models with the same one share their ids.

    Vocabulary, merges, added tokens, normalizer and pre-tokenizer of tokenizer.json; without one,
    the other vocabularies. Templates and the choice of special tokens may differ.
    """
    path = directory / TOKENIZER
    if not path.is_file():
        return digest_of(
            {name: part for name, part in tokenizer_parts(directory).items() if ": " not in name}
        )
    raw = read_object(path, limit=MAX_LARGE_BYTES)
    splits = {key: raw.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer")}
    return _digest(path, {"model": _model(path, raw), **splits})
