"""Training configs: a Python file with `get_config()`, overridden from the command line.

Configs are programs of their users and are run as such. What they return is data: a locked
`ml_collections.ConfigDict`, in which unknown keys fail.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from animate_jax.errors import UserError
from animate_jax.files import directory_path
from animate_jax.training.checkpoint import stored_config

PREFIX = "--config."


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> ConfigDict:
    """The locked config of a file, after `key.subkey=value` overrides.

    Raises UserError where the file has no get_config or it sets what configs/base.py does not have,
    or an override names no key of it or has another type.
    """
    path = _existing(Path(path))
    spec = importlib.util.spec_from_file_location("training_config", path)
    if spec is None:
        raise UserError(f"{path}: is not a Python file; configs are, see configs/base.py")
    module = importlib.util.module_from_spec(spec)
    # `from configs import base` means that of the configs/ in which the file lies, then one that is
    # installed, then that of the working directory.
    folders = (folder for folder in path.resolve().parents if folder.name == "configs")
    above = next((f.parent for f in folders if (f / "base.py").exists()), None)
    before = list(sys.path)
    sys.path[:] = [os.fspath(above), *before] if above else [*before, os.getcwd()]
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError) as error:
        raise UserError(f"{path}: cannot be loaded ({error})") from error
    finally:
        sys.path[:] = before
    if not hasattr(module, "get_config"):
        raise UserError(f"{path}: has no get_config(); see configs/base.py for what it returns")
    try:
        config = module.get_config()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(_blame(path, spec.origin, error)) from error
    return _overridden(config, overrides)


def _blame(path, origin, error) -> str:
    """The line of the config at which an error came up, and what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([frame for frame in frames if frame.filename == origin] or frames)[-1]
    place = path if frame.filename == origin else frame.filename
    # ml_collections shows the whole config, its line ends escaped.
    said = str(error).replace("\\n", "\n")
    said = re.sub(r' Other fields present: ".*"(?=\nDid|.?$)', "", said, flags=re.DOTALL)
    return f"{place}, line {frame.lineno}: {type(error).__name__}: {' '.join(said.split())}"


def _existing(path: Path) -> Path:
    """The file, or for configs/... the one that was installed, where this is no clone."""
    if path.is_file():
        return path
    package = importlib.util.find_spec("configs")
    shipped = Path(package.origin).parent if package and package.origin else Path("configs")
    if path.parts[:1] == ("configs",) and shipped.joinpath(*path.parts[1:]).is_file():
        return shipped.joinpath(*path.parts[1:])
    raise UserError(f"{path}: there is no such config file; those shipped lie in {shipped}/")


def workdir_config(workdir: str | os.PathLike, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config that the latest checkpoint of a workdir was written with, after overrides; what
    it does not know yet, written by older code, is as in configs/base.py.

    Raises UserError where there is no checkpoint.
    """
    values = stored_config(directory_path(workdir))
    if values is None:
        raise UserError(f"{workdir}: there is no checkpoint yet; add --config CONFIG to begin")
    from configs import base

    complete = _completed(_with_tuples(values), base.get_config().to_dict())
    return _overridden(ConfigDict(complete), overrides)


def _completed(values, defaults):
    inner = {
        key: _completed(value, defaults[key])
        for key, value in values.items()
        # What is in a loss depends on the objective, and all of it has defaults.
        if key != "loss" and isinstance(value, dict) and isinstance(defaults.get(key), dict)
    }
    later = {key: value for key, value in defaults.items() if key not in values}
    return values | inner | later  # in the order in which they were stored


def _with_tuples(value):
    """JSON's lists as the tuples that they were."""
    if isinstance(value, dict):
        return {key: _with_tuples(one) for key, one in value.items()}
    return tuple(_with_tuples(one) for one in value) if isinstance(value, list) else value


def _overridden(config, overrides):
    config.lock()
    for override in overrides:
        set_value(config, override)
    return config


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command-line arguments -> (overrides `key=value`, the rest).

    Overrides are written `--config.key=value` or `--config.key value`.
    """
    overrides, rest = [], []
    arguments = iter(arguments)
    for argument in arguments:
        if not argument.startswith(PREFIX):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix(PREFIX).partition("=")
        if not equals:
            value = next(arguments, None)
            if value is None:
                raise UserError(f"{argument}: a value is missing; write {argument}=VALUE")
        overrides.append(f"{key}={value}")
    return overrides, rest


def set_value(config: ConfigDict, override: str) -> None:
    """Applies one `key.subkey=value`; text stays text, everything else is a Python literal."""
    key, _, text = override.partition("=")
    names = key.split(".")
    section = config
    for name in names[:-1]:
        section = section[name] if isinstance(section, ConfigDict) and name in section else None
    if not isinstance(section, ConfigDict) or names[-1] not in section:
        known = sorted(section) if isinstance(section, ConfigDict) else sorted(config)
        raise UserError(f"{PREFIX}{key}: there is no such key; there are {known}")
    now = section[names[-1]]
    if not isinstance(now, ConfigDict):
        value = _parsed(text, now, key)
    elif not _may_be_none(names):
        raise UserError(f"{PREFIX}{key} is a section; set one of {sorted(now)} in it")
    elif not isinstance(value := _parsed(text, None, key), dict | None):
        raise UserError(f"{PREFIX}{key}={text}: give a dictionary, or None")
    try:
        with section.unlocked():
            section[names[-1]] = value
    except TypeError as error:
        kind = type(now).__name__
        raise UserError(f"{PREFIX}{key} is {text!r}; it should be of type {kind}") from error


def _may_be_none(names):
    """Whether configs may do without a section, and so have another in its place."""
    from configs import base

    section = base.get_config()
    for name in names:
        section = section.get(name) if isinstance(section, ConfigDict) else None
    return section is None


def _parsed(text, now, key):
    if isinstance(now, str):
        return text
    if isinstance(now, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        kind = "value" if now is None else type(now).__name__
        raise UserError(f"{PREFIX}{key}={text}: cannot be read as a {kind}") from error
    if isinstance(now, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(now, tuple) and isinstance(value, list):
        return tuple(value)
    return value
