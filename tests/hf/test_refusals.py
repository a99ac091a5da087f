"""Folders that must not be opened: one clear line each, and nothing in them is executed."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm import hf
from llm.config.errors import Refused
from llm.hf.families import FAMILIES
from tests.hf.foreign import write_gpt2
from tests.typist import Typist


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_gpt2(tmp_path_factory.mktemp("gpt2") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "folder"))


def refused(folder) -> str:
    with pytest.raises(Refused) as refusal:
        hf.load(folder)
    line = str(refusal.value)
    assert "\n" not in line
    return line.replace(str(folder), "DIR")


def edit_config(folder, **changes):
    file = folder / "config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v != "MISSING"}))


def edit_weights(folder, edit):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


class Trap:
    """Pickled, it writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_named_and_not_opened(folder, tmp_path):
    trap = pickle.dumps(Trap(tmp_path / "executed"))
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    (folder / "model.safetensors").unlink()
    assert refused(folder) == "DIR has no model.safetensors"
    (folder / "pytorch_model.bin").write_bytes(trap)
    line = refused(folder)
    assert line.startswith("DIR/pytorch_model.bin is a pickle, which can execute anything, and")
    assert "save_pretrained" in line
    for content in (trap, b"PK\x03\x04" + trap):  # by its content, whatever its name
        (folder / "model.safetensors").write_bytes(content)
        assert refused(folder).startswith("DIR/model.safetensors is a pickle")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    assert "DIR/config.json: auto_map: is {" in refused(folder)
    assert not (tmp_path / "executed").exists()
    pickle.loads(trap)
    assert (tmp_path / "executed").exists()  # it would have


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda t: t.pop("h.1.mlp.c_fc.bias"),
            "DIR: the tensor transformer.h.1.mlp.c_fc.bias is missing",
        ),
        (
            lambda t: t.update({"h.2.ln_1.weight": torch.ones(16)}),
            "DIR: the tensor transformer.h.2.ln_1.weight has no place in this architecture",
        ),
        (
            lambda t: t.update({"ln_f.bias": torch.ones(17)}),
            "DIR: transformer.ln_f.bias has the shape (17,), and (16,) is needed",
        ),
        (
            lambda t: t["wte.weight"].__setitem__((3, 4), torch.nan),
            "DIR/model.safetensors: wte.weight is damaged: it holds numbers that are not finite",
        ),
        (
            lambda t: t.update({"wte.weight": torch.ones(61, 16, dtype=torch.int8)}),
            "DIR/model.safetensors: wte.weight has the type I8; read are ",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(61, 16)}),
            "DIR: lm_head.weight differs from wte.weight, and config.json ties them",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folder, spoil, said):
    edit_weights(folder, spoil)
    assert refused(folder).startswith(said)


def test_a_tied_head_may_lie_there_twice(folder, whole):
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["wte.weight"].clone()}))
    assert torch.equal(hf.load(folder).embedding, hf.load(whole).embedding)


def test_a_torn_file_is_named(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for damaged in (content[:-1], content[:5], b"", b"\xff" * 64, content + b"\0"):
        file.write_bytes(damaged)
        assert refused(folder).startswith(
            "DIR/model.safetensors is damaged, or no safetensors file"
        )


def test_one_bit_of_a_folder_of_ours_is_noticed(whole, tmp_path):
    """What we write has checksums, which other tools pass over."""
    folder = hf.save(hf.load(whole), tmp_path / "ours")
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    line = refused(folder)
    assert line.startswith("DIR/model.safetensors: transformer.")
    assert line.endswith("is damaged: it does not match its checksum; copy it again")


def test_shards_are_read_and_missed(folder, whole):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[:9],
        "model-00002-of-00002.safetensors": names[9:],
    }
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = folder / "model.safetensors.index.json"
    where = {name: file for file, held in parts.items() for name in held}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    model = hf.load(folder)
    for name, tensor in hf.load(whole).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)

    index.write_text(json.dumps({"weight_map": {**where, "extra": next(iter(parts))}}))
    assert "model-00001-of-00002.safetensors lacks the tensor extra" in refused(folder)
    for file in ("../outside.safetensors", "/etc/passwd", "pytorch_model-1.bin", 3):
        index.write_text(json.dumps({"weight_map": {**where, "extra": file}}))
        assert "is no safetensors file beside it" in refused(folder)
    index.write_text(json.dumps({"weight_map": where}))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert refused(folder).startswith("DIR/model-00002-of-00002.safetensors is missing; model.saf")


