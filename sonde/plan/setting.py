"""Techniques in a plan: those of a scenario, for fleets whose replicas serve whole requests, and for split fleets."""

from __future__ import annotations

from typing import NamedTuple

from sonde.deployment.scenario import Scenario
from sonde.deployment.tree import Use
from sonde.errors import InputError
from sonde.techniques.compose import chosen, use_name
from sonde.techniques.disaggregation import Split
from sonde.techniques.technique import Chosen

#: the pools of a fleet whose prompts and answers are computed apart
STAGES = ("prefill", "decode")


class Setting(NamedTuple):
    """Techniques under which fleets are tried: as a tree names them, as they are applied, and how it is split.

    `split` is None where every replica serves whole requests.
    """

    uses: tuple[Use, ...] = ()
    chosen: tuple[Chosen, ...] = ()
    split: Split | None = None

    def at(self, stage: str) -> list[Chosen]:
        """Return the techniques that change replicas of a stage ("" where there are none)."""
        return [one for one in self.chosen if one.at(stage, prompts=stage == STAGES[0])]

    def alone(self, stage: str) -> Setting:
        """Return the setting of a stage without the other."""
        kept = tuple(self.at(stage))
        names = {one.name for one in kept}
        return Setting(tuple(use for use in self.uses if use_name(use) in names), kept)

    @property
    def wires(self) -> bool:
        """Return whether more changes than replicas: links, caches, routing, numbers of engines."""
        return self.split is not None or any(one.technique.deployment is not None for one in self.chosen)

    @property
    def counts(self) -> tuple[int, int] | None:
        """Return replicas that compute prompts for so many that decode, where the scenario says so."""
        if self.split is None or not self.split.model_fields_set & set(STAGES):
            return None
        return self.split.prefill, self.split.decode


ALONE = Setting()


def settings(scenario: Scenario) -> tuple[Setting, ...]:
    """Return the settings to try: that of whole requests, and a split one where the scenario names disaggregation.

    Techniques for one of the stages alone (`pools`) are left out where there are no stages. Raises InputError for
    techniques that there are not or that cannot stand together, and for pools that no plan has.
    """
    every = chosen(scenario.techniques)
    split = next((one.parameters for one in every if isinstance(one.parameters, Split)), None)
    for one in every:
        for name in one.parameters.pools:
            if split is None or name not in STAGES:
                raise InputError(
                    f"techniques.{one.name}.pools", name,
                    "must be prefill or decode, beside disaggregation: a plan names its pools itself",
                )  # fmt: skip
    if split is not None and split.stages:
        raise InputError(
            "techniques.disaggregation.stages", sorted(split.stages), "must be left out: a plan searches for both",
            "what to try is said in `search`",
        )  # fmt: skip
    rest = tuple(one for one in every if not isinstance(one.parameters, Split))
    whole = tuple(one for one in rest if not one.parameters.pools)
    found = [Setting(_uses(scenario, whole), whole)]
    if split is not None:
        found.append(Setting(_uses(scenario, rest), rest, split))
    return tuple(found)


def _uses(scenario: Scenario, kept: tuple[Chosen, ...]) -> tuple[Use, ...]:
    names = {one.name for one in kept}
    return tuple(use for use in scenario.techniques if use_name(use) in names)
