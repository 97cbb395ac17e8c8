"""Hubs that have the same files under other addresses."""

from urllib.parse import urlsplit

MODELSCOPE_HOSTS = ("modelscope.cn", "www.modelscope.cn", "modelscope.ai", "www.modelscope.ai")


def is_modelscope(endpoint: str) -> bool:
    """It lists nothing in the hub's way, so it is asked for files only."""
    return (urlsplit(endpoint).hostname or "") in MODELSCOPE_HOSTS


def data_endpoint(endpoint: str) -> str:
    """What stands before /<owner>/<name>/resolve/<revision>/<path>."""
    base = endpoint.rstrip("/")
    return f"{base}/models" if is_modelscope(base) and not base.endswith("/models") else base


def data_revision(endpoint: str) -> str:
    """The revision that the files are asked for by, where that is not the hub's commit: ModelScope has commits of its
    own. Every file is held to the hub's hash, so another version of it is refused.
    """
    return "master" if is_modelscope(endpoint) else ""
