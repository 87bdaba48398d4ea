"""Models: from the hub, a folder, a GGUF file or a wheel."""

from namm.models.load import ModelNotFoundError, load_model

__all__ = ["ModelNotFoundError", "load_model"]
