# SPDX-License-Identifier: Apache-2.0
"""scripts/install, with an interpreter that only writes down what it is asked to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
INTERPRETER = """#!/usr/bin/env bash
case "$*" in
    --version) echo "Python $VERSION" ;;
    -c*) [ "$VERSION" != 3.9.0 ] ;;
    *)
        echo "$*" >>"$CALLS"
        if [ "$2" = venv ]; then mkdir -p "$4/bin" && touch "$4/pyvenv.cfg" && cp "$0" "$4/bin/python"; fi
        if [ "$*" = "$FAIL" ]; then exit 1; fi
        ;;
esac
"""


class Installation:
    """A copy of the files that an environment is made from."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.calls_file = folder / "calls"
        self.python = folder / "python"
        (self.checkout / "scripts").mkdir(parents=True)
        for name in ("scripts/install", "constraints.txt", "pyproject.toml"):
            shutil.copy(CHECKOUT / name, self.checkout / name)
        self.python.write_text(INTERPRETER)
        self.python.chmod(0o755)

    def run(self, *arguments: str, version: str = "3.11.7", fail: str = "") -> subprocess.CompletedProcess[str]:
        self.calls_file.write_text("")
        variables = {"PYTHON": str(self.python), "VERSION": version, "CALLS": str(self.calls_file), "FAIL": fail}
        environment = {key: value for key, value in os.environ.items() if key != "PRIMUS_VENV"} | variables
        script = str(self.checkout / "scripts" / "install")
        return subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=False)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def test_an_environment_gets_torch_and_then_the_project_at_the_pinned_versions(installation: Installation) -> None:
    assert installation.run().returncode == 0
    pip = "-m pip --disable-pip-version-check install --quiet --constraint constraints.txt"
    assert installation.calls == ["-m venv --clear .venv", f"{pip} torch", f"{pip} --editable .[test,dev,parquet]"]


def test_an_environment_that_fits_is_left_as_it_is(installation: Installation) -> None:
    installation.run("env")
    again = installation.run("env")
    assert (again.returncode, again.stderr, installation.calls) == (0, "", [])


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_an_environment_is_made_again_when_its_files_change(installation: Installation, name: str) -> None:
    installation.run("env")
    with (installation.checkout / name).open("a") as file:
        file.write("# changed\n")
    installation.run("env")
    assert installation.calls[0] == "-m venv --clear env"


def test_an_environment_is_made_again_for_another_python_and_after_a_failure(installation: Installation) -> None:
    installation.run("env")
    failed = "-m pip --disable-pip-version-check install --quiet --constraint constraints.txt torch"
    assert installation.run("env", version="3.12.1", fail=failed).returncode == 1
    assert installation.run("env", version="3.12.1").returncode == 0
    assert len(installation.calls) == 3


def test_a_folder_with_other_things_in_it_is_not_cleared(installation: Installation) -> None:
    precious = installation.checkout / "thesis" / "chapter.tex"
    precious.parent.mkdir()
    precious.touch()
    result = installation.run("thesis")
    assert result.returncode == 2
    assert result.stderr == "scripts/install: thesis is a folder with other things in it; name another one\n"
    assert precious.exists()


def test_a_python_that_is_too_old_is_refused(installation: Installation) -> None:
    result = installation.run(version="3.9.0")
    assert result.returncode == 2
    assert result.stderr == "scripts/install: Python 3.9.0 is older than 3.10; set PYTHON to a newer one\n"
