"""The documentation says what the product does: every command and option, every JSON key, every example."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from sonde.cli.docs import PAGES as MADE
from sonde.cli.docs import verbs
from sonde.cli.entry import commands
from sonde.deployment.load import load_scenario

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
VERBS = dict(verbs(commands))


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_verb_of_the_product_is_there() -> None:
    assert list(VERBS) == [
        "sonde plan", "sonde simulate", "sonde trace describe", "sonde trace fit", "sonde trace generate",
        "sonde show", "sonde require", "sonde coe", "sonde validate",
        "sonde calibrate fit", "sonde calibrate judge", "sonde calibrate machine",
        "sonde papers", "sonde reproduce", "sonde bench",
    ]  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_every_option_is_documented(name: str) -> None:
    text = page("docs/cli.md")
    assert f"\n## {name}\n" in text
    section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    for option in VERBS[name].params:
        if isinstance(option, click.Option) and not option.hidden:
            assert f"| `{option.opts[0]}" in section, f"{name} {option.opts[0]} is not in docs/cli.md: run make docs"
            assert option.help


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_at_most_eight_options_and_speaks_json(name: str) -> None:
    options = [option.opts[0] for option in VERBS[name].params if isinstance(option, click.Option)]
    assert len(options) <= 8
    assert "--json" in options


@pytest.mark.parametrize("file", MADE)
def test_pages_made_from_the_program_are_fresh(file: str) -> None:
    assert page(f"docs/{file}") == MADE[file](), f"docs/{file} is stale: run make docs"


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in PAGES
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert not broken


def test_files_named_in_the_structure_page_exist() -> None:
    named = set(re.findall(r"`((?:[a-z]+/)+[a-z_]+\.py)`", page("docs/structure.md")))
    assert named
    assert not [name for name in named if not (ROOT / "sonde" / name).exists() and not (ROOT / name).exists()]


def test_commands_in_the_readme_exist() -> None:
    named = re.findall(r"^\$? ?sonde ([a-z]+)", page("README.md"), re.MULTILINE)
    assert set(named) <= set(commands.commands)
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", page("README.md"))) <= targets


def test_the_scenario_in_the_readme_is_the_example() -> None:
    (shown,) = re.findall(r"```yaml\n(model:.*?)```", page("README.md"), re.DOTALL)
    assert load_scenario(yaml.safe_load(shown)) == load_scenario(ROOT / "examples" / "chat-8b.yaml")


def test_the_python_example_runs_and_the_plan_in_the_readme_is_what_it_finds(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page("README.md"), re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:First-class function", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (best,) = re.findall(r"^(.*) (\$[\d.]+/h) ", done.stdout.splitlines()[0])
    row = re.findall(r"^ *1   (.+?)  +(\$[\d.]+/h)", page("README.md"), re.MULTILINE)[0]
    assert best[0].startswith(row[0]), "the table in the README is stale: paste what the command beside it prints"
    assert best[1] == row[1]
