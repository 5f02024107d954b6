"""Write a package whole or not at all, and check one that was received."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from edgeq.errors import EdgeqError, VerifyError
from edgeq.package import signing
from edgeq.package.contents import SUMS, Contents, write_sums
from edgeq.registry import load
from edgeq.report.folder import work_folder

LINE = re.compile(r"([0-9a-f]{64})  (.+)")
MOST_SUMS = 1 << 20  # bytes: some ten thousand files


def package(
    contents: Contents,
    platform: str,
    output: Path,
    *,
    max_bytes: int | None = None,
    key: Path | None = None,
    extra: Callable[[Path], str] | None = None,
) -> list[str]:
    """Write a package to the new folder `output`, or in place of an earlier package there; gives notes for the user.

    max_bytes: most that all of it may take. key: a PEM file with an EC private key that signs the checksums. extra:
    called with the folder before the checksums are taken, gives a note. Raises EdgeqError when `output` is something
    else, VerifyError over the budget, with a ledger of what is large.
    """
    module: Any = load("edgeq.package", platform, "build")
    output = Path(os.path.abspath(output))
    if output.exists() and not (output / SUMS).is_file():
        raise EdgeqError(f"{output}: is there and is no package; give a new folder")
    notes = list(module.NOTES)
    with work_folder(output.with_name(f"{output.name}.part")) as work:
        made = work / "package"
        made.mkdir()
        module.build(contents, made)
        if extra is not None and (note := extra(made)):
            notes.append(note)
        _within(made, max_bytes)
        write_sums(made)
        if key is not None:
            signing.sign(made / SUMS, key)
        if output.exists():
            output.rename(work / "old")
        made.rename(output)
    return notes


def _within(folder: Path, most: int | None) -> None:
    sizes = sorted(((p.stat().st_size, p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()), reverse=True)
    total = sum(size for size, _ in sizes)
    if most is not None and total > most:
        ledger = ", ".join(f"{path} {size}" for size, path in sizes[:5])
        raise VerifyError(f"the package has {total} bytes, over the {most} allowed; the largest: {ledger}")


def check(folder: Path, public_key: Path | None = None) -> int:
    """The number of files of a package that all are what SHA256SUMS says, with none beside them.

    public_key: a PEM file; the package must then be signed with the private half. Raises VerifyError that names the
    first file that is missing, changed, added or not a plain file.
    """
    sums = folder / SUMS
    if not sums.is_file() or sums.stat().st_size > MOST_SUMS:
        raise VerifyError(f"{folder}: has no {SUMS}; give a folder that edgeq package wrote")
    signature = sums.with_name(f"{SUMS}.sig")
    if public_key is not None:
        signing.check(sums, public_key)
    elif signature.exists():
        raise VerifyError(f"{folder}: is signed; give --key with the public key to check it")
    wanted: dict[str, str] = {}
    for number, line in enumerate(sums.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        found = LINE.fullmatch(line)
        parts = PurePosixPath(found[2]).parts if found else ()
        if found is None or PurePosixPath(found[2]).is_absolute() or ".." in parts:
            raise VerifyError(f"{sums}: line {number} is not a checksum of a file in the package")
        wanted[found[2]] = found[1]
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    for name, path in there.items():
        if path.is_symlink() or not path.is_file():
            raise VerifyError(f"{path}: is no plain file; the package was changed")
        if name not in wanted and path not in (sums, signature):
            raise VerifyError(f"{path}: is not in {SUMS}; the package was changed")
    for name, digest in wanted.items():
        if name not in there:
            raise VerifyError(f"{folder / name}: is missing; the package was changed")
        with open(there[name], "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise VerifyError(f"{folder / name}: is not what {SUMS} says; the package was changed")
    return len(wanted)
