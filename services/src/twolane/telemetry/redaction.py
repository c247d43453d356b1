"""Takes secrets out of whatever is about to be logged.

The log formatter runs every string through `redact` and every field name through `is_secret_name`,
so that a token in a header, an address or an exception's text never gets out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

# Exact names: "max_tokens" and "prompt_tokens" must stay readable.
_SECRET_NAMES = frozenset(
    {
        "authorization",
        "proxy_authorization",
        "api_key",
        "api_keys",
        "x_api_key",
        "apikey",
        "token",
        "access_token",
        "hf_token",
        "bearer",
        "password",
        "passwd",
        "secret",
        "cookie",
        "set_cookie",
    }
)
_HEADER = (
    r"(?:proxy-)?authorization|(?:x[-_])?api[-_]?keys?|access[-_]token|hf[-_]token|password|passwd|secret"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Before the generic pair below, which would stop at the scheme's name.
    (re.compile(r"\b(bearer|basic)(['\"]?\s+)[^\s'\",;)\]}]+", re.IGNORECASE), rf"\1\2{REDACTED}"),
    (
        re.compile(
            rf"\b({_HEADER})(b?['\"]?\s*[:=,]\s*b?['\"]?)(?!(?:bearer|basic)\b)[^\s'\",;)\]}}]+",
            re.IGNORECASE,
        ),
        rf"\1\2{REDACTED}",
    ),
    (re.compile(r"\bsk-[A-Za-z0-9_\-]{6,}"), REDACTED),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), REDACTED),
    # The password of scheme://user:password@host, as in a Redis address.
    (re.compile(r"(\b[a-z][a-z0-9+.\-]*://[^\s:/@]*:)[^\s/@]+@", re.IGNORECASE), rf"\1{REDACTED}@"),
)


def redact(text: str) -> str:
    """The text with bearer tokens, API keys and passwords replaced by "[redacted]"."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def is_secret_name(name: str) -> bool:
    """Whether a field of that name (any case, dashes or underscores) holds a secret as a whole."""
    return name.lower().replace("-", "_") in _SECRET_NAMES


def redact_value(value: Any, name: str = "") -> Any:
    """The value with every secret inside replaced; containers are copied, numbers pass unchanged."""
    if is_secret_name(name):
        return REDACTED
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): redact_value(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact_value(item) for item in value]
    return redact(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value))