def test_no_config_is_named(folder):
    (folder / "config.json").unlink()
    assert refused(folder) == "DIR/config.json is missing"
    (folder / "config.json").write_text("{")
    assert refused(folder).startswith("DIR/config.json is no JSON: ")
    (folder / "config.json").write_text("[]")
    assert refused(folder) == "DIR/config.json holds no JSON object"
    assert refused(folder.parent / "nowhere") == "DIR is no folder"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model_type": "bert"},
            "model_type: 'bert' is no architecture that is known here: gpt2, ll",
        ),
        ({"model_type": "MISSING"}, "model_type: None is no architecture"),
        ({"architectures": ["GPT2ForTokenClassification"]}, "architectures: ["),
        (
            {"scale_attn_weights": False},
            "scale_attn_weights: is False; only True can be reproduced",
        ),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: is True"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn: is True"),
        ({"add_cross_attention": True}, "add_cross_attention: is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: is {'bits': 4}"),
        (
            {"activation_function": "quick_gelu"},
            "activation_function: is 'quick_gelu'; known here are",
        ),
        ({"new_feature": 3}, "new_feature: 3 is not known here, nor whether it changes the model"),
        ({"n_embd": "MISSING"}, "n_embd: is missing"),
        ({"n_embd": "wide"}, "n_embd: is not a whole number, at least 1: 'wide'"),
        ({"n_layer": -1}, "n_layer: is -1, and must be at least 1"),
        ({"n_head": 5}, "model.n_heads: is 5, which does not divide d_model=16"),
        ({"vocab_size": 0}, "vocab_size: is no whole number"),
        ({"n_positions": 10**18}, ""),
        ({"n_layer": 10**15}, ""),
    ],
)
def test_a_config_that_is_not_ours_is_refused_by_key(folder, changes, said):
    edit_config(folder, **changes)
    assert refused(folder).startswith(f"DIR/config.json: {said}" if said else "DIR")


LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "vocab_size": 61,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_bias": True}, "mlp_bias: is False, unlike attention_bias; here they are one"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act: is 'gelu_pytorch_tanh'; known here are"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling: rope_type='longrope' is not known"),
        ({"rope_scaling": {"type": "mrope"}}, "rope_scaling: rope_type='mrope' is not known"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor is missing"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": "x"}},
            "rope_scaling: is not a number",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            "rope_scaling: truncate: is false",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "mrope_section": [1]}},
            "rope_parameters: mrope_section: [1] is not known here",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: is 0.5"),
        ({"sliding_window": 9}, "sliding_window: is 9; only None can be reproduced here"),
        ({"model_type": "mistral", "layer_types": ["full_attention"]}, "layer_types: is ["),
        ({"model_type": "olmoe", "clip_qkv": 8.0}, "clip_qkv: is 8.0"),
        (
            {"model_type": "mixtral", "num_key_value_heads": 2, "num_experts_per_tok": 9},
            "moe.top_k: is 9, more than n_exp",
        ),
        (
            {"model_type": "qwen3_moe", "mlp_only_layers": [1]},
            "mlp_only_layers: [1] are not the first",
        ),
        (
            {"model_type": "qwen3_moe", "use_sliding_window": True, "max_window_layers": 1},
            "max_window_layers: is 1 with use_sliding_window",
        ),
    ],
)
def test_features_of_other_families_are_refused_by_key(folder, changes, said):
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    assert refused(folder).startswith(f"DIR/config.json: {said}")


def test_all_families_are_those_of_the_issue():
    assert list(FAMILIES) == ["gpt2", "llama", "mistral", "mixtral", "olmoe", "qwen3_moe"]


def test_at_the_command_line_it_is_one_line(folder, workplace, monkeypatch, capsys):
    edit_config(folder, model_type="bert")
    line = Typist(monkeypatch, capsys).refused(f"model.init_from={folder}")
    assert line.startswith(f"model.init_from={folder}: {folder}/config.json: model_type: 'bert'")
