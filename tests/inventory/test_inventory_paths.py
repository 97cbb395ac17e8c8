"""Where the inventory's files are."""

from pathlib import Path

from fleet_inventory import paths


def test_the_configuration_folder_follows_the_environment() -> None:
    home = {"HOME": "/home/lab"}
    assert paths.config_dir(home) == Path("/home/lab/.config/fleet")
    assert paths.config_dir(home | {"XDG_CONFIG_HOME": "/x"}) == Path("/x/fleet")
    assert paths.config_dir(home | {"XDG_CONFIG_HOME": "relative"}) == Path("/home/lab/.config/fleet")
    assert paths.config_dir(home | {"XDG_CONFIG_HOME": "/x", "FLEET_CONFIG_DIR": "/f"}) == Path("/f")


def test_models_lie_beside_the_hosts_file() -> None:
    environment = {"HOME": "/home/lab", "FLEET_CONFIG_DIR": "/f"}
    assert paths.hosts_file(environment) == Path("/f/hosts.yaml")
    assert paths.models_folder(environment) == Path("/f/models")
    moved = environment | {"FLEET_HOSTS": "/lab/all.yaml"}
    assert paths.hosts_file(moved) == Path("/lab/all.yaml")
    assert paths.models_folder(moved) == Path("/lab/models")
