"""Families of models, read from what their files say, as one description that the engine knows: ours.

    model_type (Hugging Face)     GGUF     what it adds to a Llama
    llama (also SmolLM2)          llama    -
    mistral                       llama    a window: a token sees the last so many
    qwen2 (also Qwen2.5)          qwen2    biases on Q, K and V
    qwen3                         qwen3    norms on the heads of Q and K

The idea: every key that changes the numbers is read here, or refused by its name; a model that almost fits would speak
almost well, which nobody notices. Every kind of rope scaling comes to a table of divisors, one a pair of dimensions,
computed here once, so that the engine has no kinds. What has the engine's default is left out, so that the description
of a plain model never changes, and with it the model's digest.

Numbers are bounded before anything is computed with them: a stranger's config is a stranger's.

Refused: experts, quantised checkpoints, windows in some layers only, biases elsewhere, other activations, rope that
turns a part of a head or changes with the length of the text. Rejected: running the code a model ships.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshnode import errors

Config = dict[str, Any]

_COUNT_MAX = 1 << 20
_LAYERS_MAX = 512
_HIDDEN_MAX = 1 << 16
_HEAD_DIM_MAX = 256
_CONTEXT_DEFAULT = 2048
_WHOLES = {
    "layers": _LAYERS_MAX,
    "hidden": _HIDDEN_MAX,
    "heads": _COUNT_MAX,
    "kv_heads": _COUNT_MAX,
    "head_dim": _HEAD_DIM_MAX,
    "ffn": _COUNT_MAX,
    "vocabulary": _COUNT_MAX,
    "context_tokens_max": _COUNT_MAX,
}
"""What every description has, and up to which number."""
_WINDOW_DEFAULT = 4096
_WINDOW_LAYER_DEFAULT = 28


@dataclass(frozen=True, slots=True)
class Source:
    """What a file says, and how it is called in refusals."""

    name: str
    values: Mapping[str, Any]
    prefix: str = ""

    def refusal(self, key: str, why: str) -> errors.EngineError:
        return errors.EngineError(f"{self.name}: {self.prefix}{key} is {self.values.get(self.prefix + key)!r}, {why}")

    def get(self, key: str, default: Any = None) -> Any:
        found = self.values.get(self.prefix + key)
        return default if found is None else found

    def whole(self, key: str, most: int, default: int | None = None) -> int:
        found = self.get(key, default)
        if type(found) is not int or not 1 <= found <= most:
            raise self.refusal(key, f"not a whole number from 1 to {most}")
        return found

    def real(self, key: str, least: float, most: float, default: float | None = None) -> float:
        found = self.get(key, default)
        if type(found) not in (int, float) or not least <= found <= most:
            raise self.refusal(key, f"not a number from {least:g} to {most:g}")
        return float(found)

    def only(self, key: str, *allowed: Any) -> None:
        """A key that must be absent, or say what is done here anyway."""
        if (found := self.get(key)) is not None and found not in allowed:
            raise self.refusal(key, "which is not done here")


def from_hub(values: Mapping[str, Any]) -> Config:
    """From a config.json as transformers writes it."""
    source = Source("config.json", values)
    kind = source.get("model_type")
    if kind not in ("llama", "mistral", "qwen2", "qwen3"):
        raise source.refusal("model_type", "known are llama, mistral, qwen2 and qwen3")
    source.only("hidden_act", "silu")
    for key in ("attention_bias", "mlp_bias"):
        source.only(key, False)
    for key in ("quantization_config", "num_experts", "num_local_experts"):
        source.only(key)
    heads = source.whole("num_attention_heads", _COUNT_MAX)
    hidden = source.whole("hidden_size", _HIDDEN_MAX)
    config = {
        "layers": source.whole("num_hidden_layers", _LAYERS_MAX),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": source.whole("num_key_value_heads", _COUNT_MAX, heads),
        "head_dim": source.whole("head_dim", _HEAD_DIM_MAX, 128 if kind == "qwen3" else hidden // heads),
        "ffn": source.whole("intermediate_size", _COUNT_MAX),
        "vocabulary": source.whole("vocab_size", _COUNT_MAX),
        "context_tokens_max": source.whole("max_position_embeddings", _COUNT_MAX, _CONTEXT_DEFAULT),
        "rms_eps": source.real("rms_norm_eps", 1e-12, 1e-2, 1e-6),
    }
    _check(source, config)
    return config | _family(kind, window_tokens=_hub_window(source, kind, config)) | _hub_rope(source, config)


def from_gguf(values: Mapping[str, Any], vocabulary: int) -> Config:
    """From a GGUF file's metadata; the tensors say whether the head is tied, and `llama3` scaling is one of them."""
    kind = values.get("general.architecture")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise errors.EngineError(f"general.architecture is {kind!r}, known are llama, qwen2 and qwen3")
    source = Source("the GGUF file", values, f"{kind}.")
    source.only("expert_count", 0)
    heads = source.whole("attention.head_count", _COUNT_MAX)
    hidden = source.whole("embedding_length", _HIDDEN_MAX)
    turned = source.whole("rope.dimension_count", _HEAD_DIM_MAX, source.get("attention.key_length", hidden // heads))
    for key in ("attention.key_length", "attention.value_length"):
        source.only(key, turned)
    config = {
        "layers": source.whole("block_count", _LAYERS_MAX),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": source.whole("attention.head_count_kv", _COUNT_MAX, heads),
        "head_dim": turned,
        "ffn": source.whole("feed_forward_length", _COUNT_MAX),
        "vocabulary": vocabulary,
        "context_tokens_max": source.whole("context_length", _COUNT_MAX),
        "rms_eps": source.real("attention.layer_norm_rms_epsilon", 1e-12, 1e-2),
    }
    _check(source, config)
    window = source.whole("attention.sliding_window", _COUNT_MAX) if source.get("attention.sliding_window") else None
    return config | _family(kind, window_tokens=window) | _gguf_rope(source, config)


def check_description(config: Mapping[str, Any]) -> None:
    """Whether this is a description as this file makes them. Raises EngineError, naming the key: one that is not known
    may change the numbers."""
    source = Source("config.json", config)
    for key, most in _WHOLES.items():
        source.whole(key, most)
    source.real("rms_eps", 1e-12, 1e-2)
    source.real("rope_theta", 1.0, 1e12)
    for key in ("tied", "qkv_bias", "qk_norm"):
        source.only(key, True, False)
    if "window_tokens" in config:
        source.whole("window_tokens", _COUNT_MAX)
    source.real("rope_amplitude", 0.0, 1e3, 1.0)
    divisors = source.get("rope_divisors", [])
    if not isinstance(divisors, list) or not all(type(one) in (int, float) and 0 < one < 1e6 for one in divisors):
        raise source.refusal("rope_divisors", "not a list of numbers above 0")
    if divisors and len(divisors) != config["head_dim"] // 2:
        raise source.refusal("rope_divisors", "not one for each pair of dimensions")
    known = {*_WHOLES, "rms_eps", "rope_theta", "tied", "qkv_bias", "qk_norm", "window_tokens"}
    for key in config:
        if key not in known | {"rope_divisors", "rope_amplitude"}:
            raise source.refusal(key, "which is not known here")
    _check(source, dict(config))


def tensors(config: Config) -> dict[str, tuple[int, ...]]:
    """The names and shapes of exactly the weights that such a model has."""
    hidden, ffn, dim = config["hidden"], config["ffn"], config["head_dim"]
    q, kv = config["heads"] * dim, config["kv_heads"] * dim
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocabulary"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tied", True):
        found["lm_head.weight"] = (config["vocabulary"], hidden)
    for number in range(config["layers"]):
        parts: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (q, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, q),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (ffn, hidden),
            "mlp.up_proj.weight": (ffn, hidden),
            "mlp.down_proj.weight": (hidden, ffn),
        }
        if config.get("qkv_bias"):
            parts |= {f"self_attn.{name}_proj.bias": (size,) for name, size in (("q", q), ("k", kv), ("v", kv))}
        if config.get("qk_norm"):
            parts |= {f"self_attn.{name}_norm.weight": (dim,) for name in "qk"}
        found |= {f"model.layers.{number}.{name}": size for name, size in parts.items()}
    return found


