"""What loading refuses, in words that say what to do, and what it reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from twolane.core.errors import ConfigError
from twolane.core.request import SamplingParams
from twolane.engine.config import EngineConfig, LoadProgress
from twolane.engine.engine import Engine
from twolane.engine.generation import SamplingDefaults
from twolane.engine.sequence import Row, Sequence

Make = Callable[..., Path]


def load(folder: Path, **settings: Any) -> Engine:
    """An engine with a small pool."""
    given: dict[str, Any] = {"n_pages": 16, "max_model_len": 64, "device": "cpu"} | settings
    return Engine.load(EngineConfig(folder, **given))


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Changes keys of a JSON file; a value of ... removes the key."""
    path = folder / file
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes the tensors of the single weight file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def first_logits(engine: Engine) -> torch.Tensor:
    """Logits after a fixed prompt, through the public step, as log probabilities of all tokens."""
    sampling = SamplingParams(max_tokens=1, temperature=0.0, top_logprobs=engine.spec.vocab_size)
    sequence = Sequence("a", [5, 6, 7, 8, 9], 5, sampling, page_ids=engine.pool.allocate(2))
    (drawn,) = engine.step([Row(sequence, 5, True)])
    engine.pool.release(sequence.page_ids)
    assert drawn is not None
    assert drawn.logprob is not None
    return torch.tensor([value for _, value in sorted(drawn.logprob.top)])


def test_random_weights_need_config_json_alone(new_folder: Make) -> None:
    """They are the same at every load, and the norms are neutral."""
    folder = new_folder("qwen3")
    trained = first_logits(load(folder))
    for file in ("tokenizer.json", "model.safetensors"):
        (folder / file).unlink()
    first, second = load(folder, random_weights=True), load(folder, random_weights=True)
    assert first.fingerprint == second.fingerprint
    values = first_logits(first)
    assert torch.equal(values, first_logits(second))
    assert values.isfinite().all()
    assert not torch.allclose(values, trained)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(new_folder: Make, missing: str) -> None:
    """One clear error with the file's name and what to do."""
    folder = new_folder()
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=rf"{missing}.*download"):
        load(folder)


