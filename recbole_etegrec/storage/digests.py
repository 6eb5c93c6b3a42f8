"""Digests of tensors, bytes and files, and of the files of a folder as a file in it."""

import hashlib
import json
from pathlib import Path

import torch

_CHECKSUMS = "checksums.json"


def tensor_digest(state: dict[str, torch.Tensor]) -> str:
    """Hash tensors on any device; two states have the same hash if they are equal to the bit."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def bytes_digest(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_checksums(folder: Path) -> None:
    """Write ``checksums.json``, the SHA-256 of each file in a folder and in those below it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    sums.pop(_CHECKSUMS, None)
    (folder / _CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", "utf-8")


def damaged_file(folder: Path, *needed: str) -> str | None:
    """The first file of a folder that is missing or not as :func:`write_checksums` found it.

    Args:
        needed: files that the folder must have.
    """
    try:
        sums = json.loads((folder / _CHECKSUMS).read_text("utf-8"))
        names = sorted({*needed, *sums.keys()})
    except (OSError, ValueError, AttributeError):
        return _CHECKSUMS
    for name in names:
        path = folder / name
        if not path.is_file() or file_digest(path) != sums.get(name):
            return name
    return None
