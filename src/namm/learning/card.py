from __future__ import annotations

from namm.memory import NAMM


def card(title: str, made: str, memory: NAMM) -> str:
    """The model card of a learned memory: what it was made with, and what it keeps by itself."""
    return f"""# {title}

{made}

It keeps {memory.config.kept} of the tokens unless its user names another fraction or a number of tokens.
"""
