"""Public models as `transformers` makes them, small and drawn at random, and ours beside them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.hf.folder import read_json
from llm.hf.mapping import family_of
from llm.hf.weights import Layout

_SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_GPT2 = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    """One public architecture with some of its settings."""

    name: str
    model_type: str
    settings: dict[str, Any]
    seed: int = 0

    def make(self) -> Any:
        """The model of `transformers`, every parameter drawn."""
        from transformers import AutoConfig, AutoModelForCausalLM

        base = _GPT2 if self.model_type == "gpt2" else _SMALL
        config = AutoConfig.for_model(self.model_type, **{**base, **self.settings})
        torch.manual_seed(self.seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        return draw(model, self.seed)


@torch.no_grad()
def draw(model: torch.nn.Module, seed: int) -> Any:
    """Draw every parameter so that each matters: gains and biases too, routers far apart."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            is_gain = name.endswith("weight")
            parameter.copy_(is_gain + 0.4 * noise)
        elif "gate.weight" in name:  # a router
            parameter.copy_(0.7 * noise)
        else:
            parameter.copy_(noise * (1.3 / parameter.shape[-1] ** 0.5))
    return model


def rows(vocab_size: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def gradients_on_disk(theirs: Any, ours: Any, folder: Path) -> tuple[dict, dict]:
    """The gradients of both by the names on disk, theirs through their own way to save."""
    for model in (theirs, ours):
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(folder)
    family = family_of(read_json(folder / "config.json"))
    return load_file(folder / "model.safetensors"), dict(Layout(family.names, ours).to_disk())


def write_gpt2(folder: Path, vocab_size: int = 61) -> Path:
    """GPT-2 as it lies on the hub: bare names, causal masks among the weights, an old config."""
    folder.mkdir()
    width, inner, generator = 16, 64, torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (vocab_size, width), "wpe.weight": (32, width)}
    for i in range(2):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{norm}.{part}": (width,) for part in ("weight", "bias")}
        for name, d_in, d_out in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, inner),
            ("mlp.c_proj", inner, width),
        ):
            shapes |= {f"h.{i}.{name}.weight": (d_in, d_out), f"h.{i}.{name}.bias": (d_out,)}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    tensors = {n: torch.randn(s, generator=generator) * 0.2 for n, s in shapes.items()}
    for i in range(2):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    save_file(tensors, folder / "model.safetensors")
    config = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 32,
        "n_embd": width,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 32,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": vocab_size,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
