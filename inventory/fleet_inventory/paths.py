"""Where the files of the inventory are on the user's machine."""

import os
from collections.abc import Mapping
from pathlib import Path


def config_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """FLEET_CONFIG_DIR, else fleet in XDG_CONFIG_HOME, else ~/.config/fleet."""
    if environment.get("FLEET_CONFIG_DIR"):
        return Path(environment["FLEET_CONFIG_DIR"]).expanduser()
    base = environment.get("XDG_CONFIG_HOME", "")
    # The XDG base directory specification: a relative path is to be ignored.
    return (Path(base) if base.startswith("/") else _home(environment) / ".config") / "fleet"


def hosts_file(environment: Mapping[str, str] = os.environ) -> Path:
    """FLEET_HOSTS, else hosts.yaml in the configuration folder."""
    if environment.get("FLEET_HOSTS"):
        return Path(environment["FLEET_HOSTS"]).expanduser()
    return config_dir(environment) / "hosts.yaml"


def models_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The user's own model descriptions, beside hosts.yaml. It need not exist."""
    return hosts_file(environment).parent / "models"


def ssh_config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """The user's ssh_config."""
    return _home(environment) / ".ssh" / "config"


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment["HOME"]) if environment.get("HOME") else Path.home()
