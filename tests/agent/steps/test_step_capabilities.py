"""The options of a build, from what its own --help prints: captured, made up, and of the real server."""

import json
import subprocess
from pathlib import Path

import pytest

from fleet_agent.jobs.model import AdoptEngineStep, Step
from fleet_agent.probes.engines import parse_install
from fleet_agent.steps.capabilities import option_names
from support.agent_jobs import Agent, result_of

SAMPLE = (Path(__file__).parent / "data" / "llama-server.help.txt").read_text(encoding="utf-8")


def test_every_name_of_an_option_is_known() -> None:
    names = option_names(SAMPLE)
    assert {"-m", "--model", "-c", "--ctx-size", "-kvo", "--no-kv-offload", "-ctk", "--cache-type-k", "--slots"} <= {
        *names
    }
    assert {"-nkvo", "--spec-draft-type-k", "--cache-type-k-draft", "--metrics", "--fit", "--mmproj"} <= {*names}
    assert len(set(names)) == len(names) > 300


def test_words_of_the_descriptions_are_no_options() -> None:
    text = "--keep N      keep as with --never\n              or --neither\n-----  params -----\n--last     x\n"
    assert option_names(text) == ("--keep", "--last")


def test_options_that_are_listed_as_removed_are_not_known() -> None:
    """llama-server ends with an error where one of them is given."""
    names = option_names(SAMPLE)
    assert "the argument has been removed" in SAMPLE
    assert not {"--draft", "--draft-max", "--draft-min", "--spec-ngram-size-n"} & {*names}
    wrapped = "--old-name, --older-name\n      the argument has been\n      removed. use --new\n--new N   text\n"
    assert option_names(wrapped) == ("--new",)


@pytest.mark.llama_cpp
def test_the_real_server_knows_the_options_of_its_help(llama_cpp_bin: Path) -> None:
    """Told apart by the server itself: it refuses a name that it does not know."""
    shown = subprocess.run([llama_cpp_bin / "llama-server", "--help"], capture_output=True, text=True, check=True)
    names = option_names(shown.stdout)
    for name in ("--metrics", "--cache-type-k", "-fit", "--spec-draft-n-max", "--mmproj", "-ctv"):
        assert name in names
    refused = subprocess.run(
        [llama_cpp_bin / "llama-server", "--draft-max", "3"], capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0 and "--draft-max" not in names


def fake_server(folder: Path, help_body: str) -> None:
    folder.mkdir()
    script = f"#!/bin/sh\ncase $1 in --version) echo 'version: 9000 (abc)';; --help) {help_body};; esac\n"
    (folder / "llama-server").write_text(script)
    (folder / "llama-server").chmod(0o755)


async def test_they_are_kept_with_the_install_and_told_as_facts(agent: Agent, tmp_path: Path) -> None:
    fake_server(tmp_path / "bin", "printf -- '-m, --model FILE  the model\\n--metrics  figures\\n'")
    step = AdoptEngineStep("k", "llama.cpp", "", str(tmp_path / "bin"), ("llama-server",))
    record = result_of(await agent.run(Step("adopt", adopt_engine=step)))["install"]
    assert record["flags"] == ["-m", "--model", "--metrics"]
    facts = parse_install(agent.layout.engines_dir / "k", json.dumps(record))
    assert facts is not None and facts.flags == ("-m", "--model", "--metrics")
    earlier = parse_install(Path("/e/k"), json.dumps({name: record[name] for name in record if name != "flags"}))
    assert earlier is not None and earlier.flags == ()


@pytest.mark.parametrize("body", ["exit 1", "true", "echo usage: llama-server"])
async def test_a_server_that_does_not_tell_them_is_installed_all_the_same(
    agent: Agent, tmp_path: Path, body: str
) -> None:
    fake_server(tmp_path / "bin", body)
    step = AdoptEngineStep("k", "llama.cpp", "", str(tmp_path / "bin"), ("llama-server",))
    events = await agent.run(Step("adopt", adopt_engine=step))
    assert result_of(events)["install"]["flags"] == []
    assert any("stay unknown" in event.log.text for event in events if event.log is not None)


@pytest.mark.llama_cpp
async def test_the_real_server_is_asked_when_it_is_adopted(agent: Agent, llama_cpp_bin: Path) -> None:
    step = AdoptEngineStep("k", "llama.cpp", "", str(llama_cpp_bin), ("llama-server",))
    flags = result_of(await agent.run(Step("adopt", adopt_engine=step)))["install"]["flags"]
    assert {"--jinja", "--ctx-size", "--parallel", "--alias", "--slots", "--flash-attn"} <= {*flags}
