# SPDX-License-Identifier: Apache-2.0
"""Where configuration files are looked for: beside the file that names them, then in what the package ships."""

from pathlib import Path

from primus.config.suggestions import nearest
from primus.errors import ConfigError

_PACKAGE = Path(__file__).parent.parent


def _examples() -> Path:
    shipped = _PACKAGE / "examples"  # in an installed package; a checkout has them at its root
    return shipped if shipped.is_dir() else _PACKAGE.parent / "examples"


EXAMPLES = _examples()
"""The folder of the shipped examples; `${PRIMUS_EXAMPLES}` in a configuration."""

EXAMPLE_CONFIGS = EXAMPLES / "configs"
TRAINER_PRESETS = Path(__file__).parent / "presets" / "trainers"
MODEL_PRESETS = Path(__file__).parent / "presets" / "models"


def find_file(name: str, *, where: str, folder: Path, library: Path) -> Path:
    """Return the path of a configuration file that is named somewhere.

    Args:
        name: A path, relative to `folder`. A bare name is also looked for in `library`, after that.
        where: What names it, for the error.
        folder: The folder of the file that names it.
        library: A folder of the package.

    Returns:
        The path of an existing file.

    Raises:
        ConfigError: If there is no such file.
    """
    is_bare = Path(name).name == name
    candidates = [folder / name, library / name] if is_bare else [folder / name]
    for path in candidates:
        if path.is_file():
            return path
    folders = [path.parent for path in candidates]
    known = sorted({path.name for folder in folders for path in folder.glob("*.yaml")})
    similar = nearest(Path(name).name, known)
    advice = f"did you mean '{similar}'?" if similar else f"there is {', '.join(known) or 'no .yaml file'}"
    places = " or in ".join(f"'{folder}'" for folder in folders)
    raise ConfigError(f"{where}: there is no file '{Path(name).name}' in {places}; {advice}")
