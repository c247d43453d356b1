"""Names of cached prefixes: one chained hash per full page of tokens.

Router, workers and broker must compute the same names, so the function is here and depends on
nothing but its arguments (no process-wide hash seed).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

HASH_BYTES = 16


def page_hashes(tokens: Sequence[int], page_tokens: int, salt: str = "") -> list[bytes]:
    """Hashes of every full page of `tokens`; each covers all tokens before it and the salt.

    Args:
        tokens: token ids from the start of the prompt.
        page_tokens: tokens of a page.
        salt: keeps one tenant's prefixes apart from another's.

    Returns:
        One 16-byte BLAKE2b digest per full page; equal digests mean equal prefixes.
    """
    packed = array("I", tokens)
    step = page_tokens
    parent = hashlib.blake2b(salt.encode(), digest_size=HASH_BYTES).digest()
    hashes: list[bytes] = []
    for start in range(0, len(packed) - step + 1, step):
        page = hashlib.blake2b(parent, digest_size=HASH_BYTES)
        page.update(packed[start : start + step].tobytes())
        parent = page.digest()
        hashes.append(parent)
    return hashes
