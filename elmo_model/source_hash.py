"""Name the code of this package, for what must not outlive a change of it. Knows files only."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


@functools.cache
def source_sha256() -> str:
    """SHA-256 of the package's source files, as hexadecimal digits; the same wherever it lies."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for ending in ("py", "c", "h") for path in folder.rglob(f"*.{ending}")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
