"""From a whole config.json to a Model: find the text part and its family, read every layer, add equal ones up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from sonde.catalogue.configs.families import ALIASES, FAMILIES, Family, blocks
from sonde.catalogue.configs.fields import Fields
from sonde.catalogue.configs.quantisation import native_weights
from sonde.catalogue.configs.towers import TOWERS
from sonde.catalogue.model import FeedForward, Mixer, Model
from sonde.errors import InputError, unknown

Part = TypeVar("Part", Mixer, FeedForward)

#: what a nested text config may leave to the whole
_INHERITED = ("tie_word_embeddings", "quantization_config", "dtype", "torch_dtype", "expert_dtype")
_NESTED = ("text_config", "llm_config", "language_config")
#: what publishers call the number of layers that guess further tokens
_GUESSING = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
MOST_LAYERS = 10_000


def read_config(
    config: Mapping[str, Any], name: str, path: str = "config.json", *, source: str = "", date: str = ""
) -> Model:
    """Return the model that a Hugging Face config.json describes.

    Multi-token-prediction layers are counted apart, as publishers leave them out of their counts. Raises
    InputError for an unknown architecture, a missing field, or sizes that make no model.
    """
    if not isinstance(config, Mapping):
        raise InputError(path, type(config).__name__, "must hold a JSON object", "there is no model to read")
    whole = Fields(config, path=path)
    kind, family = _family(whole)
    f = Fields({**family.defaults, **_text(config)}, family.settings, path)
    hidden = f.count("hidden_size", "n_embd", "n_embed", "d_model")
    layers = _layers(f, kind)
    mixers = _added(part for i in range(layers) for part in family.mixers(f, i))
    forwards = _added(part for i in range(layers) for part in family.forwards(f, i))
    extras = int(f.setting("norm_parts", 1)) * hidden + (family.extras(f, hidden) if family.extras else 0)
    return Model(
        name=name,
        family=kind,
        layers=layers,
        hidden=hidden,
        vocabulary=f.count("vocab_size"),
        context=f.count("max_position_embeddings", "n_positions", "seq_length", "model_max_length", "n_ctx",
                      default=2048),
        mixers=mixers,
        feedforwards=forwards,
        tied_embeddings=f.flag("tie_word_embeddings"),
        native_weights=native_weights(f),
        other_parameters=_tower(whole, hidden),
        vectors=extras,
        guessing_layers=f.count(*_GUESSING, default=0, least=0),
        source=source,
        date=date,
    )  # fmt: skip


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that describes the text model."""
    for key in _NESTED:
        nested = config.get(key)
        if isinstance(nested, Mapping):
            return {**{k: config[k] for k in _INHERITED if k in config}, **nested}
    return dict(config)


def _family(whole: Fields) -> tuple[str, Family]:
    """Return the family of the text model, by model_type or else by the name of the architecture."""
    text = _text(whole.data)
    tried = [str(name) for name in (text.get("model_type"), whole.get("model_type")) if name]
    tried += [str(name) for name in Fields(text).items("architectures") or whole.items("architectures")]
    for given in tried:
        low = given.lower().removesuffix("_text")
        low = ALIASES.get(low, low)
        if low in FAMILIES:
            return low, FAMILIES[low]
    if not tried:
        raise whole.missing("model_type", "architectures")
    raise unknown(f"{whole.path}: model_type", tried[0], FAMILIES, "architecture")


def _layers(f: Fields, kind: str) -> int:
    if kind == "nemotron_h":
        found = len(blocks(f))
        stated = f.count("num_hidden_layers", default=found)
        if stated != found:
            raise f.error("num_hidden_layers", stated, f"must be the length of the pattern, {found}")
        return found
    layers = f.count("num_hidden_layers", "n_layer", "num_layers")
    if layers > MOST_LAYERS:
        raise f.error("num_hidden_layers", layers, f"must be at most {MOST_LAYERS}")
    return layers


def _added(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return equal parts as one with their number of layers, in the order in which they first come."""
    return tuple(replace(part, layers=count) for part, count in Counter(parts).items())


def _tower(whole: Fields, hidden: int) -> int:
    """Return the weights of the vision tower, 0 where there is none."""
    reader = TOWERS.get(str(whole.get("model_type", default="")))
    vision = whole.get("vision_config")
    if reader is None or (vision is None and whole.get("model_type") != "llama4"):
        return 0
    return reader(whole.part("vision_config") if vision is not None else Fields({}, path=whole.path), hidden)
