"""Wheels that the controller fetches: once for hosts of one kind, apart for hosts that cannot share them."""

import asyncio
from pathlib import Path

import pytest

from fleet_controller.bringup import install, wheelhouse
from fleet_controller.bringup.install import _gather
from fleet_controller.bringup.interpreter import InstallChoice
from fleet_controller.bringup.options import UpOptions
from fleet_controller.bringup.wheels import Release
from fleet_controller.transport.discovery import HostPlatform
from fleet_inventory.hosts import Host

RELEASE = Release("1+abc", {}, "grpcio==1\n")


def platform(libc: str) -> HostPlatform:
    return HostPlatform(root="/r", os="linux", architecture="x86_64", libc=libc)


async def test_hosts_of_one_kind_share_a_fetch_and_an_older_libc_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    async def fetch_wheels(folder: Path, *_: object) -> None:
        fetched.append(folder.name)
        await asyncio.sleep(0)  # another host's turn
        folder.mkdir(parents=True)

    monkeypatch.setattr(install, "_cache", lambda: tmp_path)
    monkeypatch.setattr(wheelhouse, "fetch_wheels", fetch_wheels)
    options, host = UpOptions(fetch_wheels=True), Host(name="gpu1", address="gpu1")
    choice = InstallChoice(python="/usr/bin/python3", uv="", description="")
    platforms = [platform("glibc 2.39"), platform("glibc 2.39"), platform("glibc 2.28"), platform("musl 1.2")]
    await asyncio.gather(*(_gather(host, one, choice, RELEASE, options) for one in platforms))
    assert len(fetched) == len(set(fetched)) == 3
