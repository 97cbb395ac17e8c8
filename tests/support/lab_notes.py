"""The lab notes' commands, and how ours may differ from them: a table of substitutions and a list of additions.

docs/substitutions.md shows the same table to people; a test holds both together.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def shell_commands(text: str) -> list[list[str]]:
    """Commands of notes in shell: continuation lines joined, a leading "$ " dropped, comments and prose left out."""
    return [shlex.split(line) for _, line in shell_lines(text)]


def shell_lines(text: str) -> list[tuple[dict[str, str], str]]:
    """As shell_commands: each command's own variables, and its words as one line."""
    joined = re.sub(r"\\\n\s*", " ", text)
    programs = (
        "git clone",
        "cmake ",
        "cp ",
        "uv ",
        "./llama.cpp/",
        "llama-bench ",
        "llama-server ",
        "~/.lmstudio/bin/lms ",
    )
    lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
    commands = (without_environment(line) for line in lines)
    return [(variables, line) for variables, line in commands if line.startswith(programs)]


def without_environment(line: str) -> tuple[dict[str, str], str]:
    """What stands before a command as NAME=value, and the rest of the line."""
    variables: dict[str, str] = {}
    while found := re.match(r"([A-Z][A-Z0-9_]*)=(\S+) ", line):
        variables[found[1]] = found[2]
        line = line[found.end() :]
    return variables, line


