"""The shape of the source: limits that keep files readable, and words that do not belong in the tree."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "sonde").rglob("*.py"))
FILE_LINES, FUNCTION_LINES, KERNEL_LINES, PARAMETERS = 500, 60, 80, 6
Function = ast.FunctionDef | ast.AsyncFunctionDef

#: put together here, so that this file does not hold what it looks for
FOLDERS = ("/".join(("", folder, "")) for folder in ("root", "work", "home"))
NOTES = ("".join(halves) for halves in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("HA", "CK")))
FORBIDDEN = {
    "a path of one machine": re.compile("|".join(rf"(?<![\w.]){folder}" for folder in FOLDERS)),
    "a note to self": re.compile(rf"\b({'|'.join(NOTES)})\b"),
    "the number of an issue": re.compile(r"\b(?:[Ii]ssue|PR) #?\d+\b"),
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, Function)]


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and len(body) > 1:
        body = body[1:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def parameters(function: Function) -> int:
    """Every parameter counts, by position, by keyword and starred; `self` and `cls` do not."""
    arguments = function.args
    named = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    starred = [star for star in (arguments.vararg, arguments.kwarg) if star]
    return len([a for a in named if a.arg not in ("self", "cls")]) + len(starred)


def is_command(function: Function) -> bool:
    """A verb of the command line: click gives it one parameter for each option (at most 8) or argument."""
    return any("command" in ast.unparse(decorator) for decorator in function.decorator_list)


def is_kernel(function: Function) -> bool:
    return any(ast.unparse(decorator) in ("kernel", "part", "njit") for decorator in function.decorator_list)


def test_files_are_short() -> None:
    long = {name(p): n for p in SOURCES if (n := len(p.read_text(encoding="utf-8").splitlines())) > FILE_LINES}
    assert not long, f"files of more than {FILE_LINES} lines"


def test_functions_are_short() -> None:
    long = {}
    for path in SOURCES:
        for function in functions(path):
            limit = KERNEL_LINES if is_kernel(function) else FUNCTION_LINES
            if (lines := body_lines(function)) > limit:
                long[f"{name(path)}:{function.lineno} {function.name}"] = f"{lines} lines, {limit} allowed"
    assert not long


def test_functions_have_few_parameters() -> None:
    many = {
        f"{name(path)}:{function.lineno} {function.name}": count
        for path in SOURCES
        for function in functions(path)
        if (count := parameters(function)) > PARAMETERS and not is_command(function)
    }
    assert not many, f"functions of more than {PARAMETERS} parameters"


def test_what_is_public_is_documented() -> None:
    bare = []
    for path in SOURCES:
        module = tree(path)
        if not ast.get_docstring(module):
            bare.append(name(path))
        scopes = [module, *[node for node in ast.walk(module) if isinstance(node, ast.ClassDef)]]
        for scope in scopes:
            for node in scope.body:
                named = isinstance(node, (ast.ClassDef, *Function.__args__))
                if named and not node.name.startswith("_") and not ast.get_docstring(node):
                    bare.append(f"{name(path)}:{node.lineno} {node.name}")
    assert not bare


def test_nothing_prints_but_the_command_line() -> None:
    loud = [
        f"{name(path)}:{node.lineno}"
        for path in SOURCES
        if "cli" not in path.parts
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "click.echo", "sys.stdout.write")
    ]
    assert not loud


def test_input_is_not_checked_by_assert_and_no_except_is_bare() -> None:
    wrong = [
        f"{name(path)}:{node.lineno} {type(node).__name__}"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Assert) or (isinstance(node, ast.ExceptHandler) and node.type is None)
    ]
    assert not wrong


def test_modules_keep_no_state() -> None:
    """`global` is the sign of a module that changes while it is used."""
    changed = [
        f"{name(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Global)
    ]
    assert not changed


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    return [ROOT / file for file in listing.stdout.split("\0") if file and (ROOT / file).is_file()]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_forbidden_words(what: str) -> None:
    found = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # data, not text
        found += [f"{name(path)}:{i}: {line.strip()[:100]}" for i, line in enumerate(lines, 1)
                  if FORBIDDEN[what].search(line)]  # fmt: skip
    assert not found


def test_nothing_tracked_is_large() -> None:
    large = {name(path): size for path in tracked() if (size := path.stat().st_size) > 1_000_000}
    assert not large


def test_the_readme_draws_the_tree() -> None:
    """Every folder and top file of the package has its line in the README, and every line its folder."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```(?:text)?\nsonde/\n(.*?)```", readme, re.DOTALL)
    assert block, "the README holds no tree that begins with sonde/"
    drawn = set(re.findall(r"^[├└]── (\S+?)/?(?:\s|$)", block.group(1), re.MULTILINE))
    present = {
        entry.name
        for entry in (ROOT / "sonde").iterdir()
        if (entry.is_dir() and (entry / "__init__.py").exists())
        or (entry.suffix == ".py" and entry.name not in ("__main__.py",))
    }
    assert drawn == present
