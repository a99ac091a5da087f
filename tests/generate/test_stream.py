"""One text that goes on beyond the model's context."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llm.build import build_model
from llm.config.choices import conf_folder
from llm.generate.engine import Engine
from llm.generate.stream import newer_half, stream


def build(*more: str):
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "max_seq_len": 12}
    sizes["init_std"] = 0.5  # far from uniform, so that a wrong key or value shows
    typed = ["model=tiny", "moe=switch", *(f"model.{key}={value}" for key, value in sizes.items())]
    typed += more
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", typed), resolve=True)
    return build_model(config, vocab_size=20).eval()


@pytest.fixture(scope="module")
def model():
    return build()


def test_a_stream_goes_on_beyond_the_context_and_repeats_with_its_seed(model):
    def run():
        return list(stream(Engine(model, 1), [1, 2], 40, 1.0, 5, seed=3))

    first = run()
    assert len(first) == 40
    assert first == run()
    assert all(0 <= token < 20 and 0 < probability <= 1 for token, probability in first)


def test_a_full_context_is_shortened_as_asked(model):
    asked = []

    def shorten(context, max_len):
        asked.append(len(context))
        return newer_half(context, max_len)

    list(stream(Engine(model, 1), [1] * 12, 20, 1.0, 5, 0, shorten))
    assert asked == [13, 13, 13]  # whenever twelve are full
