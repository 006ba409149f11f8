"""What README, docs and data cards name is there: links, files, tests, modules, commands with options, targets."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

import medfuse
from medfuse.cli import app
from medfuse.config import read_recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("data_cards/*.md")])
FOLDERS = ("apps", "benchmarks", "data_cards", "docs", "medfuse", "notebooks", "pipelines", "tests", ".ci")
COMMANDS = {name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            for name, command in get_command(app).commands.items()}  # fmt: skip

pages = pytest.mark.parametrize("page", PAGES, ids=[p.relative_to(ROOT).as_posix() for p in PAGES])


def code_of(text: str) -> list[str]:
    """Words between backticks, and the lines of fenced and indented blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return [one.strip() for one in [*re.findall(r"`([^`]+)`", text), *lines]]


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def words_of(command: str) -> list[str]:
    """``explain RUN [--check]  # why`` in its words."""
    return shlex.split(re.sub(r"[\[\]](?=-|\s|$)", " ", command), comments=True)


@cache
def names_of(path: Path) -> frozenset[str]:
    """Functions and classes of a file, and what it imports from others by name."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    own = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return frozenset(own | {a.asname or a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names})


@pages
def test_links_resolve(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        aim = (page.parent / file).resolve() if file else page
        assert aim.is_relative_to(ROOT), target
        assert aim.exists(), target
        assert not anchor or anchor in anchors(aim.read_text(encoding="utf-8")), target


@pages
def test_files_and_tests_that_are_named_exist(page):
    for code in code_of(page.read_text(encoding="utf-8")):
        path, _, test = code.partition("::")
        if re.match(rf"({'|'.join(map(re.escape, FOLDERS))})/[\w/.\-]*$", path):
            found = [ROOT / path]
        elif re.fullmatch(r"test_\w+\.py", path):
            found = list(ROOT.glob(f"tests/**/{path}"))
        else:
            continue
        assert found, code
        assert found[0].exists(), code
        assert not test or test in names_of(found[0]), code


@pages
def test_modules_that_are_named_exist(page):
    for code in code_of(page.read_text(encoding="utf-8")):
        name = re.match(r"medfuse(\.\w+)+", code)
        if name is None:
            continue
        parts = name.group().split(".")
        known = next(k for k in range(len(parts), 0, -1) if module_file(parts[:k]))
        names = names_of(module_file(parts[:known])) | set(medfuse.__all__ if known == 1 else ())
        assert known == len(parts) or parts[known] in names, code


def module_file(parts: list[str]) -> Path | None:
    path = ROOT.joinpath(*parts)
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


@pages
def test_commands_and_their_options_exist(page):
    for code in code_of(page.read_text(encoding="utf-8")):
        words = words_of(code) if re.match(r"medfuse |\w+ --|benchmarks/\w+\.py ", code) else []
        if words[:1] == ["medfuse"]:
            words = words[1:]
        if not words or words[0] == "--help":
            continue
        options = {word.split("=")[0] for word in words if word.startswith("-")}
        if words[0].endswith(".py"):
            script = (ROOT / words[0]).read_text(encoding="utf-8")
            assert all(f'"{option}"' in script for option in options), code
            continue
        assert words[0] in COMMANDS or not code.startswith("medfuse "), code
        assert options <= COMMANDS.get(words[0], options), code


@pages
def test_options_that_are_named_alone_exist(page):
    known = set().union(*COMMANDS.values())
    scripts = "".join(p.read_text(encoding="utf-8") for p in ROOT.glob("benchmarks/*.py"))
    for option in re.findall(r"`(--[\w-]+)[^`]*`", page.read_text(encoding="utf-8")):
        assert option in known or f'"{option}"' in scripts, option


@pages
def test_settings_that_are_named_exist(page):
    for key, value in re.findall(r"--set ([\w.]+)=(\S+?)(?=[`\s])", page.read_text(encoding="utf-8")):
        read_recipe("default", [f"{key}={value}"])


@pages
def test_targets_of_make_exist(page):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for code in code_of(page.read_text(encoding="utf-8")):
        if code.startswith("make "):
            words = [w for w in words_of(code)[1:] if "=" not in w]
            assert set(words) <= targets, code


def test_they_can_fail(tmp_path):
    assert code_of("a `b c` d\n```bash\nmedfuse x\n```\n\n    medfuse y\n") == ["b c", "medfuse x", "medfuse y"]
    assert anchors("# One: two\n## A `b`-c\n") == {"one-two", "a-b-c"}
    assert words_of("explain RUN [--patient ID] [--check]  # why") == ["explain", "RUN", "--patient", "ID", "--check"]
    for wrong, test in (
        ("[x](nowhere.md)", test_links_resolve),
        ("`tests/test_nothing.py`", test_files_and_tests_that_are_named_exist),
        ("`tests/test_layers.py::test_no`", test_files_and_tests_that_are_named_exist),
        ("`medfuse.nothing.at_all`", test_modules_that_are_named_exist),
        ("`medfuse trian`", test_commands_and_their_options_exist),
        ("`medfuse train --cohrt X`", test_commands_and_their_options_exist),
        ("`--no-such`", test_options_that_are_named_alone_exist),
        ("`make nothing`", test_targets_of_make_exist),
    ):
        page = tmp_path / "page.md"
        page.write_text(wrong)
        with pytest.raises(AssertionError):
            test(page)
    page.write_text("`--set train.no=1`")
    with pytest.raises(Exception, match="no"):
        test_settings_that_are_named_exist(page)
