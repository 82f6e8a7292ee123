"""`sonde coe`: many expert models that take turns on nodes with a store behind them."""

from __future__ import annotations

import click

from sonde.cli.output import emit, json_option, table


@click.command()
@click.argument("model")
@click.option("--experts", default=150, show_default=True, type=int, help="How many experts of MODEL's size there are.")
@click.option(
    "--popularity", default="zipf(0)", show_default=True, help="Share of requests by rank: zipf(α); α = 0: all alike."
)
@click.option(
    "--node", "nodes", multiple=True, help="A kind of node; may be repeated; all that are known where absent."
)
@click.option("--prompt", default=1024, show_default=True, type=int, help="Tokens of a prompt.")
@click.option("--output", default=20, show_default=True, type=int, help="Tokens of an answer.")
@click.option("--rate", help='Requests, such as "4/s", Poisson; one after another where absent.')
@click.option("--one-link", is_flag=True, help="Load an expert over one link of its node, not over all of them.")
@json_option
def coe(
    model: str,
    experts: int,
    popularity: str,
    nodes: tuple[str, ...],
    prompt: int,
    output: int,
    rate: str | None,
    one_link: bool,
    as_json: bool,
) -> None:
    """Compose experts of MODEL's size behind a router, and say what nodes of each kind make of them.

    Prints how many are loaded at once, how often a request waits for one to be loaded and how long that takes,
    latencies, and the nodes that it takes to store all of them, or to keep all of them loaded.
    """
    from sonde import units
    from sonde.catalogue.nodes import node, node_names
    from sonde.plan.coe import Question, compose

    asked = Question(
        model, experts, _alpha(popularity), prompt, output,
        None if rate is None else units.parse(rate, "rate", "--rate"), one_link,
    )  # fmt: skip
    answers = [compose(asked, node(name)) for name in nodes or node_names()]
    if as_json:
        return emit([answer._asdict() for answer in answers])
    heads = ("node", "loaded", "waits", "for", "p50", "p99", "busy", "nodes", "nodes, all loaded")
    rows = [
        (
            one.node, f"{one.resident:,}", f"{100 * one.miss_rate:.1f} %", units.show(one.switch_s, "time"),
            units.show(one.p50_s, "time"), units.show(one.p99_s, "time"), f"{100 * one.utilisation:.0f} %",
            f"{one.nodes:,}", f"{one.nodes_loaded:,}",
        )
        for one in answers
    ]  # fmt: skip
    return table(f"{experts:,} experts of {model}, {popularity}", heads, rows)


def _alpha(text: str) -> float:
    """Return α of "zipf(α)", or of a bare number."""
    from sonde.errors import InputError

    bare = text.strip().removeprefix("zipf(").removesuffix(")")
    try:
        return float(bare)
    except ValueError:
        raise InputError("--popularity", text, 'must be "zipf(α)", such as "zipf(0.8)"') from None