def check_tensors(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises EngineError for the first that is missing, too many, or of another shape."""
    for name, size in expected.items():
        if name not in found:
            raise errors.EngineError(f"the weights lack {name} of shape {size}")
        if found[name] != size:
            raise errors.EngineError(f"{name} has the shape {found[name]}, not {size}")
    for name in found:
        if name not in expected:
            raise errors.EngineError(f"the tensor {name} is not of this architecture")


def _check(source: Source, config: Config) -> None:
    if config["heads"] % config["kv_heads"]:
        raise errors.EngineError(
            f"{source.name}: {config['heads']} heads cannot share {config['kv_heads']} heads of keys and values"
        )
    if config["head_dim"] % 2 or config["heads"] * config["head_dim"] > _COUNT_MAX:
        raise errors.EngineError(f"{source.name}: heads of {config['head_dim']} dimensions are odd, or too many")


def _family(kind: str, *, window_tokens: int | None) -> Config:
    """What differs from a Llama, and nothing else."""
    added: Config = {"window_tokens": window_tokens} if window_tokens else {}
    if kind == "qwen2":
        added["qkv_bias"] = True
    if kind == "qwen3":
        added["qk_norm"] = True
    return added


def _hub_window(source: Source, kind: str, config: Config) -> int | None:
    """Mistral's window is on unless it is null, Qwen's is off unless it is asked for."""
    types = source.get("layer_types", [])
    if not isinstance(types, list) or types != types[:1] * len(types):
        raise source.refusal("layer_types", "but here all layers attend alike")
    if kind == "llama" or (kind != "mistral" and not source.get("use_sliding_window")):
        return None
    if not source.values.get("sliding_window", _WINDOW_DEFAULT):
        return None
    window = source.whole("sliding_window", _COUNT_MAX, _WINDOW_DEFAULT)
    first = 0 if kind == "mistral" else source.get("max_window_layers", _WINDOW_LAYER_DEFAULT)
    if type(first) is not int or 0 < first < config["layers"]:
        raise source.refusal("max_window_layers", "but here all layers attend alike")
    if first:
        return None
    return window if window < config["context_tokens_max"] else None


def _hub_rope(source: Source, config: Config) -> Config:
    """`rope_scaling` beside `rope_theta` in older files, `rope_parameters` with both in newer ones."""
    key = "rope_parameters" if source.get("rope_parameters") else "rope_scaling"
    said = source.get(key, {})
    if not isinstance(said, dict):
        raise source.refusal(key, "not an object")
    rope = Source(f"config.json: {key}", said)
    theta = rope.real("rope_theta", 1.0, 1e12, source.get("rope_theta", 10000.0))
    for where in (rope, source):
        where.only("partial_rotary_factor", 1, 1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise rope.refusal("rope_type" if "rope_type" in said else "type", f"known are {', '.join(_SCALINGS)}")
    return {"rope_theta": theta} | _SCALINGS[kind](rope, theta, config)


def _gguf_rope(source: Source, config: Config) -> Config:
    theta = source.real("rope.freq_base", 1.0, 1e12, 10000.0)
    kind = source.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise source.refusal("rope.scaling.type", "known are none, linear and yarn")
    names = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}
    names |= {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "attn_factor": "attention_factor"}
    said = {to: found for name, to in names.items() if (found := source.get(f"rope.scaling.{name}")) is not None}
    rope = Source("the GGUF file: rope.scaling", said)
    return {"rope_theta": theta} | _SCALINGS["default" if kind == "none" else kind](rope, theta, config)


def _plain(rope: Source, theta: float, config: Config) -> Config:
    return {}


def _linear(rope: Source, theta: float, config: Config) -> Config:
    return {"rope_divisors": [rope.real("factor", 1.0, 1024.0)] * (config["head_dim"] // 2)}


def _llama3(rope: Source, theta: float, config: Config) -> Config:
    """Slow pairs are slowed by the factor, quick ones stay, and those between are blended."""
    factor, low = rope.real("factor", 1.0, 1024.0), rope.real("low_freq_factor", 1e-3, 1e3)
    high = rope.real("high_freq_factor", 1e-3, 1e3)
    if low >= high:
        raise rope.refusal("low_freq_factor", "not below high_freq_factor")
    original = rope.whole("original_max_position_embeddings", _COUNT_MAX)
    divisors = []
    for speed in _speeds(theta, config["head_dim"]):
        turns_count = original * speed / (2 * math.pi)  # over the context that the model was first trained with
        share = min(1.0, max(0.0, (turns_count - low) / (high - low)))
        divisors.append(1 / ((1 - share) / factor + share))
    return {"rope_divisors": divisors}


def _yarn(rope: Source, theta: float, config: Config) -> Config:
    """As `llama3`, with a blend over the number of the pair, and everything louder."""
    factor, dim = rope.real("factor", 1.0, 1024.0), config["head_dim"]
    original = rope.whole("original_max_position_embeddings", _COUNT_MAX, config["context_tokens_max"])
    if theta <= 1.0:
        raise rope.refusal("rope_theta", "and yarn needs more than 1")

    def pair(turns_count: float) -> float:
        return dim * math.log(original / (turns_count * 2 * math.pi)) / (2 * math.log(theta))

    first = pair(rope.real("beta_fast", 1e-3, 1e6, 32.0))
    last = pair(rope.real("beta_slow", 1e-3, 1e6, 1.0))
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001
    shares = [1 - min(1.0, max(0.0, (number - first) / width)) for number in range(dim // 2)]
    amplitude = rope.real("attention_factor", 1e-3, 1e3, _loudness(rope, factor))
    return {"rope_divisors": [1 / ((1 - share) / factor + share) for share in shares], "rope_amplitude": amplitude}


def _loudness(rope: Source, factor: float) -> float:
    parts = [rope.real(key, 0.0, 1e3, 0.0) for key in ("mscale", "mscale_all_dim")]
    gains = [0.1 * part * math.log(factor) + 1.0 for part in parts]
    return gains[0] / gains[1] if all(parts) else 0.1 * math.log(factor) + 1.0


def _speeds(theta: float, head_dim: int) -> list[float]:
    """How far each pair turns with each token, unscaled."""
    return [theta ** (-2 * number / head_dim) for number in range(head_dim // 2)]


_SCALINGS = {"default": _plain, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
