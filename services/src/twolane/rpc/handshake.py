"""What a failed TLS handshake means, in words that say which side to look at.

TLS libraries speak of their functions. `errors.py` adds these sentences to what callers of gRPC see, page
streams and `twolane inspect tls` to what they say.
"""

from __future__ import annotations

# gRPC's words for a peer that goes away.
_CLOSED = "Socket closed"
_EXPIRED = "the peer's certificate has expired: renew the peer's, or check both clocks"
_EARLY = "the peer's certificate is not valid yet: check both clocks"
_OTHER_NAME = "the peer's certificate is signed by our authority, but for another component or deployment"
_STRANGER = (
    "the peer's certificate is signed by none of our authorities (ca.crt): it is of another deployment, "
    "or one of the two sides has not got the new authority yet"
)
_PLAIN = "the peer speaks plain text: give it --tls-dir, or take ours away"
_OURS_EXPIRED = "the peer says that our certificate has expired: renew ours (tls.crt)"
_NOT_SHOWN = "the peer wants a certificate and we showed none: give --tls-dir"
_NOT_TRUSTED = "the peer trusts no authority that signed our certificate (tls.crt): see the peer's ca.crt"
_HUNG_UP = (
    "the peer hung up while the connection was set up: it is about to stop, it speaks TLS and we do not, "
    "or it does not accept our certificate (`twolane inspect tls` says which)"
)
# The first sign that is found counts.
_MEANINGS = (
    ("certificate has expired", _EXPIRED),
    ("certificate is not yet valid", _EARLY),
    ("Hostname Verification Check failed", _OTHER_NAME),
    ("Hostname mismatch", _OTHER_NAME),
    ("CERTIFICATE_VERIFY_FAILED", _STRANGER),
    ("WRONG_VERSION_NUMBER", _PLAIN),
    ("CERTIFICATE_EXPIRED", _OURS_EXPIRED),
    ("CERTIFICATE_REQUIRED", _NOT_SHOWN),
    ("UNKNOWN_CA", _NOT_TRUSTED),
    (_CLOSED, _HUNG_UP),
)


def meaning(details: str) -> str:
    """What the words of a failed handshake mean; empty when they are of something else."""
    if _CLOSED in details and "failed to connect" not in details:
        # The connection had been set up.
        return ""
    found = details.upper()
    return next((words for sign, words in _MEANINGS if sign.upper() in found), "")