def ordered(words: Sequence[str]) -> list[str]:
    """The words with options (each with its value) in alphabetical order: these programs do not care about it."""
    groups: list[list[str]] = []
    for word in words:
        takes = bool(groups) and groups[-1][-1].startswith("-") and len(groups[-1]) == 1 and "=" not in groups[-1][0]
        if takes and not word.startswith("-"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return [word for group in [groups[0], *sorted(groups[1:])] for word in group]


@dataclass(frozen=True)
class Substitution:
    """Words of the notes (one regular expression a word) become words of ours, with {places} filled in."""

    name: str
    notes: tuple[str, ...]
    ours: tuple[str, ...]
    is_program: bool = False  # the command's first words only: elsewhere the same word is an argument


@dataclass(frozen=True)
class Addition:
    """Words that we add and the notes do not have, one regular expression a word."""

    name: str
    words: tuple[str, ...]


REPOSITORY = r"(?P<owner>Qwen|zai-org)/(?P<name>[^/]+)"
SNAPSHOT = "{hub}/models--{owner}--{name}/snapshots/{revision}"

SUBSTITUTIONS = (
    Substitution("server program", (r"(\./llama\.cpp/)?llama-server",), ("{engine}/bin/llama-server",), True),
    Substitution("bench program", (r"(\./llama\.cpp/)?llama-bench",), ("{engine}/bin/llama-bench",), True),
    Substitution("GGUF file", (r"unsloth/[^/]+/(?P<file>[^/]+\.gguf)",), ("{snapshot}/{file}",)),
    Substitution("MLX folder", (r"\./mlx-community/[^/]+",), ("{snapshot}",)),
    Substitution("venv prefix", ("uv", "run", "python3?"), ("{engine}/venv/bin/python3",), True),
    Substitution("vLLM program", ("uv", "run", "vllm"), ("{engine}/venv/bin/vllm",), True),
    Substitution("model option", ("--model", REPOSITORY), ("--model-path", SNAPSHOT)),
    Substitution("hub repository", (REPOSITORY,), (SNAPSHOT,)),
    Substitution("lms program", (r"~/\.lmstudio/bin/lms",), ("{lms}",), True),
    Substitution("exact LM Studio model", ("load", r"(?P<name>glm-4\.7-flash)"), ("load", "--exact", "zai-org/{name}")),
    Substitution("git program", ("git", "clone"), ("{git}", "clone"), True),
    Substitution("cmake program", ("cmake",), ("{cmake}",), True),
    Substitution("build folder", (r"llama\.cpp/build",), ("{engine}.build",)),
    Substitution("source folder", (r"llama\.cpp",), ("-S", "{source}")),
    Substitution("number of jobs", ("-j",), ("-j", "{cores}")),
    # The build folder is always a new one, so there is nothing to clean.
    Substitution("clean build", ("--clean-first",), ()),
    Substitution("uv program", ("uv", "(?P<word>venv|pip)"), ("{uv}", "{word}"), True),
    Substitution("pinned version", ("mlx-lm",), ("mlx-lm=={mlx_lm_version}",)),
    Substitution("pinned version", ("vllm",), ("{vllm}",)),
    # The environment is always a new one, so there is nothing to upgrade.
    Substitution("upgrade", ("-U",), ()),
    Substitution(
        "named git package",
        (r"(?P<url>git\+https://github\.com/[^/]+/(?P<name>[a-z]+)\.git@[0-9a-f]{40})",),
        ("{name} @ {url}",),
    ),
    Substitution(
        "commit of the main branch",
        (r"(?P<url>git\+https://github\.com/[^/]+/(?P<name>[a-z]+)\.git)#subdirectory=python",),
        ("{name} @ {url}{commit}#subdirectory=python",),
    ),
)

ADDITIONS = (
    Addition("listening address", ("--host", r"127\.0\.0\.1")),
    Addition("port", ("--port", "8080|8000|30000")),
    Addition("served model name", ("--alias|--served-model-name", r"[a-z0-9._-]+")),
    Addition("context", ("--context-length|--max-model-len", r"\d+")),
    Addition("figures of the server", ("--metrics|--enable-metrics",)),
    Addition("memory fraction", ("--gpu-memory-utilization", r"0\.9")),
    Addition("replaced pins", ("--overrides", r"/\S+/engines/\S+\.tmp/overrides\.txt")),
    Addition("generator", ("-G", "Ninja")),
    Addition("optimized build", ("-DCMAKE_BUILD_TYPE=Release",)),
    Addition("architectures of the cards present", (r"-DCMAKE_CUDA_ARCHITECTURES=\d+(;\d+)*",)),
    Addition("nothing but what is kept", (r"-DLLAMA_BUILD_(TESTS|EXAMPLES|UI)=OFF",)),
    Addition("no prebuilt web pages", ("-DLLAMA_USE_PREBUILT_UI=OFF",)),
    Addition("no TLS in the server", ("-DLLAMA_OPENSSL=OFF",)),
    Addition("perplexity tool", ("llama-perplexity",)),
    Addition("history without contents", ("--filter=blob:none", "--no-checkout", "--progress")),
    Addition("clone into staging", (r"/\S+/engines/sources/\S+\.tmp",)),
    Addition("movable environment", ("--relocatable",)),
    Addition("interpreter", ("--python", r"/\S+/bin/python3?")),
    Addition("environment's folder", (r"/\S+/engines/\S+\.tmp/venv",)),
    Addition("mlx pinned with it", (r"mlx==[0-9.]+",)),
    Addition("repetitions", ("-[rn]", "5")),
    Addition("depth", ("-d", "0")),
    Addition("machine-readable output", ("-o", "json")),
    Addition("machine-readable output", ("--json",)),
    Addition("speed of each answer", ("--stats",)),
    Addition("model to get", (r"zai-org/glm-4\.7-flash",)),
    Addition("nobody is asked", ("-y",)),
    Addition("address of LM Studio's server", ("--port", "1234", "--bind", r"127\.0\.0\.1")),
    Addition("identifier", ("--identifier", r"fleet-[a-z0-9._-]+")),
    Addition("whole model on the GPU", ("--gpu", "max")),
)

# Variables that we set and the notes do not, by program.
PERMITTED_ENVIRONMENT = {
    "git": frozenset({"GIT_TERMINAL_PROMPT", "GIT_ALLOW_PROTOCOL", "GIT_SSH_COMMAND", "LC_ALL"}),
    "venv/bin/python3": frozenset({"HF_HOME"}),
    "venv/bin/vllm": frozenset({"VLLM_NO_USAGE_STATS"}),
}


def substituted(words: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """The notes' command in our words: at each word the first substitution that matches."""
    result: list[str] = []
    position = 0
    while position < len(words):
        for substitution in SUBSTITUTIONS:
            if substitution.is_program and position:
                continue
            found = _match(substitution.notes, words[position:])
            if found is not None:
                result += [word.format_map({**places, **found}) for word in substitution.ours]
                position += len(substitution.notes)
                break
        else:
            result.append(words[position])
            position += 1
    return result


def without(names: Sequence[str], words: Sequence[str]) -> list[str]:
    """The words without those of the named additions."""
    dropped = [addition for addition in ADDITIONS if addition.name in names]
    kept: list[str] = []
    position = 0
    while position < len(words):
        found = next((addition for addition in dropped if _match(addition.words, words[position:]) is not None), None)
        if found is None:
            kept.append(words[position])
        position += len(found.words) if found else 1
    return kept


def _match(patterns: Sequence[str], words: Sequence[str]) -> dict[str, str] | None:
    if len(words) < len(patterns):
        return None
    named: dict[str, str] = {}
    for pattern, word in zip(patterns, words, strict=False):
        found = re.fullmatch(pattern, word)
        if found is None:
            return None
        named.update({key: value for key, value in found.groupdict().items() if value is not None})
    return named


def differences(notes: Sequence[str], ours: Sequence[str]) -> list[str]:
    """What sets ours apart from the (substituted) notes beyond permitted additions; [] = equal. Order counts."""
    found: list[str] = []
    expected, position = list(notes), 0
    while position < len(ours):
        if expected and ours[position] == expected[0]:
            expected.pop(0)
            position += 1
            continue
        addition = next((item for item in ADDITIONS if _match(item.words, ours[position:]) is not None), None)
        if addition is not None:
            position += len(addition.words)
            continue
        wanted = repr(expected[0]) if expected else "nothing more"
        return [*found, f"the notes have {wanted} where we have {ours[position]!r}"]
    return [*found, *(f"the notes have {word!r}, we do not" for word in expected)]
