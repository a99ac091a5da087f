"""`python -m llm.sizes`: what every model costs with every kind of feed-forward part.

Nothing is allocated: the models are built on PyTorch's meta device.
"""

import sys
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llm.build import account_for, build_model
from llm.config.choices import Choices, conf_folder
from llm.config.command import exit_code

#: GPT-2's vocabulary; subtract vocabulary × d_model for a figure without it.
VOCAB_SIZE = 50_257


def rows() -> list[tuple[str, str, dict[str, Any], Any]]:
    """(model option, moe option, config, account) of every pair."""
    groups = Choices().groups
    found = []
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        for model in groups["model"]:
            for moe in groups["moe"]:
                config = compose("train", [f"model={model}", f"moe={moe}"])
                plain: Any = OmegaConf.to_container(config, resolve=True)
                built = build_model(plain, VOCAB_SIZE, device="meta")
                found.append((model, moe, plain, account_for(plain, built)))
    return sorted(found, key=lambda row: (row[3].params_active, row[3].params_total))


def main() -> None:
    """Print the table."""
    print(f"GPT-2's vocabulary ({VOCAB_SIZE:,}), head tied to the embedding where style=gpt2.")
    head = ("model", "moe", "width", "layers", "heads", "tokens", "total", "active", "MFLOP/token")
    print("{:9} {:13} {:>6} {:>6} {:>6} {:>7} {:>9} {:>9} {:>12}".format(*head))
    for model, moe, config, cost in rows():
        node = config["model"]
        print(
            f"{model:9} {moe:13} {node['d_model']:6} {node['n_layers']:6} {node['n_heads']:6} "
            f"{node['max_seq_len']:7} {cost.params_total / 1e6:8.1f}M "
            f"{cost.params_active / 1e6:8.1f}M {cost.flops_per_token / 1e6:12.1f}"
        )


if __name__ == "__main__":
    sys.exit(exit_code("llm.sizes", main))
