"""What README, docs/ and examples/ show can be typed, read and run."""

import ast
import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from recbole_etegrec.cli.arguments import check_names, read
from recbole_etegrec.cli.table import COMMANDS, PREPARE, RUN
from recbole_etegrec.config import Config, properties_dir
from recbole_etegrec.config.values import check_values, known_keys, parse_value
from recbole_etegrec.runs.checks import check_rules

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "dataset" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def blocks(language: str) -> list[tuple[str, str]]:
    """The blocks of code in a language, and where each is."""
    return [
        (f"{page.relative_to(ROOT)}, block {number}", text)
        for page in PAGES
        for number, (kind, text) in enumerate(BLOCK.findall(page.read_text("utf-8")), 1)
        if kind == language
    ]


def commands() -> list[tuple[str, list[str]]]:
    """What is typed after the program, and where it stands."""
    found = []
    for place, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for program in ("recbole-etegrec", "run_recbole.py"):
                if program in words:
                    typed = words[words.index(program) + 1 :]
                    typed = typed if program == "recbole-etegrec" else ["run", *typed]
                    found.append((f"{place}: {line.strip()}", typed))
    return found


@pytest.mark.parametrize(("place", "typed"), commands(), ids=lambda value: str(value)[:60])
def test_commands_of_the_pages_have_known_flags_and_keys(place, typed):
    name, rest = (typed[0], typed[1:]) if typed and typed[0] in COMMANDS else ("run", typed)
    command = COMMANDS[name]
    if name == "prepare":
        name, command, rest = f"prepare {rest[0]}", PREPARE[rest[0]], rest[1:]
    values = read(name, command, rest).values
    model = values.get("model", "ETEGRecLlama")
    check_names(name, command, values, known_keys(model) if command.keys else ())
    flags = {flag.name for flag in command.flags}
    keys = {key: parse_value(key, value) for key, value in values.items() if key not in flags}
    check_values(keys, model)
    files = values.get("config_files", "").split()
    for file in files:
        assert (properties_dir() / f"{file.removesuffix('.yaml')}.yaml").is_file(), place
    if command is RUN and not {"resume", "base_model", "distill_from"} & keys.keys():
        keys = {key: value for key, value in keys.items() if key not in ("plan", "check")}
        check_rules(Config(model, "ml-100k", files, keys), embeds=False)


@pytest.mark.parametrize(("place", "text"), blocks("python"), ids=lambda value: str(value)[:60])
def test_python_of_the_pages_imports_what_there_is(place, text):
    for node in ast.walk(ast.parse(text, place)):
        if isinstance(node, ast.ImportFrom):
            module = import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), place


@pytest.mark.slow
def test_python_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    import recbole_etegrec
    from tests.helpers import SMALL_MODEL

    def short(model, dataset, config_dict):
        few = {"user_inter_num_interval": "[0,24]", "run_dir": str(tmp_path / "run")}
        few |= {"embedding_cache": str(tmp_path / "cache"), "code_num": 64}
        return run(model, dataset, config_dict={**SMALL_MODEL, **few, **config_dict})

    run = recbole_etegrec.run
    monkeypatch.setattr(recbole_etegrec, "run", short, raising=False)
    (example,) = [text for place, text in blocks("python") if "load_run, recommend, run" in text]
    exec(compile(example, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict = {}
    for number, text in enumerate(texts, 1):
        exec(compile(text, f"cell {number}", "exec"), names)
    assert {"recall@10", "ndcg@10"} <= names["result"]["test_result"].keys()
