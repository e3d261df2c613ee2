"""The command lines of tools/, loaded as a user's Python would load them."""

import importlib.util
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parents[1] / "tools"


def load_tool(name: str, folder: Path = TOOLS) -> ModuleType:
    """tools/NAME.py (or that in another folder) as a module; its `main` takes the command line."""
    spec = importlib.util.spec_from_file_location(f"{name}_tool", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
