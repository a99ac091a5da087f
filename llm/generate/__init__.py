"""Text from a model.

The defaults stand here, where they cost no import of torch: chat's `--help` shows them.
"""

#: What `python -m llm.chat` samples with unless told otherwise.
MAX_TOKENS, TEMPERATURE, TOP_K = 100, 0.8, 50
