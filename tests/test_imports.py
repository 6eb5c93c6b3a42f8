"""The layout of the package, as the contracts in `pyproject.toml` state it."""

from pathlib import Path

from importlinter import api  # noqa: F401  which sets the linter up
from importlinter.application.use_cases import lint_imports


def test_modules_import_only_from_rooms_below_their_own(capsys):
    kept = lint_imports(str(Path(__file__).parents[1] / "pyproject.toml"), cache_dir=None)
    assert kept, capsys.readouterr().out
