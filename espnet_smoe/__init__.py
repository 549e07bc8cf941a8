"""S-MoE speech recognition and translation for ESPnet (arXiv 2508.10009)."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Speech2Text", "__version__"]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from espnet_smoe.inference import Speech2Text


def __getattr__(name: str) -> object:
    # ESPnet takes seconds to import; `import espnet_smoe` must not pay for it
    if name == "Speech2Text":
        from espnet_smoe.inference import Speech2Text

        return Speech2Text
    raise AttributeError(f"module 'espnet_smoe' has no attribute {name!r}")
