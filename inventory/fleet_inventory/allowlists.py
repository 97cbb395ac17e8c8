"""Which environment variables and tools a host's entry may name; the agent has the same lists and refuses the rest."""

import re

EXACT = (
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "HF_TOKEN_PATH",
    "HF_HUB_DISABLE_XET",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_HOME",
    "OMP_NUM_THREADS",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "UV_PYTHON_INSTALL_MIRROR",
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "UV_FIND_LINKS",
    "TOKENIZERS_PARALLELISM",
)
PREFIXES = ("LLAMA_", "GGML_", "MLX_", "VLLM_", "SGLANG_")
TOOLS = ("git", "cmake", "ninja", "make", "uv", "lms", "brew", "nvcc", "python3")
_SECRET_ENDINGS = "_(?:API_KEY|KEY|TOKEN|SECRET|PASSWORD)$"
KEY_PATTERN = f"^(?!.*{_SECRET_ENDINGS})(?:{'|'.join(EXACT)}|(?:{'|'.join(PREFIXES)})[A-Z0-9_]+)$"
_FOR_SECRETS = re.compile(_SECRET_ENDINGS)

_HUB_TOKENS = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "LLAMA_ARG_HF_TOKEN"}


def is_allowed(key: str) -> bool:
    """Whether the agent takes this variable."""
    return re.match(KEY_PATTERN, key) is not None


def refusal(key: str) -> str:
    """Why `key` is refused, and what may be set instead."""
    if key in _HUB_TOKENS:
        return "a token does not belong in this file; say where it lies: hub_token: env:HF_TOKEN or file:/path"
    if _FOR_SECRETS.search(key):
        return "a secret does not belong in this file; give a deploy its API key: --api-key env:NAME or file:/path"
    allowed = ", ".join((*EXACT, *(f"{prefix}*" for prefix in PREFIXES)))
    if is_allowed(key.upper()):
        return f"this variable may not be set; did you mean '{key.upper()}'?"
    return f"this variable may not be set; allowed: {allowed}"
