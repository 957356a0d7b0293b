# SPDX-License-Identifier: Apache-2.0
"""Curves on Weights & Biases, or in files that it can be sent later.

A run never waits for it and never fails because of it: without a key, without a network, or with `WANDB_MODE=offline`,
everything is written to files. It is told the numbers and the configuration, and nothing of the environment, the
command line, the source code, or what the program prints.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primus.errors import ConfigError

if TYPE_CHECKING:
    from wandb import Run

logger = logging.getLogger("primus")

_LOGIN_TIMEOUT_S = 15
_INIT_TIMEOUT_S = 30
_FINISH_TIMEOUT_S = 120


class WandbCurves:
    """Logs points as they come.

    Args:
        run: A run of W&B.
    """

    def __init__(self, run: "Run") -> None:
        self._run = run

    def add(self, points: Mapping[str, float], *, iteration: int) -> None:
        """Add a point to each of some curves."""
        # W&B's own steps never go back; the iteration of a resumed run does.
        self._run.log({**points, "iteration": iteration})


def require_wandb() -> None:
    """Refuse to run without the package, before anything starts.

    Raises:
        ConfigError: If it is not installed.
    """
    if find_spec("wandb") is None:
        raise ConfigError(
            "wandb_project: the package wandb is not installed; install it with pip install 'primus[wandb]', or set"
            " wandb_project to null"
        )


@contextmanager
def wandb_curves(
    *, project: str, name: str, folder: Path, settings: Mapping[str, Any], id_file: Path, resumes: bool
) -> Iterator[WandbCurves]:
    """Begin a run of W&B, or go on with one.

    Args:
        project: Its project.
        name: Its name.
        folder: Where its files go, in a folder `wandb`.
        settings: The configuration of the run, as plain JSON data.
        id_file: Keeps the id of the run.
        resumes: Whether to go on with the run whose id is there.

    Yields:
        The curves.
    """
    import wandb  # noqa: PLC0415  # an extra, and one rank writes

    folder.mkdir(parents=True, exist_ok=True)
    known = id_file.read_text(encoding="utf-8").strip() if resumes and id_file.is_file() else None
    keys: dict[str, Any] = {
        "project": project,
        "name": name,
        "dir": str(folder),
        "config": without_credentials(settings),
        "id": known,
        "resume": None if known is None else "allow",
        "settings": wandb.Settings(
            silent=True,
            console="off",
            host="",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            login_timeout=_LOGIN_TIMEOUT_S,
            init_timeout=_INIT_TIMEOUT_S,
            finish_timeout=_FINISH_TIMEOUT_S,
        ),
    }
    try:
        run = wandb.init(**keys)
    except wandb.Error as exc:
        reason = without_credentials(str(exc).splitlines()[0] if str(exc) else type(exc).__name__)
        logger.warning("W&B can't be reached (%s); its files are written without it", reason)
        # What it has begun would stand in the way of the second attempt.
        wandb.teardown()
        run = wandb.init(**keys, mode="offline")
    id_file.parent.mkdir(parents=True, exist_ok=True)
    id_file.write_text(f"{run.id}\n", encoding="utf-8")
    run.define_metric("iteration", hidden=True)
    run.define_metric("*", step_metric="iteration")
    if run.offline:
        logger.info("W&B: offline; send it later with: wandb sync %s", Path(run.dir).parent)
    else:
        logger.info("W&B: %s", run.url)
    exit_code = 1
    try:
        yield WandbCurves(run)
        exit_code = 0
    finally:
        run.finish(exit_code=exit_code)


def without_credentials(value: Any) -> Any:
    """Plain JSON data without the user names and passwords of addresses.

    Args:
        value: The data.

    Returns:
        A copy.

    Examples:
        >>> without_credentials({"load": ["s3://me:secret@host/a"], "lr": 0.1})
        {'load': ['s3://***@host/a'], 'lr': 0.1}
    """
    if isinstance(value, Mapping):
        return {key: without_credentials(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_credentials(item) for item in value]
    return re.sub(r"(\w://)[^/\s@]+@", r"\1***@", value) if isinstance(value, str) else value
