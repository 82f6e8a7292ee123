"""Multi-token prediction: one more layer of the model guesses the next tokens, and the next step verifies them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from sonde.catalogue.model import Model
from sonde.cost.compile import summed
from sonde.cost.operators import head_operators, token_operators
from sonde.cost.shard import Shard
from sonde.cost.table import Engine
from sonde.errors import InputError
from sonde.techniques.acceptance import Guessing, tokens_a_step, yielding
from sonde.techniques.technique import Parameters, Technique


class Module(Parameters):
    """How many tokens are guessed, and how often that is right.

    acceptance   share of guesses that turn out right
    guesses      how many a step, one after another
    trained      whether you have trained such a layer, for a model that is published without one
    """

    acceptance: float = Field(default=0.7, ge=0, le=1)
    guesses: int = Field(default=1, ge=1, le=8)
    trained: bool = False


def shard(part: Shard, module: Module) -> Shard:
    """Return the share of a device whose model is one layer deeper, and whose sequences verify what was guessed.

    Raises InputError for a model that is published without such a layer, unless one was `trained`.
    """
    if part.queries > 1:
        raise InputError("techniques.multi-token-prediction", part.queries, "must be the only one that guesses")
    if not (module.trained or part.model.guessing_layers):
        raise InputError(
            "techniques.multi-token-prediction", part.model.name,
            "needs a model that is published with a layer for it (num_nextn_predict_layers in its config)",
            "there is nothing that guesses: use speculative-decoding with a draft model, or say `trained: true` if you "
            "have trained such a layer",
        )  # fmt: skip
    return replace(part, model=deeper(part.model), queries=module.guesses + 1)


def engine(engine: Engine, part: Shard, module: Module) -> Engine:
    """Return the engine whose decoding steps make 1 + p + p² + ... tokens, and pay for guessing and verifying.

    The layer's run over what a step verifies is in the step table; here come a pass of the head for every
    guess, and for each guess after the first another pass of the layer.
    """
    most = part.replica.batching.max_batch
    batch = np.arange(most + 1, dtype=np.float64)
    rows = np.maximum(np.ceil(batch / part.lanes), 1.0)
    seconds, joules = summed(part, head_operators(part, rows), most + 1)
    total = [module.guesses * seconds, module.guesses * joules]
    if module.guesses > 1:
        micro, more = np.ceil(batch / part.replica.pipeline_parallel), replace(part, model=deeper(part.model))
        below, above = (summed(it, token_operators(it, micro), most + 1) for it in (part, more))
        total = [was + (module.guesses - 1) * (b - a) for was, a, b in zip(total, below, above, strict=True)]
    again = (module.guesses - 1) / part.model.layers
    time, energy = engine.table.time, engine.table.energy
    guessing = Guessing((total[0], total[1] * part.replica.devices), (time.read * again, energy.read * again))
    return yielding(engine, tokens_a_step(module.acceptance, module.guesses), guessing)


def deeper(model: Model) -> Model:
    """Return the model with one more layer, of its last mixer that keeps a cache and its last feed-forward."""
    found = [i for i, mixer in enumerate(model.mixers) if mixer.kind in ("attention", "mla")]
    if not found:
        raise InputError("techniques.multi-token-prediction", model.name, "needs a model with attention to deepen")
    last = found[-1]
    mixers = tuple(replace(m, layers=m.layers + 1) if i == last else m for i, m in enumerate(model.mixers))
    forwards = (*model.feedforwards[:-1], replace(model.feedforwards[-1], layers=model.feedforwards[-1].layers + 1))
    return replace(model, layers=model.layers + 1, mixers=mixers, feedforwards=forwards)


TECHNIQUE = Technique(
    title="one more layer guesses the next tokens, which the next step verifies",
    source="DeepSeek-AI, DeepSeek-V3 Technical Report, arXiv 2412.19437, section 2.2; Gloeckle et al., ICML 2024",
    parameters=Module,
    cannot={"speculative-decoding": "both guess the tokens that a step verifies"},
    shard=shard,
    engine=engine,
    answers=True,
    guesses=True,
)