def test_a_tokenizer_that_is_no_json_is_named(new_folder: Make) -> None:
    """Before the weights are read, though only routers encode."""
    folder = new_folder()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer.json can't be read as JSON .*download"):
        load(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A typing error in the path is told apart from a broken download."""
    with pytest.raises(ConfigError, match="nowhere does not exist; give a Hugging Face model folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"architectures": ["GemmaForCausalLM"]},
            "architectures: 'GemmaForCausalLM' is not served; served are Llama",
        ),
        ({"architectures": ...}, "architectures: None is not served"),
        ({"hidden_size": "48"}, "hidden_size: a whole number above zero is needed, not '48'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: a whole number"),
        ({"num_key_value_heads": 3}, "num_attention_heads: 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim: 15 must be even"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not served"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantised weights"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: true or false"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1.0}}, "type 'dynamic' is not served"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor: a number above zero"),
        ({"rope_parameters": [1]}, "rope_scaling: an object is needed"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
        ({"rms_norm_eps": -1}, "rms_norm_eps: a number above zero"),
    ],
    ids=str,
)
def test_a_bad_configuration_names_the_key(new_folder: Make, changes: dict[str, Any], complaint: str) -> None:
    """config.json is checked before any weight."""
    folder = new_folder()
    edit(folder, **changes)
    with pytest.raises(ConfigError, match=rf"config\.json: .*{complaint}"):
        load(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_broken_config_is_named(new_folder: Make, content: bytes) -> None:
    """Unreadable JSON is told as such."""
    folder = new_folder()
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json .*download it again"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_cut_off_weight_file_is_named(new_folder: Make, keep: int) -> None:
    """Truncated anywhere: in the length, in the header, in the data."""
    path = new_folder() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"model\.safetensors is corrupt .*download it again"):
        load(path.parent)


def test_garbage_instead_of_weights_is_named(new_folder: Make) -> None:
    """An HTML error page saved as weights, for example."""
    path = new_folder() / "model.safetensors"
    path.write_bytes(b"<html>not found</html>" * 50)
    with pytest.raises(ConfigError, match=r"model\.safetensors is corrupt"):
        load(path.parent)


def test_a_missing_tensor_is_named(new_folder: Make) -> None:
    """The first of the missing tensors and their number."""
    folder = new_folder()
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ConfigError, match=r"lack 1 of 30 tensors .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_wrong_shape_is_named_with_both_shapes(new_folder: Make) -> None:
    """Weights of another model size."""
    folder = new_folder()
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(47)}))
    with pytest.raises(ConfigError, match=r"model\.norm\.weight has shape \[47\] but .* asks for \[48\]"):
        load(folder)


def test_an_integer_tensor_is_refused(new_folder: Make) -> None:
    """Quantised values without a quantization_config."""
    folder = new_folder()
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}))
    with pytest.raises(ConfigError, match=r"model\.norm\.weight has element type I8; served are F32"):
        load(folder)


def shard(folder: Path) -> None:
    """Splits the single weight file in three with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number in range(3):
        part = dict(list(tensors.items())[number::3])
        save_file(part, folder / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_load_like_one_file(new_folder: Make) -> None:
    """The same logits, but another weights sha: headers differ."""
    folder = new_folder()
    whole = load(folder)
    shard(folder)
    parts = load(folder)
    assert torch.equal(first_logits(whole), first_logits(parts))
    assert whole.fingerprint.differences(parts.fingerprint)[0].startswith("weights_sha256")


def test_a_missing_shard_is_named(new_folder: Make) -> None:
    """The index lists it, the folder lacks it."""
    folder = new_folder()
    shard(folder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model-1\.safetensors is missing though .*index\.json lists it"):
        load(folder)


def test_an_index_that_lies_is_named(new_folder: Make) -> None:
    """A tensor that is not in the shard the index gives."""
    folder = new_folder()
    shard(folder)
    index = folder / "model.safetensors.index.json"
    mapping = json.loads(index.read_text())["weight_map"]
    name = next(key for key, file in mapping.items() if file == "model-0.safetensors")
    edit(folder, index.name, weight_map=mapping | {name: "model-2.safetensors"})
    with pytest.raises(ConfigError, match=rf"model-2\.safetensors lacks tensor {name}"):
        load(folder)
    edit(folder, index.name, weight_map={name: "../model-0.safetensors"})
    with pytest.raises(ConfigError, match="must be a file name"):
        load(folder)


def test_a_pool_too_small_for_one_request_is_refused_with_numbers(new_folder: Make) -> None:
    """Both ways of sizing the pool, before the weights are read."""
    folder = new_folder()
    (folder / "model.safetensors").write_bytes(b"never read")
    page_bytes = 3 * 2 * 2 * 16 * 16 * 4
    with pytest.raises(
        ConfigError, match=rf"64 tokens needs 4 pages of {page_bytes} bytes .* has 3 .* to 48"
    ):
        load(folder, n_pages=3)
    with pytest.raises(ConfigError, match=r"has 2 \("):
        load(folder, n_pages=None, kv_memory_bytes=3 * page_bytes - 1)
    with pytest.raises(ConfigError, match="max_model_len 300 exceeds the model's 256 positions"):
        load(folder, max_model_len=300)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown; use one of auto"),
        ({"kv_memory_bytes": 1000}, "exactly one of n_pages and kv_memory_bytes"),
        ({"page_tokens": 0}, "page_tokens must be at least 1"),
        ({"device": "tpu"}, "device 'tpu' is unknown"),
        ({"device": "meta"}, "device 'meta' is not served"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(new_folder: Make, settings: dict[str, Any], complaint: str) -> None:
    """Each names the setting and its values."""
    with pytest.raises(ConfigError, match=complaint):
        load(new_folder(), **settings)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.35), ("float16", 0.06)])
def test_half_precision_runs_close_to_float32(new_folder: Make, dtype: str, tolerance: float) -> None:
    """Weights are cast as they are copied, pages have the same type."""
    folder = new_folder("qwen3")
    exact, rounded = load(folder), load(folder, dtype=dtype)
    assert rounded.kv.dtype == getattr(torch, dtype)
    assert rounded.fingerprint.kv_dtype == dtype
    assert (first_logits(exact) - first_logits(rounded)).abs().max() < tolerance


def test_the_pool_can_live_in_memory_of_the_caller(new_folder: Make) -> None:
    """A shared segment, say: computed keys appear in it."""
    memory = bytearray(b"\xff" * (16 * 3 * 2 * 2 * 16 * 16 * 4 + 64))
    engine = load(new_folder(), kv_buffer=lambda n_bytes: memoryview(memory)[: n_bytes + 64])
    engine.kv.zero_()
    first_logits(engine)
    assert any(memory[: 3 * 2 * 2 * 16 * 16 * 4])
    with pytest.raises(ConfigError, match="buffer has 10 bytes"):
        load(new_folder(), kv_buffer=lambda n_bytes: memoryview(bytearray(10)))


def test_progress_names_every_stage_with_bytes_and_seconds(new_folder: Make) -> None:
    """Stages in order, each finished once, weights counted in bytes."""
    folder = new_folder()
    seen: list[LoadProgress] = []
    Engine.load(EngineConfig(folder, n_pages=16, device="cpu"), seen.append)
    finished = [report.stage for report in seen if report.finished]
    stages = [
        "read config",
        "map weights",
        "load weights",
        "pack weights",
        "build pages",
        "compile",
        "warm up",
    ]
    assert finished == stages
    by_stage = {report.stage: report for report in seen}
    assert by_stage["load weights"].total_bytes == (folder / "model.safetensors").stat().st_size
    assert by_stage["build pages"].done_bytes == 16 * 3 * 2 * 2 * 16 * 16 * 4
    assert all(report.elapsed_s >= 0 for report in seen)


def test_the_fingerprint_tells_the_folder(new_folder: Make) -> None:
    """Names, shapes and hashes as the contract says."""
    folder = new_folder()
    fingerprint = load(folder, served_name="chat").fingerprint
    assert fingerprint.model == "chat"
    assert (
        fingerprint.tokenizer_sha256 == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    )
    weights = (folder / "model.safetensors").read_bytes()
    header = weights[: 8 + int.from_bytes(weights[:8], "little")]
    whole = (folder / "config.json").read_bytes() + header
    assert fingerprint.weights_sha256 == hashlib.sha256(whole).hexdigest()
    assert (fingerprint.architecture, fingerprint.vocab_size) == ("LlamaForCausalLM", 199)
    assert (fingerprint.n_layers, fingerprint.n_kv_heads, fingerprint.head_dim) == (3, 2, 16)
    assert (fingerprint.page_tokens, fingerprint.kv_dtype, fingerprint.max_model_len) == (16, "float32", 64)
    assert load(folder).fingerprint.model == folder.name


def test_generation_defaults_are_read(new_folder: Make) -> None:
    """generation_config.json wins over config.json and may be absent."""
    folder = new_folder()
    values = {"eos_token_id": [2, 7], "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(values))
    engine = load(folder)
    assert engine.eos_token_ids == {2, 7}
    assert engine.default_sampling == SamplingDefaults(temperature=0.6, top_k=20, top_p=0.95)
    (folder / "generation_config.json").unlink()
    assert load(folder).eos_token_ids == {2}
    (folder / "generation_config.json").write_text('{"temperature": "warm"}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: temperature must be a number"):
        load(folder)


def test_old_spellings_of_rope_and_dtype_are_understood(new_folder: Make) -> None:
    """rope_theta beside rope_scaling, and torch_dtype, as folders before transformers 5 have them."""
    folder = new_folder("llama3-rope-tied")
    new = load(folder)
    raw = json.loads((folder / "config.json").read_text())
    rope = raw["rope_parameters"]
    theta = rope.pop("rope_theta")
    edit(folder, rope_parameters=..., rope_theta=theta, rope_scaling=rope, dtype=..., torch_dtype="float32")
    old = load(folder)
    assert old.spec == new.spec
    assert torch.equal(first_logits(old), first_logits(new))


def test_scaled_rope_extends_the_longest_context(new_folder: Make) -> None:
    """Linear and yarn multiply what the model was trained on."""
    assert load(new_folder("mistral-linear")).spec.max_position == 512
    assert load(new_folder("qwen2-yarn")).spec.max_position == 256
    assert load(new_folder("llama")).spec.max_position == 256
