# SPDX-License-Identifier: Apache-2.0
"""The documentation is true: its Python prints what it says, its commands are accepted, its links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "primus/**/*.md", "examples/**/*.md")
    for path in CHECKOUT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")


def page_name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def blocks(page: Path, language: str) -> list[tuple[str, str | None]]:
    """The code blocks of a language, each with the text block that follows it immediately."""
    found = list(BLOCK.finditer(page.read_text(encoding="utf-8")))
    result = []
    for i, match in enumerate(found):
        follows = found[i + 1] if i + 1 < len(found) else None
        output = None
        if follows is not None and follows.group(1) == "text" and follows.start() == match.end() + 1:
            output = follows.group(2)
        if match.group(1) == language:
            result.append((match.group(2), output))
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder that has the examples, as a checkout has them."""
    (tmp_path / "examples").symlink_to(CHECKOUT / "examples")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_name)
def test_the_python_of_a_page_runs_and_prints_what_the_page_says(page: Path, folder: Path) -> None:
    marker = "--- block"
    source = "".join(f"print({marker!r})\n{code}\n" for code, _ in blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"{marker}\n")[1:]
    for output, (code, expected) in zip(printed, blocks(page, "python"), strict=True):
        if expected is not None:
            assert output == expected, code


def commands(page: Path, *, name: str) -> list[str]:
    lines = [code.replace("\\\n", " ").splitlines() for code, _ in blocks(page, "bash")]
    return [line for block in lines for line in block if line.startswith(name)]


@pytest.mark.parametrize(
    "command",
    sorted({command.split("#")[0].strip() for page in PAGES for command in commands(page, name="primus train")}),
    ids=str,
)
def test_every_training_command_is_accepted(command: str, folder: Path) -> None:
    """Up to the point where data is needed that a page can't bring along."""
    words = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "primus", *words, *([] if {"--dry-run", "--plan"} & set(words) else ["--dry-run"])],
        cwd=folder, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    missing = any(said in done.stderr for said in ("no such file", "is no folder", "is not set"))
    assert done.returncode == 0 or (done.returncode == 2 and missing), done.stderr


@pytest.mark.parametrize(
    "command",
    sorted({command.split("#")[0].strip() for page in PAGES for command in commands(page, name="primus data")}),
    ids=str,
)
def test_every_command_on_data_runs(command: str, folder: Path) -> None:
    """On the examples; a file that the reader has to bring along is missing, and everything else is right."""
    words = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "primus", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=100
    )
    missing = "no such file" in done.stderr or "no file matches" in done.stderr
    assert done.returncode == 0 or (done.returncode == 2 and missing), done.stderr or done.stdout


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_file_map_of_the_readme_is_true() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", (CHECKOUT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert named
    for name in named:
        assert (CHECKOUT / name).exists(), name
    rooms = {f"primus/{path.name}/" for path in (CHECKOUT / "primus").iterdir() if (path / "__init__.py").exists()}
    assert rooms - {"primus/backends/"} <= set(named)
