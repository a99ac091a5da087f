"""The README of an exported model: what it is, how it was made, how to use it."""

from collections.abc import Mapping
from typing import Any

_USE = """\
```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
start = tokenizer.bos_token_id  # every document begins with it
ids = [start, *tokenizer("Once upon a time").input_ids]
written = model.generate(inputs=torch.tensor([ids]), max_new_tokens=20)
print(tokenizer.decode(written[0], skip_special_tokens=True))
```
"""


def model_card(
    name: str,
    theirs: Mapping[str, Any],
    n_parameters: int,
    has_tokenizer: bool,
    about: Mapping[str, Any],
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        name: of the folder
        theirs: config.json
        about: lines of "How it was made", by label
    """
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        f"- {theirs['model_type']}",
        "- my-simple-llm",
        "---",
        "",
        f"# {name}",
        "",
        f"A language model of {n_parameters:,} parameters in the architecture of "
        f"{theirs['architectures'][0]}, written by My Simple LLM.",
        "",
    ]
    if about:
        lines += ["## How it was made", "", "| | |", "| --- | --- |"]
        lines += [f"| {label} | {value} |" for label, value in about.items()]
        lines.append("")
    lines += ["## Use", ""]
    if has_tokenizer:
        lines += [_USE.replace("DIR", name).rstrip()]
    else:
        lines += [
            "Weights alone: no `tokenizer.json` can express this model's tokenizer. "
            "`AutoModelForCausalLM.from_pretrained` opens them; ids come from the program that "
            "trained it."
        ]
    return "\n".join([*lines, ""])
