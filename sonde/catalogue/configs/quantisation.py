"""The precision that weights are published in, read from a config's `quantization_config` and `dtype`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sonde.catalogue.configs.fields import Fields

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8"}
_METHODS = {
    "fp8": "fp8", "fbgemm_fp8": "fp8", "nvfp4": "nvfp4", "mxfp4": "mxfp4", "mxfp8": "fp8", "int8": "int8",
    "int4": "int4", "w4a8_awq": "int4", "w4a16_awq": "int4", "w8a8_sq": "int8", "fp8_pb_wo": "fp8",
}  # fmt: skip
_BY_BITS = {("int", 8): "int8", ("int", 4): "int4", ("float", 8): "fp8", ("float", 4): "nvfp4"}


def native_weights(f: Fields) -> str:
    """Return the precision of most published weights: "bf16", "fp8", "nvfp4", "mxfp4", "int4", ...

    Where experts are narrower than the rest, theirs counts, for they are most of the weights.
    """
    quantisation = f.get("quantization_config", "quantization")
    if isinstance(quantisation, Mapping):
        found = _quantised(f, quantisation)
        if found:
            return "mxfp4" if f.get("expert_dtype") == "fp4" and found == "fp8" else found
    dtype = str(f.get("dtype", "torch_dtype", default="bfloat16")).removeprefix("torch.")
    return _DTYPES.get(dtype, "bf16")


def _quantised(f: Fields, q: Mapping[str, Any]) -> str | None:
    for key in ("moe_quant_algo", "quant_algo", "quant_method"):
        name = str(q.get(key, "")).lower()
        if name in _METHODS:
            return _METHODS[name]
    if q.get("load_in_4bit") or q.get("load_in_8bit"):
        return "int4" if q.get("load_in_4bit") else "int8"
    if isinstance(q.get("bits"), int):
        return _BY_BITS.get(("int", q["bits"]))
    found = [_group(group) for group in _values(q, "config_groups")]
    found += [_METHODS.get(str(layer.get("quant_algo", "")).lower()) for layer in _values(q, "quantized_layers")]
    narrow = [name for name in found if name]
    if narrow:
        return min(narrow, key=("nvfp4", "mxfp4", "int4", "fp8", "int8").index)
    raise f.error("quantization_config", q.get("quant_method"), "is no known kind of quantisation", "bytes unknown")


def _values(q: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return the nested objects under `key`."""
    inside = q.get(key)
    return [value for value in inside.values() if isinstance(value, Mapping)] if isinstance(inside, Mapping) else []


def _group(group: Mapping[str, Any]) -> str | None:
    """Return the precision of one group of compressed-tensors or modelopt."""
    weights = group.get("weights")
    if str(group.get("format", "")).startswith("mxfp4"):
        return "mxfp4"
    if not isinstance(weights, Mapping) or not isinstance(weights.get("num_bits"), int):
        return None
    return _BY_BITS.get((str(weights.get("type")), weights["num_bits"]))
