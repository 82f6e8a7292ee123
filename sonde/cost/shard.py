"""How a replica cuts a model over its devices: what one device holds and computes, checked once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from sonde.catalogue.curves import FORMATS
from sonde.catalogue.device import PRECISION_BYTES, Device, Link
from sonde.catalogue.efficiencies import Efficiencies
from sonde.catalogue.model import FeedForward, Matrix, Mixer, Model
from sonde.cost.placement import Placement, placed, popularity
from sonde.deployment.tree import Replica
from sonde.errors import CannotError, InputError

#: where a device lacks a precision, the arithmetic that its kernels use in its place, in order
_COMPUTES = {
    "nvfp4": ("fp4", "fp8", "bf16", "fp16", "fp32"),
    "mxfp4": ("fp4", "fp8", "bf16", "fp16", "fp32"),
    "int4": ("int4", "int8", "bf16", "fp16", "fp32"),
    "fp6": ("fp6", "fp8", "bf16", "fp16", "fp32"),
    "fp8": ("fp8", "bf16", "fp16", "fp32"),
    "int8": ("int8", "bf16", "fp16", "fp32"),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp32": ("fp32",),
}

#: matrices whose columns belong to key-value heads
_KV_NAMES = {"k", "v", "kv", "k_proj", "v_proj", "kv_proj"}
_FUSED_NAMES = {"qkv", "qkv_proj"}


class Kernel(NamedTuple):
    """Matrix products that run as one kernel on one device: [inputs, outputs] as that device holds them."""

    name: str
    inputs: float
    outputs: float
    weights: float
    row: bool  # the result is partial: an all-reduce follows


class Exchange(NamedTuple):
    """How tokens travel to their experts and back.

    dispatch, combine   bytes of a number on the way there and back; 0: those of an activation, and at least 16 bits
    nodes               nodes that a token is sent to at most, once each, and dealt out inside; 0: every expert apart
    startup_s           seconds before the first byte of an exchange; None: what the links take
    """

    dispatch: float = 0.0
    combine: float = 0.0
    nodes: int = 0
    startup_s: float | None = None


#: a copy for every expert, as wide as activations are
EVERY_EXPERT = Exchange()


@dataclass(frozen=True, slots=True)
class Shard:
    """One device's share of a replica. Build with `shard()`, which checks.

    weight_bytes, table_bytes, expert_bytes   of one weight: of a layer, of the embeddings and the head, of an expert
    product, expert_product                   arithmetic of the matrix products, a key of `device.flops`
    form, expert_form                         how their operands are stored, a key of `catalogue.curves.FORMATS`
    attention                                 arithmetic of attention
    expert_split                              ranks that share one expert's matrices
    edits                                     what techniques make of the operators of a step, in order
    queries                                   tokens that a decoding sequence puts into a step
    placement                                 where experts stand and how often each is met; None: evenly, one copy each
    exchange                                  how tokens travel to experts
    sequence_parallel                         whether a prompt is spread over the attention ranks, and not on one
    """

    model: Model
    device: Device
    replica: Replica
    efficiencies: Efficiencies
    weight_bytes: float
    table_bytes: float
    expert_bytes: float
    activation_bytes: float
    kv_bytes: float
    product: str
    expert_product: str
    form: str
    expert_form: str
    attention: str
    expert_split: int
    edits: tuple[Callable[[Shard, list[Any]], list[Any]], ...] = ()
    queries: int = 1
    placement: Placement | None = None
    exchange: Exchange = EVERY_EXPERT
    sequence_parallel: bool = False

    @property
    def tensor(self) -> int:
        """Return the number of tensor-parallel ranks."""
        return self.replica.tensor_parallel

    @property
    def group(self) -> int:
        """Return the number of devices in one pipeline stage."""
        return self.replica.tensor_parallel * self.replica.data_parallel

    @property
    def lanes(self) -> int:
        """Return among how many (pipeline microbatches x attention ranks) the sequences of a step are dealt out."""
        return self.replica.pipeline_parallel * self.replica.data_parallel

    @property
    def expert_nodes(self) -> int:
        """Return how many nodes the experts of a layer are spread over."""
        return -(-self.replica.expert_parallel // self.device.node_devices)

    def held_experts(self, forward: FeedForward) -> int:
        """Return how many experts the fullest device of a layer holds, copies counted."""
        if self.placement is not None:
            return self.placement.slots
        return -(-forward.experts // self.replica.expert_parallel)

    def link(self, ranks: int) -> Link:
        """Return the slowest link in a group of `ranks` devices that are placed next to each other."""
        return self.device.node if ranks <= self.device.node_devices else self.device.fabric

    def head_share(self, mixer: Mixer) -> float:
        """Return the share of a mixer's heads that one device computes."""
        return 1.0 if mixer.kind == "indexer" else 1.0 / self.tensor

    def cache_share(self, mixer: Mixer) -> float:
        """Return the share of a mixer's cache that one device holds: a key-value head is held whole."""
        if mixer.kind in ("mla", "indexer"):
            return 1.0
        return max(1.0 / self.tensor, 1.0 / max(mixer.kv_heads, 1))


