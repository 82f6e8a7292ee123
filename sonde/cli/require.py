"""`sonde require`: what a platform must have for a latency."""

from __future__ import annotations

import click

from sonde.cli.output import emit, fields, json_option


@click.command()
@click.argument("model")
@click.option(
    "--device", default="h100-sxm", show_default=True, help="Whose form the platform has: links, efficiencies."
)
@click.option("--tensor-parallel", default=1, show_default=True, type=click.IntRange(1), help="Devices per replica.")
@click.option("--prompt", default=2048, show_default=True, type=click.IntRange(1), help="Tokens of a prompt.")
@click.option(
    "--context", default=4096, show_default=True, type=click.IntRange(1), help="Tokens that a sequence holds."
)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Sequences that decode at once.")
@click.option("--ttft", help='Longest time of a prompt, such as "300 ms".')
@click.option("--tpot", help='Longest time of a decode step, such as "10 ms".')
@json_option
def require(
    model: str,
    device: str,
    tensor_parallel: int,
    prompt: int,
    context: int,
    batch: int,
    ttft: str | None,
    tpot: str | None,
    as_json: bool,
) -> None:
    """Find the least compute, bandwidth, memory and links with which MODEL holds a latency.

    Each is the least with all else ample; `together` is what compute, bandwidth and links of --device must all be
    multiplied by. The exit code is 1 where no platform would do.
    """
    from sonde import units
    from sonde.catalogue.devices import device as find
    from sonde.catalogue.models import model as known
    from sonde.cost.require import Target
    from sonde.cost.require import require as search
    from sonde.deployment.load import load

    pool = {"replica": {"model": model, "device": device, "tensor_parallel": tensor_parallel}}
    replica = load({"sites": [{"pools": [pool]}]}).pools[0].replica
    limits = [
        None if text is None else units.parse(text, "time", path) for text, path in ((ttft, "--ttft"), (tpot, "--tpot"))
    ]
    needs = search(known(model), find(device), replica, Target(prompt, context, batch, limits[0], limits[1]))
    row = {
        "flops": needs.flops, "bandwidth": needs.bandwidth, "memory_bytes": needs.memory_bytes,
        "link": {"bandwidth": needs.link_bandwidth}, "together": needs.together,
    }  # fmt: skip
    emit(row) if as_json else fields(f"each device, for {model} on {replica.devices}", row)
