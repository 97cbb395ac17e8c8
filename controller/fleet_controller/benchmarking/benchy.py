"""How llama-benchy is started: in its own environment, with what its command line has no option for.

The words are Python for `python3 -c`, so that the command that is shown is all that is needed to repeat a measurement.
"""

from fleet_controller.domain.steps import ToolRef

KEY_VARIABLE = "OPENAI_API_KEY"
PROGRAM = "venv/bin/python3"

# llama-server closes the connection after each streamed reply, whatever its Keep-Alive header says (b11434: 150 of 300
# requests in a row over one connection failed, none over one each). llama-benchy keeps connections and repeats
# nothing, so it lost a row as soon as its next request came before the close; hence a connection for each request.
_OWN_CONNECTIONS = (
    "import aiohttp; connector = aiohttp.TCPConnector; "
    "aiohttp.TCPConnector = lambda limit=100, **more: connector(limit=limit, force_close=True)"
)
# The key is added to what Python sees of the arguments, after the process has started: no command line shows it.
_KEY = f"import os, sys; sys.argv += ['--api-key', os.environ['{KEY_VARIABLE}']]"
# mlx_lm.server knows no ignore_eos; a bias on all tokens that end a reply is the same. They are what it ends at
# itself (mlx_lm/utils.py, tokenizer_utils.py): the configurations' ids and the tokenizer's own.
_NO_END_BY_BIAS = (
    "import json, pathlib, sys; from llama_benchy.client import LLMClient; from transformers import AutoTokenizer; "
    "folder = pathlib.Path(sys.argv[sys.argv.index('--tokenizer') + 1]); "
    "files = [folder / name for name in ('config.json', 'generation_config.json')]; "
    "found = [json.loads(file.read_text()).get('eos_token_id') for file in files if file.is_file()]; "
    "found += [AutoTokenizer.from_pretrained(folder).eos_token_id]; "
    "ends = {end for one in found for end in (one if isinstance(one, list) else [one]) if end is not None}; "
    "bias = {'logit_bias': {str(end): -1000.0 for end in ends}}; payload = LLMClient._build_generation_payload; "
    "LLMClient._build_generation_payload = lambda *given: payload(*given) | bias"
)
_START = "from llama_benchy.__main__ import main; main()"


def program(install_key: str) -> ToolRef:
    return ToolRef(install_key=install_key, name=PROGRAM)


def first_words(backend: str, tokenizer: str) -> tuple[str, ...]:
    """What comes before llama-benchy's own options."""
    by_bias = backend == "mlx-lm" and tokenizer.startswith("/")
    return "-c", "; ".join([_OWN_CONNECTIONS, *([_NO_END_BY_BIAS] if by_bias else []), _START])


def with_key(words: tuple[str, ...]) -> tuple[str, ...]:
    """The same arguments, where the key comes from KEY_VARIABLE."""
    return words[0], words[1].replace(_START, f"{_KEY}; {_START}"), *words[2:]


def is_benchy(words: tuple[str, ...]) -> bool:
    return len(words) > 1 and words[1].endswith(_START)
