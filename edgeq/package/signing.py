"""Signatures over a package's checksums, by OpenSSF model-signing with a local EC key (extra `sign`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeq.errors import RecipeError, ToolError, VerifyError
from edgeq.graph.io import one_line


def sign(sums: Path, key: Path) -> None:
    """Write SHA256SUMS.sig. Raises ToolError without the extra, RecipeError for a file that is no EC private key."""
    configured = _model_signing("signing").Config()
    try:
        configured.use_elliptic_key_signer(private_key=key).sign(sums, sums.with_name(f"{sums.name}.sig"))
    except Exception as error:  # of cryptography, of the file system, of model-signing itself
        raise RecipeError(f"{key}: can't sign with it ({one_line(error)}); give a PEM file of an EC key") from None


def check(sums: Path, public_key: Path) -> None:
    """Raises VerifyError unless the signature is there and is of that key, over these checksums."""
    signature = sums.with_name(f"{sums.name}.sig")
    if not signature.is_file():
        raise VerifyError(f"{sums.parent}: is not signed")
    configured = _model_signing("verifying").Config()
    try:
        configured.use_elliptic_key_verifier(public_key=public_key).verify(sums, signature)
    except Exception as error:  # of cryptography, of the file system, of model-signing itself
        raise VerifyError(
            f"{signature}: not a signature of these checksums by {public_key} ({one_line(error)})"
        ) from None


def _model_signing(module: str) -> Any:
    try:
        import model_signing
    except ImportError:
        raise ToolError("signatures need model-signing: pip install 'edgeq[sign]'") from None
    return getattr(model_signing, module)
