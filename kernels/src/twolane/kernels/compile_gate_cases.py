"""The kernels that the compile gate builds: argument types of a bf16 8B model's shapes, and budgets beside
them.

A budget is the measured use plus a little; raising one is a decision, to be explained in the commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twolane.kernels import (
    logit_rules,
    page_copy,
    paged_decode_attention,
    paged_prefill_attention,
    rms_norm,
    rotary_page_write,
    sampling,
    silu_mul,
)
from twolane.kernels.paged_kv import batch_block
from twolane.kernels.tuning import LaunchConfig

# Shapes of Qwen3-8B and Llama-3-8B.
_HEADS, _KV_HEADS, _HEAD_DIM, _HIDDEN, _PAGE_TOKENS = 32, 8, 128, 4096, 16


@dataclass(frozen=True)
class Budget:
    """Limits of one kernel: registers per thread, shared bytes, instructions that must appear per
    architecture."""

    max_registers: int
    max_shared_bytes: int = 16 * 1024
    instructions: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelCase:
    """One kernel with the types of its arguments.

    types: argument → "*bf16", "i32", "fp32" …, ":16" appended when divisible; constants: the
    constexpr arguments. Pointers count as aligned to 16 bytes.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    config: LaunchConfig
    budget: Budget

    def specialise(self) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
        """Signature, constants and divisibility hints in the order of the kernel's arguments."""
        constants = {**self.constants, **self.config.blocks}
        constants = {name: value for name, value in constants.items() if name in self.kernel.arg_names}
        signature: dict[str, str] = {}
        attributes: dict[tuple[int], list[list[Any]]] = {}
        for index, name in enumerate(self.kernel.arg_names):
            if name in constants:
                signature[name] = "constexpr"
                continue
            kind, _, hint = self.types[name].partition(":")
            signature[name] = kind
            parameter = self.kernel.params[index]
            anywhere = parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
            if (kind.startswith("*") or hint == "16") and not anywhere:
                attributes[(index,)] = [["tt.divisibility", 16]]
        return signature, constants, attributes


def kernel_cases(arch: int, all_configs: bool = False) -> list[KernelCase]:
    """Every kernel with the architecture's default launch configuration; with ``all_configs`` every
    candidate."""
    families = [*_elementwise(), *_attention(arch), *_logits()]
    cases = []
    for name, kernel, types, constants, configs, budget in families:
        for index, chosen in enumerate(configs if all_configs else configs[:1]):
            label = name if index == 0 else f"{name} #{index}"
            cases.append(KernelCase(label, kernel, types, constants, chosen, budget))
    return cases


_Family = tuple[str, Any, dict[str, str], dict[str, Any], list[LaunchConfig], Budget]


def _elementwise() -> list[_Family]:
    norm_types = {
        **dict.fromkeys(("x_ptr", "residual_ptr", "weight_ptr", "out_ptr"), "*bf16"),
        **dict.fromkeys(("stride_x", "stride_residual", "stride_out"), "i32:16"),
        "n_rows": "i32",
        "eps": "fp32",
    }
    norm_constants = {"N_COLUMNS": _HIDDEN, "BLOCK_COLUMNS": _HIDDEN, "HAS_RESIDUAL": True}
    silu_types = {
        **dict.fromkeys(("gate_up_ptr", "out_ptr"), "*bf16"),
        **dict.fromkeys(("n_columns", "stride_in", "stride_out"), "i32:16"),
    }
    copy_types = {
        **dict.fromkeys(("source_ptr", "target_ptr", "source_ids_ptr"), "*i64"),
        **dict.fromkeys(("n_words", "stride_source", "stride_target"), "i32:16"),
        **dict.fromkeys(("n_source_pages", "n_target_pages"), "i32"),
    }
    copy_constants = {"target_ids_ptr": None, "SOURCE_BY_ID": True, "TARGET_BY_ID": False}
    return [
        (
            "rms_norm",
            rms_norm._rms_norm_kernel,
            norm_types,
            norm_constants,
            rms_norm.candidates(_HIDDEN),
            Budget(64),
        ),
        ("silu_mul", silu_mul._silu_mul_kernel, silu_types, {}, silu_mul.candidates(12288), Budget(64)),
        (
            "page_copy",
            page_copy._page_copy_kernel,
            copy_types,
            copy_constants,
            page_copy.candidates(),
            Budget(64),
        ),
        _rotary(),
    ]


def _rotary() -> _Family:
    pointers = (
        "q_ptr",
        "k_ptr",
        "v_ptr",
        "q_out_ptr",
        "k_pages_ptr",
        "v_pages_ptr",
        "q_weight_ptr",
        "k_weight_ptr",
    )
    types = {
        **dict.fromkeys(pointers, "*bf16"),
        **dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32"),
        **dict.fromkeys(("positions_ptr", "slots_ptr"), "*i64"),
        **dict.fromkeys(("stride_q", "stride_k", "stride_v", "stride_q_out"), "i32:16"),
        **dict.fromkeys(("stride_page", "stride_page_head", "n_slots"), "i32:16"),
        "eps": "fp32",
    }
    constants = {
        "N_HEADS": _HEADS,
        "N_KV_HEADS": _KV_HEADS,
        "D": _HEAD_DIM,
        "PAGE_TOKENS": _PAGE_TOKENS,
        "NORM": True,
        "BLOCK_HALF": _HEAD_DIM // 2,
    }
    kernel = rotary_page_write._rotary_page_write_kernel
    return (
        "rotary_page_write",
        kernel,
        types,
        constants,
        rotary_page_write.candidates(_HEADS, _HEAD_DIM),
        Budget(128),
    )


