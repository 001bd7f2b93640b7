import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
FORBIDDEN = {"models": {"training", "service"}, "training": {"service"}, "service": {"training"}}
JIT = {"models/artifact.py", "models/engine.py"}


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


def test_torchscript_is_named_in_two_files_only() -> None:
    files = [file for floor in FORBIDDEN for file in (HOUSE / floor).rglob("*.py")]
    named = {
        str(file.relative_to(HOUSE))
        for file in files
        if "torch.jit.s" in (text := file.read_text()) or "torch.jit.l" in text
    }

    assert named <= JIT
