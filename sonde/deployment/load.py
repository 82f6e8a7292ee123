"""Deployments and scenarios from YAML and back, with errors that say where, what is allowed, and what would follow.

What `dump` writes, `load` reads back equal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError

from sonde.deployment import text
from sonde.deployment.faults import brief, fault
from sonde.deployment.node import Choice
from sonde.deployment.scenario import Scenario
from sonde.deployment.tree import Deployment
from sonde.errors import MISSING, InputError, unknown
from sonde.units import parse

if TYPE_CHECKING:
    from sonde.metrics import Objective

Tree = TypeVar("Tree", bound=Choice)
Where = Callable[[str], str]

_QUANTILE = re.compile(r"^p(\d{1,3}(?:\.\d+)?)$")


def load(source: Deployment | str | Path | Mapping[str, Any]) -> Deployment:
    """Return the deployment in a YAML file, in YAML text (of more than one line), or in a mapping.

    Raises InputError with the path of what is wrong, such as "sites[0].pools[1].replicas", its file and line,
    the value, what is allowed and the consequence; of several faults the first, and the number of the others.
    Names are looked up by `check`.
    """
    return source if isinstance(source, Deployment) else _load(source, Deployment, "deployment")[0]


def dump(deployment: Deployment) -> str:
    """Return a deployment as YAML, without what is as by default: `load` gives back an equal one."""
    return text.write(deployment.model_dump(mode="json", exclude_defaults=True))


def load_scenario(source: Scenario | str | Path | Mapping[str, Any]) -> Scenario:
    """Return the scenario in a YAML file, in YAML text (of more than one line), or in a mapping.

    Quantities, objectives, and the names of model, devices and policies are checked too. A trace, a profile
    or a device that is a file is looked for beside the scenario file first. Raises InputError as `load` does.
    """
    from sonde.deployment.check import check_scenario

    scenario, where = (source, _nowhere) if isinstance(source, Scenario) else _load(source, Scenario, "scenario")
    scenario = _hardware_beside(scenario, source)
    try:
        _check_quantities(scenario)
        check_scenario(scenario)
    except InputError as error:
        raise InputError(
            error.path, error.value, error.allowed, error.consequence, where=error.where or where(error.path)
        ) from None
    return _beside(scenario, source)


@contextmanager
def located(source: object) -> Iterator[None]:
    """Give errors that are raised within, about what stands in a YAML file, that file and their line."""
    try:
        yield
    except InputError as error:
        root = re.split(r"[.\[]", error.path)[0]
        if error.where or not isinstance(source, (str, Path)) or not _is_file(source):
            raise
        data, where = _read(source, str(source))
        if not isinstance(data, Mapping) or root not in data:
            raise
        at = where(_path_of_use(error.path, data["techniques"]) if root == "techniques" else error.path)
        raise InputError(error.path, error.value, error.allowed, error.consequence, where=at) from None


def _path_of_use(path: str, uses: object) -> str:
    """Return "techniques[2].power-cap.cap" for "techniques.power-cap.cap", which is the third of them."""
    name, dot, rest = path.removeprefix("techniques.").partition(".")
    for i, use in enumerate(uses if isinstance(uses, list) else ()):
        if use == name or (isinstance(use, Mapping) and name in use):
            return f"techniques[{i}]" + (f".{name}{dot}{rest}" if isinstance(use, Mapping) else "")
    return path


def objectives(scenario: Scenario | Mapping[str, Any]) -> tuple[Objective, ...]:
    """Return the objectives of a scenario, or of its `objectives` alone. A limit without a quantile is of p99.

    Raises InputError for what is no metric, no quantile or no time, and for a quantile that is there twice.
    """
    from sonde.metrics import Metric, Objective

    tree: Mapping[str, Any] = scenario.objectives if isinstance(scenario, Scenario) else scenario
    if not tree:
        raise InputError("objectives", {}, "needs at least one, such as {ttft: 500 ms}", "any plan would do")
    found: list[Objective] = []
    for metric, limits in tree.items():
        path = text.join("objectives", metric)
        if metric not in get_args(Metric):
            raise unknown(path, metric, get_args(Metric), "metric")
        named = limits if isinstance(limits, Mapping) else {"p99": limits}
        if not named:
            raise InputError(path, {}, "needs a limit, such as 500 ms or {p50: 200 ms, p99: 1 s}")
        for name, limit in named.items():
            at = text.join(path, name) if isinstance(limits, Mapping) else path
            objective = Objective(cast("Metric", metric), _quantile(name, at), parse(limit, "time", at))
            if any((objective.metric, objective.quantile) == (other.metric, other.quantile) for other in found):
                raise InputError(at, limit, f"{objective.label} is there twice", "one of the two limits would be lost")
            found.append(objective)
    return tuple(found)


def _quantile(name: object, path: str) -> float:
    match = _QUANTILE.match(str(name))
    percent = float(match[1]) if match else 0.0
    if not 0 < percent <= 100:
        raise InputError(path, name, "must be a quantile between p0 and p100, such as p50, p99 or p99.9")
    return round(percent / 100, 12)


def _check_quantities(scenario: Scenario) -> None:
    workload = scenario.workload
    if workload is not None and workload.rate is not None:
        parse(workload.rate, "rate", "workload.rate")
    if workload is not None and workload.duration is not None:
        parse(workload.duration, "time", "workload.duration")
    for i, kind in enumerate(scenario.hardware):
        if kind.price is not None:
            parse(kind.price, "price", f"hardware[{i}].price", zero=True)
    objectives(scenario)


def _beside(scenario: Scenario, source: object) -> Scenario:
    """Return the scenario with files that lie beside the scenario file named from here."""
    workload = scenario.workload
    if workload is None or not _is_file(source):
        return scenario
    folder = Path(str(source)).parent
    found = {
        key: str(folder / name)
        for key, name in (("trace", workload.trace), ("profile", workload.profile))
        if name is not None and folder != Path() and (folder / name).is_file()
    }
    return scenario.model_copy(update={"workload": workload.model_copy(update=found)}) if found else scenario


def _hardware_beside(scenario: Scenario, source: object) -> Scenario:
    """Return the scenario with devices whose files lie beside the scenario file named from here."""
    from sonde.catalogue.device_files import is_path

    folder = Path(str(source)).parent if _is_file(source) else Path()
    if folder == Path() or not any(is_path(kind.device) for kind in scenario.hardware):
        return scenario
    kinds = tuple(
        kind.model_copy(update={"device": str(folder / kind.device)})
        if is_path(kind.device) and (folder / kind.device).is_file()
        else kind
        for kind in scenario.hardware
    )
    return scenario.model_copy(update={"hardware": kinds})


def _load(source: object, root: type[Tree], what: str) -> tuple[Tree, Where]:
    data, where = _read(source, what)
    if not isinstance(data, Mapping):
        value = MISSING if data is None else brief(data)
        allowed = f"must be a mapping of keys to values: {', '.join(root.model_fields)}"
        raise InputError(what, value, "is empty: " + allowed if data is None else allowed, where=where(""))
    data = _plain(data)
    _refuse_other(data, root, what, where)
    try:
        # as JSON, since there strictness takes lists for tuples, but never true for 1 nor "8" for 8
        return root.model_validate_json(json.dumps(data), strict=True), where
    except ValidationError as error:
        raise fault(error, data, root, where) from None


def _refuse_other(data: Mapping[str, Any], root: type[Choice], what: str, where: Where) -> None:
    """Raise InputError where a scenario is given for a deployment, or the other way round."""
    other, verb = (Scenario, "sonde plan") if root is Deployment else (Deployment, "sonde simulate")
    name = other.__name__.lower()
    theirs = [key for key in data if key in other.model_fields and key not in root.model_fields]
    ours = [key for key in data if key in root.model_fields and key not in other.model_fields]
    if theirs and not ours:
        keys = f"{', '.join(theirs[:3])}: ..."
        raise InputError(what, keys, f"must be a {what}: this is a {name}", f"`{verb}` takes it", where=where(""))


def _read(source: object, what: str) -> tuple[object, Where]:
    if isinstance(source, Mapping):
        return source, _nowhere
    if not isinstance(source, (str, Path)):
        raise InputError(what, brief(source), "must be the path of a YAML file, YAML text, or a mapping")
    named = _is_file(source)
    name = str(source) if named else what
    data, lines = text.read(text.file(source, what) if named else str(source), name)

    def where(path: str) -> str:
        while path not in lines and path:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return f"{name}, line {lines[path]}" if path in lines else name

    return data, where


def _is_file(source: object) -> bool:
    return isinstance(source, Path) or (isinstance(source, str) and "\n" not in source and ": " not in source)


def _nowhere(_: str) -> str:
    return ""


def _plain(value: object) -> Any:
    """Return `value` with text for keys, and nodes and numpy scalars as plain values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):
        return value.item()
    return str(value)
