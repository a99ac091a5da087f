"""Drawing ids, and a reader that computes only what is new."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from llm.build import build_model
from llm.config.choices import conf_folder
from llm.generate.reader import Reader
from llm.generate.sampling import newer_half, pick, stream
from llm.model.transformer import Transformer


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


@pytest.fixture(scope="module", params=[[], ["model.window=[3,null]", "model.n_sinks=1"]])
def any_model(request):
    """With windows, too, whose cache forgets what has rolled away."""
    return build(*request.param)


def uncached(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits_BTV[:, -1]


def test_a_reader_agrees_with_reading_everything_again(any_model):
    reader = Reader(any_model)
    for ids in (
        [1, 2, 3],
        [1, 2, 3, 4],  # one more
        [1, 2, 3, 4, 5, 6, 7],  # several more
        [1, 2, 9, 9],  # the end is different
        [1, 2, 9, 9],  # the same once more
        [1, 2],  # only the beginning
        [7],  # something else
        list(range(12)),  # a full context
    ):
        torch.testing.assert_close(reader.read(ids), uncached(any_model, ids), rtol=1e-5, atol=1e-5)


def test_a_reader_computes_only_what_is_new(model, monkeypatch):
    lengths = []
    forward = nn.Module.__call__

    def counted(self, tokens, *args, **kwargs):
        if self is model:
            lengths.append(tokens.shape[1])
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(Transformer, "__call__", counted)
    reader = Reader(model)
    for ids in ([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1, 2, 8], [1, 2, 8]):
        reader.read(ids)
    assert lengths == [3, 1, 2, 1, 1]


@pytest.mark.parametrize("read", [[1, 2, 3], [1, 2, 3, 4, 7, 7, 7]])
def test_a_reader_survives_an_interruption(any_model, monkeypatch, read):
    model = any_model
    reader = Reader(model)
    reader.read(read)
    block = model.blocks[1]
    with monkeypatch.context() as patch:
        patch.setattr(block, "forward", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reader.read([1, 2, 5, 6])
    ids = [1, 2, 3, 4]
    torch.testing.assert_close(reader.read(ids), uncached(model, ids), rtol=1e-5, atol=1e-5)


def test_a_stream_goes_on_beyond_the_context_and_repeats_with_its_seed(model):
    def run():
        return list(stream(model, [1, 2], 40, 1.0, 5, torch.Generator().manual_seed(3)))

    first = run()
    assert len(first) == 40
    assert first == run()
    assert all(0 <= token < 20 and 0 < probability <= 1 for token, probability in first)


def test_a_stream_is_the_same_with_a_reader_that_knows_the_beginning(model):
    def run(reader):
        generator = torch.Generator().manual_seed(3)
        return [t for t, _ in stream(model, [1, 2, 3], 8, 1.0, 5, generator, reader=reader)]

    reader = Reader(model)
    assert run(None) == run(reader) == run(reader)


def test_a_full_context_is_shortened_as_asked(model):
    asked = []

    def shorten(context, max_len):
        asked.append(len(context))
        return newer_half(context, max_len)

    list(stream(model, [1] * 12, 20, 1.0, 5, torch.Generator().manual_seed(0), shorten=shorten))
    assert asked == [13, 13, 13]  # whenever twelve are full


def test_pick_tells_the_probability_at_temperature_one_over_all_ids():
    logits_BV = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    ids_B, probabilities_B = pick(logits_BV, 0.1, 5, generator)
    assert ids_B[0] in logits_BV.topk(5).indices
    torch.testing.assert_close(probabilities_B[0], logits_BV.softmax(-1)[0, ids_B[0]])
