"""How one model is told apart from another.

Workers announce a fingerprint when they register; the broker refuses a pair that differs, and a
router refuses workers whose tokenizer is not its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class ModelFingerprint:
    """Everything two workers must agree on before they exchange pages (fields as in types.proto)."""

    model: str
    architecture: str
    vocab_size: int
    tokenizer_sha256: str
    weights_sha256: str
    n_layers: int
    n_kv_heads: int
    head_dim: int
    page_tokens: int
    kv_dtype: str
    max_model_len: int

    @property
    def page_elements(self) -> int:
        """Elements of one page over all layers, keys and values."""
        return self.n_layers * 2 * self.n_kv_heads * self.page_tokens * self.head_dim

    def differences(self, other: ModelFingerprint) -> list[str]:
        """Names each field that differs with both values, this one's first; empty when they agree."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name} {mine[name]!r} != {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]
