"""What names of files and repositories tell: a quantization, and a name that a service may have."""

import re
from pathlib import PurePosixPath

# In file names: Qwen3.5-27B-UD-Q4_K_XL.gguf, gpt-oss-20b-MXFP4_MOE.gguf, tiny-F16-00001-of-00002.gguf.
_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:i1-)?(?:IQ\d\w*|Q\d\w*|TQ\d\w*|BF16|F16|F32|MXFP4\w*))(?:-\d{5}-of-\d{5})?$", re.IGNORECASE
)


def quantization_of_file(path: str) -> str:
    """As "UD-Q4_K_XL" of "Qwen3.5-27B-UD-Q4_K_XL.gguf"; the whole stem where no known name is in it."""
    return stated_quantization(path) or PurePosixPath(path).stem


def stated_quantization(path: str) -> str:
    """The known quantization in a file's name, "" where there is none."""
    found = _QUANTIZATION.search(PurePosixPath(path).stem)
    return found[1] if found else ""


def service_name(text: str) -> str:
    """A name that a service may have: lower case letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64] or "model"