def shard(model: Model, device: Device, replica: Replica, efficiencies: Efficiencies) -> Shard:
    """Return the share of one device. Raises InputError where the parallelism does not divide the model."""
    _check_parallelism(model, replica)
    weights, activations = replica.weights, replica.activations
    mixture = any(ff.experts for ff in model.feedforwards)
    dense = "bf16" if weights == "mxfp4" and mixture else weights  # MXFP4 is published for experts alone
    group = replica.tensor_parallel * replica.data_parallel
    return Shard(
        model, device, replica, efficiencies,
        weight_bytes=PRECISION_BYTES[dense],
        table_bytes=max(PRECISION_BYTES[weights], 2.0),
        expert_bytes=PRECISION_BYTES[weights],
        activation_bytes=PRECISION_BYTES[activations],
        kv_bytes=PRECISION_BYTES[replica.kv_cache],
        product=arithmetic(device, dense, activations),
        expert_product=arithmetic(device, weights, activations),
        form=operands(device, dense, activations),
        expert_form=operands(device, weights, activations, grouped=True),
        attention=arithmetic(device, "bf16", "bf16"),
        expert_split=group // replica.expert_parallel,
        placement=_copied(model, replica),
    )  # fmt: skip


def _copied(model: Model, replica: Replica) -> Placement | None:
    """Return where experts stand that have copies and are all met alike."""
    mixtures = [forward for forward in model.feedforwards if forward.experts]
    if not replica.redundant_experts or not mixtures:
        return None
    shares = popularity([1.0] * mixtures[0].experts, mixtures[0].top_k)
    return placed(shares, replica.expert_parallel, replica.redundant_experts).under(shares)


def arithmetic(device: Device, weights: str, activations: str) -> str:
    """Return the precision that a product of `weights` by `activations` is computed in on `device`.

    The wider of the two, or the next wider one that the device has: weights are expanded on the fly, so
    that weight-only quantisation saves bytes and no compute. Raises CannotError where the device has none.
    """
    wider = max(weights, activations, key=lambda name: PRECISION_BYTES[name])
    for name in _COMPUTES[wider]:
        if name in device.flops:
            return name
    raise CannotError(f"{device.name} has no arithmetic for {wider}: it computes in {', '.join(device.flops)}")


def operands(device: Device, weights: str, activations: str, *, grouped: bool = False) -> str:
    """Return the format whose curve a product of `weights` by `activations` follows on `device`.

    That of the arithmetic where both are as narrow. Weights alone in 4 bits have kernels of their own where
    experts are `grouped`; elsewhere they are expanded into a product in 16 bits.
    """
    computed = arithmetic(device, weights, activations)
    if grouped and weights in ("int4", "mxfp4"):
        narrow = PRECISION_BYTES[activations] < 2.0
        return "mxfp4-fp8" if weights == "mxfp4" and narrow else weights
    return computed if computed in FORMATS else "bf16"


def _check_parallelism(model: Model, replica: Replica) -> None:
    tensor, expert = replica.tensor_parallel, replica.expert_parallel
    for mixer in model.mixers:
        if mixer.kind != "indexer" and mixer.heads % tensor:
            raise InputError("replica.tensor_parallel", tensor, f"must divide the {mixer.heads} heads of {model.name}")
        heads = max(mixer.kv_heads, 1)
        if mixer.kind == "attention" and heads % tensor and tensor % heads:
            raise InputError(
                "replica.tensor_parallel", tensor, f"must divide, or be a multiple of, the {heads} key-value heads"
            )
    if replica.pipeline_parallel > model.layers:
        raise InputError(
            "replica.pipeline_parallel", replica.pipeline_parallel, f"must be at most the {model.layers} layers"
        )
    experts = [ff.experts for ff in model.feedforwards if ff.experts]
    for name, value in (("expert_parallel", expert), ("data_parallel", replica.data_parallel)):
        if value > 1 and not experts:
            raise InputError(f"replica.{name}", value, f"must be 1: {model.name} has no experts to share")
    for count in experts:
        if expert > count:
            raise InputError("replica.expert_parallel", expert, f"must be at most the {count} experts")


def held(shard: Shard, matrix: Matrix, mixer: Mixer | None = None) -> float:
    """Return the share of a matrix that one device holds; key-value heads fewer than the ranks are repeated."""
    if matrix.split == "none":
        return 1.0
    even = 1.0 / shard.tensor
    if mixer is None or mixer.kind != "attention" or not mixer.kv_heads:
        return even
    if matrix.name in _KV_NAMES:
        return shard.cache_share(mixer)
    if matrix.name in _FUSED_NAMES:
        caches = 2 * mixer.kv_heads / (mixer.heads + 2 * mixer.kv_heads)
        return (1 - caches) * even + caches * shard.cache_share(mixer)
    return even


def kernels(shard: Shard, matrices: tuple[Matrix, ...], mixer: Mixer | None = None) -> Iterator[Kernel]:
    """Yield the kernels that `matrices` run as: neighbours that read the same input are one product."""
    run: list[Matrix] = []
    for matrix in matrices:
        if run and (matrix.inputs, matrix.split) != (run[-1].inputs, run[-1].split):
            yield _fused(shard, run, mixer)
            run = []
        run.append(matrix)
    if run:
        yield _fused(shard, run, mixer)


def _fused(shard: Shard, run: list[Matrix], mixer: Mixer | None) -> Kernel:
    row = run[0].split == "row"
    share = [held(shard, matrix, mixer) for matrix in run]
    weights = sum(matrix.parameters * part for matrix, part in zip(run, share, strict=True))
    inputs = run[0].inputs * (share[0] if row else 1.0)
    return Kernel("+".join(matrix.name for matrix in run), inputs, weights / inputs, weights, row)
