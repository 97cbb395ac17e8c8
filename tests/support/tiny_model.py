"""The demo's tiny model maker, for tests.

It is loaded from its file where the controller is not installed: the agent's tests run in the agent's own environment,
and the maker needs nothing but the standard library.
"""

import importlib.util
import sys
from pathlib import Path

_FILE = Path(__file__).parents[2] / "controller" / "fleet_controller" / "demo" / "tiny_model.py"

try:
    from fleet_controller.demo.tiny_model import ANSWER, TinyModel, make_tiny_model
except ImportError:
    _spec = importlib.util.spec_from_file_location("fleet_demo_tiny_model", _FILE)
    assert _spec is not None and _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[_spec.name] = _module
    _spec.loader.exec_module(_module)
    globals().update({name: getattr(_module, name) for name in ("ANSWER", "TinyModel", "make_tiny_model")})

__all__ = ["ANSWER", "TinyModel", "make_tiny_model"]
