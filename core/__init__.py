"""The core of distillzoo: interfaces, registry, configuration, trainer and command line.

Importing this package is cheap; modules that need torch are imported by name where they are used.
"""

from typing import Final

import pluggy

API_VERSION: Final = "1.0"
"""Version of the surface that plugins build on: the hooks, the base classes and what they receive."""

hookimpl: Final = pluggy.HookimplMarker("distillzoo")
"""Decorator that marks a plugin's hook implementation."""
