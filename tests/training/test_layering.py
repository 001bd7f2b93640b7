import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
FORBIDDEN = {
    "models": {"training", "service", "darkroom"},
    "training": {"service", "darkroom"},
    "service": {"training", "darkroom"},
    "darkroom": {"training", "torch"},
}
JIT = {"models/artifact.py", "models/optimisation.py"}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_a_floor_imports_none_above_or_beside_it(floor: str) -> None:
    files = list((HOUSE / floor).rglob("*.py"))

    assert files
    assert {} == {file.name: found for file in files if (found := imported(file) & FORBIDDEN[floor])}


def jit_names(path: Path) -> set[str]:
    """What a file takes from torch.jit, but for the mark `torch.jit.export` on a method that is compiled later."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch.jit"}
    return found - {"export"}


def test_torchscript_is_named_in_two_files_only() -> None:
    files = [file for floor in FORBIDDEN for file in (HOUSE / floor).rglob("*.py")]
    named = {str(file.relative_to(HOUSE)) for file in files if jit_names(file)}

    assert named == JIT
    assert [] == [file.name for file in files if "from torch.jit" in file.read_text(encoding="utf-8")]