_ATTENTION_TYPES = {
    **dict.fromkeys(("q_ptr", "k_pages_ptr", "v_pages_ptr", "out_ptr"), "*bf16"),
    **dict.fromkeys(("page_table_ptr", "context_lens_ptr", "cu_seqlens_ptr"), "*i32"),
    **dict.fromkeys(("partial_ptr", "lse_ptr"), "*fp32"),
    **dict.fromkeys(("stride_q", "stride_out", "stride_page", "stride_page_head"), "i32:16"),
    **dict.fromkeys(("n_sequences", "programs_per_kv_head", "n_splits", "block_tokens"), "i32"),
    "stride_table": "i32",
    "scale_log2": "fp32",
}
_ATTENTION_SHAPE = {
    "N_KV_HEADS": _KV_HEADS,
    "N_HEADS": _HEADS,
    "GROUP": _HEADS // _KV_HEADS,
    "D": _HEAD_DIM,
    "PAGE_TOKENS": _PAGE_TOKENS,
    "WINDOW": 0,
    "SPLIT": True,
    "BLOCK_BATCH": batch_block(1),
    "BLOCK_SPLITS": 64,
    "BLOCK_GROUP": 16,
    "BLOCK_D": _HEAD_DIM,
    "UPCAST_DOT": False,
}


def _attention(arch: int) -> list[_Family]:
    return [*_decode(), *_prefill(arch)]


def _decode() -> list[_Family]:
    types, shape = _ATTENTION_TYPES, _ATTENTION_SHAPE
    configs = paged_decode_attention.candidates(_HEAD_DIM, 2)
    budget = Budget(168, 160 * 1024, {80: ("HMMA", "LDGSTS"), 90: ("HMMA", "LDGSTS")})
    split, merge = paged_decode_attention._decode_split_kernel, paged_decode_attention._decode_merge_kernel
    name = "paged_decode_attention"
    return [
        (name, split, types, shape, configs, budget),
        (f"{name}, one split", split, types, {**shape, "SPLIT": False}, configs[:1], budget),
        (f"{name}, window", split, types, {**shape, "WINDOW": 4096}, configs[:1], budget),
        (f"{name}, merge", merge, types, shape, [paged_decode_attention._MERGE], Budget(112)),
    ]


def _prefill(arch: int) -> list[_Family]:
    types, shape = _ATTENTION_TYPES, _ATTENTION_SHAPE
    configs = paged_prefill_attention.candidates(_HEAD_DIM, 2, 8192, arch, wide=True)
    narrow = paged_prefill_attention.candidates(_HEAD_DIM, 2, 8192, arch)
    short = paged_prefill_attention.candidates(_HEAD_DIM, 2, 64, arch)[:1]
    budget = Budget(255, 227 * 1024, {80: ("HMMA", "LDGSTS"), 90: ("HGMMA", "LDGSTS")})
    kernel, name = paged_prefill_attention._prefill_kernel, "paged_prefill_attention"
    shape = {**shape, "BY_DESCRIPTOR": 0}
    described: list[_Family] = []
    if arch >= 90:
        block_n = narrow[0].blocks["BLOCK_N"]
        pages = dict.fromkeys(
            ("k_pages_ptr", "v_pages_ptr"), f"tensordesc<bf16[1, 1, {block_n}, {_HEAD_DIM}]>"
        )
        options = paged_prefill_attention.by_descriptor(narrow, block_n)
        wide_pages = {**shape, "PAGE_TOKENS": 4 * _PAGE_TOKENS}
        tensor_memory = Budget(255, 227 * 1024, {90: ("HGMMA", "UTMALDG")})
        described = [(f"{name}, descriptor", kernel, {**types, **pages}, wide_pages, options, tensor_memory)]
    return [
        *described,
        (name, kernel, types, shape, configs, budget),
        (f"{name}, short", kernel, types, shape, short, budget),
        (f"{name}, short context", kernel, types, shape, narrow[:1], budget),
        (f"{name}, window", kernel, types, {**shape, "WINDOW": 4096}, narrow[:1], budget),
    ]


def _logits() -> list[_Family]:
    sampling_types = {
        "logits_ptr": "*fp32",
        **dict.fromkeys(("temperature_ptr", "top_p_ptr", "min_p_ptr", "logprob_ptr"), "*fp32"),
        **dict.fromkeys(("seed_ptr", "position_ptr", "token_ptr"), "*i64"),
        "top_k_ptr": "*i32",
        **dict.fromkeys(("n_vocab", "stride_logits"), "i32:16"),
    }
    rules_types = {
        "logits_ptr": "*fp32",
        **dict.fromkeys(("repetition_ptr", "presence_ptr", "frequency_ptr"), "*fp32"),
        **dict.fromkeys(("output_counts_ptr", "allowed_ptr"), "*i32"),
        "slot_ptr": "*i64",
        "in_prompt_ptr": "*u8",
        "n_slots": "i32",
        **dict.fromkeys(("n_vocab", "stride_logits", "stride_in_prompt", "stride_counts"), "i32:16"),
        "stride_allowed": "i32",
    }
    rules_constants = {"HAS_PENALTIES": True, "HAS_MASK": True}
    rules, draw = logit_rules._logit_rules_kernel, sampling._sampling_kernel
    return [
        ("logit_rules", rules, rules_types, rules_constants, logit_rules.candidates(), Budget(64)),
        ("sampling", draw, sampling_types, {}, sampling.candidates(151936), Budget(128)),
    ]
