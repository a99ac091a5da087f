"""Tiny Town: a corpus of stories and questions whose every probability is known."""

from llm.data.tinytown.source import Tinytown

__all__ = ["Tinytown"]
