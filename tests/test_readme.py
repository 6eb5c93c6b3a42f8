"""The README and the pages of docs/ say the same in both languages: form, code, names, figures.

Knows nothing of either language: a translation that is wrong in words alone is not noticed.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FIGURE = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")
NAME = re.compile(r"`([^`]+)`")
COMMENT = re.compile(r"(^|\s+)# .*$")
LINK = re.compile(r"\]\(([^):#]*)(?:#([^)]*))?\)")
DOCS = ROOT / "docs"
PAGES = {ROOT / "README.md": ROOT / "README.zh-CN.md"} | {
    page: DOCS / "zh-CN" / page.name for page in sorted(DOCS.glob("*.md")) if page.stem != "api"
}


class Part(NamedTuple):
    """A heading, a line of code, a row of a table, an item of a list, or a paragraph."""

    form: str  # what both languages must have in the same place, such as "row of 4 cells"
    line: int
    texts: list[str]  # the cells of a row; of anything else its one text


def parts(text: str) -> list[Part]:
    """The parts of a page in their order; lines of one paragraph are joined."""
    found, code, goes_on = [], False, False
    for number, line in enumerate(text.splitlines(), 1):
        heading = re.match(r"#+ ", line)
        if line.startswith("```"):
            code, form = not code, line
        elif code:
            form, line = "line of code", COMMENT.sub("", line)
        elif heading:
            form = f"heading of level {len(heading[0]) - 1}"
        elif line.startswith("|"):
            form = f"row of {line.count('|') - 1} cells"
        elif goes_on and line and not line.startswith("- "):
            found[-1].texts[0] += f" {line.strip()}"
            continue
        else:
            form = "item of a list" if line.startswith("- ") else "paragraph"
        goes_on = form in ("item of a list", "paragraph") and bool(line)
        if line:
            texts = line.strip("|").split("|") if form.startswith("row") else [line]
            found.append(Part(form, number, texts))
    return found


def one_sided(ours: list[str], others: list[str]) -> str:
    """What one of the two has more often than the other, or nothing."""
    more, less = Counter(ours) - Counter(others), Counter(others) - Counter(ours)
    sides = (("English", more), ("Chinese", less))
    return "; ".join(f"only in the {name}: {', '.join(c.elements())}" for name, c in sides if c)


def differences(english: str, chinese: str) -> list[str]:
    """What differs and where, a line each; after a difference in form nothing is compared."""
    ours, others = parts(english), parts(chinese)
    end = Part("end of the file", 0, [""])
    section, found = "", []
    for our, other in zip([*ours, end], [*others, end], strict=False):
        section = our.texts[0] if our.form.startswith("heading") else section
        place = f"line {our.line}, in the Chinese {other.line} ({section.strip('# ')})"
        if our.form != other.form:
            found.append(
                f"{place}: {our.form} in the English, {other.form} in the Chinese\n"
                f"    {our.texts[0][:80]}\n    {other.texts[0][:80]}"
            )
            break
        if our.form == "line of code" and our.texts != other.texts:
            found.append(f"{place}: code\n    {our.texts[0]}\n    {other.texts[0]}")
        if our.form == "line of code":
            continue
        for our_text, other_text in zip(our.texts, other.texts, strict=True):
            names = one_sided(NAME.findall(our_text), NAME.findall(other_text))
            texts = (NAME.sub("", our_text), NAME.sub("", other_text))
            figures = one_sided(*(FIGURE.findall(text) for text in texts))
            found += [f"{place}: names, {names}"] if names else []
            found += [f"{place}: figures, {figures}"] if figures else []
    return found


@pytest.mark.parametrize("english", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_say_the_same_in_both_languages_when_compared_part_by_part(english):
    texts = (page.read_text(encoding="utf-8") for page in (english, PAGES[english]))
    found = differences(*texts)
    assert not found, "\n" + "\n".join(found)


def anchors(page: Path) -> set[str]:
    """The names by which headings of a page are linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere():
    assert {page.name for page in DOCS.glob("zh-CN/*.md")} == {
        p.name for p in DOCS.glob("*.md")
    } - {
        "api.md"  # which is in the words of the docstrings
    }
    for page in (*PAGES, *PAGES.values()):
        for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {path}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in DOCS.glob("*.md") if page.name != "README.md")
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(page.relative_to(DOCS).as_posix() in nav for page in DOCS.rglob("*.md"))


EXAMPLE = """\
## Use

Set `seed` to 2020, which
takes 1,000 steps.

```bash
run --seed=2020  # a comment
```

| run | Recall |
|---|---|
| `a` | .0766, .0794 |
"""


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("a comment", "一句注释", None),
        ("## Use", "### Use", "line 1, in the Chinese 1 (Use): heading of level 2 in the En"),
        ("1,000", "1,001", "line 3, in the Chinese 3 (Use): figures, only in the English: 1"),
        ("`seed`", "`seeds`", "names, only in the English: seed; only in the Chinese: seeds"),
        ("--seed=2020", "--seed=2021", "line 7, in the Chinese 7 (Use): code"),
        (".0794", ".0795", "figures, only in the English: .0794; only in the Chinese: .0795"),
        ("| .0766", "| | .0766", "row of 2 cells in the English, row of 3 cells in the Chinese"),
        ("| `a` | .0766, .0794 |\n", "", "row of 2 cells in the English, end of the file in the"),
    ],
)
def test_differences_names_place_and_sides_when_a_part_differs(old, new, message):
    found = differences(EXAMPLE, EXAMPLE.replace(old, new))
    assert len(found) == (message is not None)
    assert message is None or message in found[0]
