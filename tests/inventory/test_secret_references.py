"""A secret is named by where it lies; what is no reference is refused without being repeated."""

import re
from pathlib import Path

import pytest

from fleet_inventory.base import InventoryError
from fleet_inventory.hosts import load_inventory
from fleet_inventory.secret_reference import PATTERN, parse_reference


@pytest.mark.parametrize("text", ["env:HF_TOKEN", "file:/run/secrets/key", "file:~/.config/fleet/hub token"])
def test_what_a_reference_looks_like(text: str) -> None:
    assert str(parse_reference(text)) == text
    assert re.match(PATTERN, text)


@pytest.mark.parametrize("text", ["hf_abcSECRET", "env:", "env:A-SECRET", "file:SECRET", "file:", "", "ENV:SECRET"])
def test_anything_else_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_reference(text)
    assert "SECRET" not in str(caught.value)
    assert not re.match(PATTERN, text)


def test_hosts_yaml_takes_it_for_all_and_for_one(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text("defaults: {hub_token: 'env:HF_TOKEN'}\nhosts: {a: {}, b: {hub_token: 'file:~/token'}}\n")
    hosts = load_inventory(path).hosts
    assert (hosts["a"].hub_token, hosts["b"].hub_token) == ("env:HF_TOKEN", "file:~/token")


def test_a_token_in_hosts_yaml_is_refused_by_line_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yaml"
    environment = "{VLLM_API_KEY: SECRET, LLAMA_ARG_HF_TOKEN: SECRET}"
    path.write_text(f"hosts:\n  a:\n    hub_token: hf_verySECRET\n    environment: {environment}\n")
    with pytest.raises(InventoryError) as caught:
        load_inventory(path)
    text = str(caught.value)
    assert "SECRET" not in text
    assert f"{path}:3: hosts.a.hub_token: must say where the secret lies, env:NAME or file:/path" in text
    assert "--api-key env:NAME" in text and "hub_token: env:HF_TOKEN" in text
