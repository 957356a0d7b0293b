# SPDX-License-Identifier: Apache-2.0
"""What holds for the repository as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import primus

CHECKOUT = Path(__file__).parents[2]
MODULES = sorted((CHECKOUT / "primus").rglob("*.py"))
PYTHON_FILES = MODULES + sorted((CHECKOUT / "tests").rglob("*.py")) + sorted((CHECKOUT / "scripts").glob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def test_the_version_heads_the_changelog() -> None:
    changelog = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert versions[0] == primus.__version__


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_every_module_is_named_after_what_it_is_about() -> None:
    nondescript = {"utils", "util", "helpers", "helper", "common", "misc", "legacy", "compat", "new", "v2"}
    assert [_name(path) for path in MODULES if nondescript & {path.stem, *path.parent.parts}] == []


def test_every_python_file_names_its_license() -> None:
    line = "# SPDX-License-Identifier: Apache-2.0"
    assert [_name(path) for path in PYTHON_FILES if line not in path.read_text(encoding="utf-8").splitlines()[:2]] == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bFIXME\b|\bXXX\b|\bTODO\b(?!\([a-z0-9-]+\): )",  # a limit has a name: TODO(slug): sentence
        r"/home/|/root/|/Users/",
        r"\bgetattr\(\s*(self\.)?(config|cfg|args|trainer)\b[^)]*,[^)]*,",  # no default for a key that the schema has
        r"\bpickle\.(dump|load)s?\b|weights_only=False|\byaml\.(unsafe_|full_)?load(_all)?\(",
    ],
)
def test_the_package_is_free_of(pattern: str) -> None:
    found = [
        f"{_name(path)}:{number}"
        for path in MODULES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert found == []


@pytest.mark.parametrize("script", ["scripts/install", "scripts/check", "scripts/test", "scripts/demo", ".ci/run"])
def test_a_script_can_be_run_and_is_valid_shell(script: str) -> None:
    path = CHECKOUT / script
    assert path.stat().st_mode & 0o111, "set its executable bit"
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")


def test_the_configuration_and_the_conversations_load_without_torch() -> None:
    code = "import sys, primus.config, primus.chat; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=False).returncode == 0
