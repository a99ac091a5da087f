"""Data sets of the hub, through its real libraries against a hub on the loopback address."""

import os
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.config.errors import Refused
from llm.data import reach
from llm.data.hub import Hub
from llm.data.prepare import prepare
from llm.tokenizer.bytes import Bytes
from tests.hub_server import COMMIT
from tests.hub_server import Hub as Server

NODE = {"_target_": "llm.tokenizer.bytes.Bytes"}
#: A title, sections and paragraphs, as WikiText's rows are.
ARTICLES = [
    ["", " = Anna = \n", "", " Anna is a name . \n", " = = Origin = = \n", " Old . \n"],
    ["", " = Bob = \n", "", " 1 + 1 = 2 . \n"],
    ["", " = Cleo = \n", " No more . \n"],
]


def story(i: int) -> str:
    return f"Story {i}: once upon a time there was a number, and it was {i * i}."


def write(file, rows: list[str], column: str = "text") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({column: rows, "id": list(range(len(rows)))})
    pq.write_table(table, file, row_group_size=100, compression="none")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Small copies of the layouts of the data sets that conf/data names."""
    root = tmp_path_factory.mktemp("repositories")
    tiny = root / "roneneldan" / "TinyStories"
    for part in range(2):
        name = f"data/train-0000{part}-of-00002-2d5a1467fff1081b.parquet"
        write(tiny / name, [story(i) for i in range(part * 500, part * 500 + 500)])
    write(tiny / "data/validation-00000-of-00001-869c898b519ad725.parquet", ["A.", "B.", "C."])
    (tiny / "README.md").write_text("---\nlicense: cdla-sharing-1.0\n---\nStories.\n")
    wiki = root / "Salesforce" / "wikitext"
    rows = [row for article in ARTICLES for row in article]
    for split, listed in (("train", rows), ("validation", rows[:6]), ("test", rows[6:])):
        write(wiki / f"wikitext-103-raw-v1/{split}-00000-of-00001.parquet", listed)
        write(wiki / f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet", ["other"])
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: {name}/{split}-*\n"
            for split in ("test", "train", "validation")
        )
        for name in ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    )
    (wiki / "README.md").write_text(f"---\nconfigs:\n{configs}---\nArticles.\n")
    plain = root / "org" / "plain"
    write(plain / "data/train-00000-of-00001.parquet", [story(i) for i in range(300)], "body")
    write(root / "org" / "empty" / "data/train-00000-of-00001.parquet", ["", " "])
    (root / "org" / "script").mkdir()
    (root / "org" / "script" / "script.py").write_text("print('executed')\n")
    (root / "org" / "bare").mkdir()
    (root / "org" / "bare" / "README.md").write_text("Nothing here.\n")
    return root


@pytest.fixture(scope="module")
def _server(repositories):
    """One hub for all tests: the libraries remember where it is."""
    import datasets
    from huggingface_hub import constants

    server = Server(repositories)
    with pytest.MonkeyPatch.context() as patch:
        # What HF_ENDPOINT sets when the libraries are imported, which another test may have done.
        patch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        template = server.url + "/datasets/{repo_id}/resolve/{revision}/{path}"
        patch.setattr(datasets.config, "HUB_DATASETS_URL", template)
        yield server
    server.shutdown()


@pytest.fixture
def hub(_server, tmp_path, monkeypatch):
    """The hub in good order, and an empty cache on this side."""
    import datasets
    from huggingface_hub import constants

    home = tmp_path / "home"
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    _server.behave()
    return _server


STORIES = {"repo": "roneneldan/TinyStories", "revision": COMMIT}
WIKI = {
    "repo": "Salesforce/wikitext",
    "config": "wikitext-103-raw-v1",
    "document_start": "^ = [^=]+ = \n?$",
}


def by_split(corpus) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for document in corpus.documents():
        found.setdefault(document.split, []).append(document.text)
    return found


def refused(corpus: Hub) -> str:
    with pytest.raises(Refused) as refusal:
        list(corpus.documents())
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_whole_data_set_is_downloaded_once_and_read_without_a_network(hub):
    expected = {"train": [story(i) for i in range(1000)], "val": ["A.", "B.", "C."]}
    assert by_split(Hub(**STORIES)) == expected
    assert len(hub.downloads()) == len(set(hub.downloads()))
    hub.hang = True
    assert by_split(Hub(**STORIES)) == expected
    assert Hub(**STORIES).describe() == Hub(**STORIES).describe()


def test_samples_transfer_only_the_beginning(hub):
    corpus = Hub(**STORIES, num_samples=150)
    assert by_split(corpus) == {"train": [story(i) for i in range(150)], "val": ["A.", "B.", "C."]}
    data = [line for line in hub.downloads() if line.startswith("data/train")]
    assert data and all("train-00000" in line and "bytes=" in line for line in data)
    assert corpus.describe() != Hub(**STORIES).describe()


def test_a_pinned_revision_is_known_without_a_network_and_a_branch_after_one_look(hub):
    asked = len(hub.log)
    assert Hub(**STORIES).describe()["revision"] == COMMIT
    assert len(hub.log) == asked
    branch = {"repo": "roneneldan/TinyStories", "revision": "main"}
    assert Hub(**branch).describe() == Hub(**STORIES).describe()
    hub.hang = True
    assert Hub(**branch).describe()["revision"] == COMMIT


def test_wikitext_is_articles_in_its_own_splits(hub, repositories):
    articles = ["".join(article) for article in ARTICLES]
    # an empty row before a title ends the article before it, and holds nothing
    expected = {"train": articles, "val": articles[:1], "test": articles[1:]}
    assert by_split(Hub(**WIKI)) == expected
    assert by_split(Hub(**WIKI, num_samples=1)) == {
        split: texts[:1] for split, texts in expected.items()
    }
    local = Hub(**WIKI, path=str(repositories / "Salesforce" / "wikitext"))
    assert by_split(local) == expected


def test_without_a_split_of_its_own_by_hash(hub):
    corpus = Hub(repo="org/plain", text_column="body", val_fraction=0.2)
    found = by_split(corpus)
    assert sorted(found["train"] + found["val"]) == sorted(story(i) for i in range(300))
    assert 30 < len(found["val"]) < 90
    fewer = by_split(Hub(repo="org/plain", text_column="body", val_fraction=0.2, num_samples=100))
    assert set(fewer["val"]) <= set(found["val"])


def test_what_few_rows_hold_out_is_found_out_once(hub, tmp_path):
    options = {"repo": "org/plain", "text_column": "body", "val_fraction": 0.02}
    made = {}
    for n in (3, 100, 200):
        corpus = Hub(**options, num_samples=n)
        assert "moved" not in corpus.describe()  # nothing is read for a description
        made[n] = prepare(corpus, Bytes(), NODE, "plain", tmp_path / "data")
        n_bytes = {split: facts["bytes"] for split, facts in made[n].manifest["splits"].items()}
        if n > 3:
            assert 0.016 < n_bytes["val"] / sum(n_bytes.values()) < 0.024
        else:
            assert "cannot be met" in made[n].manifest["account"]["notes"][0]
    assert any("moved" in one.manifest["corpus"] for one in made.values())
    hub.hang = True
    for n, one in made.items():
        again = prepare(Hub(**options, num_samples=n), Bytes(), NODE, "plain", tmp_path / "data")
        assert again.folder == one.folder


def test_a_local_copy_instead_of_the_network(hub, repositories, tmp_path):
    folder = repositories / "roneneldan" / "TinyStories"
    hub.hang = True
    local = Hub(**STORIES, path=str(folder))
    assert by_split(local) == {"train": [story(i) for i in range(1000)], "val": ["A.", "B.", "C."]}
    assert local.describe()["copy"] and local.describe()["revision"] is None
    # a folder of parquet and nothing else
    part = Hub(**WIKI, path=str(repositories / "Salesforce" / "wikitext" / WIKI["config"]))
    assert len(by_split(part)["train"]) == 3
    assert str(folder) not in str(local.describe())


def test_an_interrupted_download_goes_on_where_it_stopped(hub, monkeypatch):
    Hub(**STORIES).layout  # noqa: B018
    hub.cut_after = hub.sent + 20_000
    with monkeypatch.context() as patch:
        patch.setattr(reach, "PATIENCE", 2.0)
        assert "has not answered for 2 seconds" in (told := refused(Hub(**STORIES)))
    for remedy in ("network", "HF_ENDPOINT", "data.path="):
        assert remedy in told
    (part,) = reach.cache().rglob("*.part")
    assert 10_000 < part.stat().st_size <= 20_000
    hub.behave()
    assert len(by_split(Hub(**STORIES))["train"]) == 1000
    (resumed,) = [line for line in hub.downloads() if "train-00000" in line]
    assert 10_000 < int(resumed.split("bytes=")[1].rstrip("-")) <= 20_000


def test_a_download_that_arrives_damaged_is_not_kept(hub):
    hub.damage = True
    assert "arrived damaged" in refused(Hub(**STORIES))
    hub.behave()
    assert len(by_split(Hub(**STORIES))["train"]) == 1000


@pytest.mark.parametrize("samples", [None, 10])
def test_a_hub_that_hangs_ends_in_a_line(hub, monkeypatch, samples):
    monkeypatch.setattr(reach, "PATIENCE", 0.5)
    hub.hang = True
    begun = time.monotonic()
    assert "has not answered" in refused(Hub(**STORIES, num_samples=samples))
    assert time.monotonic() - begun < 9  # the usual patience is 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repo": "org/missing"}, r"data\.repo: there is no org/missing at http"),
        ({"repo": "org/plain", "revision": "v9"}, r"data\.revision: org/plain has no such rev"),
        ({"repo": "org/plain"}, r"org/plain has no column 'text'; it has body, id; data\.text_"),
        ({"repo": "org/plain", "text_column": "id"}, "column 'id' is no text"),
        ({"repo": "org/empty"}, "org/empty: split 'train' holds no text"),
        ({"repo": "org/bare"}, "org/bare"),
        ({"repo": "org/script"}, "org/script is a program that would have to be run"),
        ({"repo": "Salesforce/wikitext"}, "wikitext-103-raw-v1"),
        ({"repo": "Salesforce/wikitext", "config": "none"}, "wikitext-103-raw-v1"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(hub, capfd, options, said):
    with pytest.raises(Refused, match=said) as refusal:
        list(Hub(**options).documents())
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_a_gated_data_set_asks_to_log_in(hub):
    hub.gated.add("org/plain")
    assert "hf auth login" in refused(Hub(repo="org/plain", text_column="body"))


def test_nobody_is_asked_where_offline_is_set(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    told = refused(Hub(**STORIES))
    assert "HF_HUB_OFFLINE is set" in told and "data.path=" in told


def test_constructor_refusals(tmp_path):
    for options, said in (
        ({"repo": None}, "name a data set of the hub"),
        ({"repo": "plain"}, "write ORG/NAME"),
        ({"repo": "a/b", "path": str(tmp_path / "x")}, "is no folder"),
        ({"repo": "a/b", "document_start": "("}, "no regular expression"),
    ):
        with pytest.raises(Refused, match=said):
            Hub(**options)


def test_other_errors_are_not_dressed_up():
    def work():
        yield 1
        raise ZeroDivisionError

    items = reach.patiently("x", work, 9.0)
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_prepared_data_needs_no_network(hub, tmp_path):
    made = prepare(Hub(**STORIES, num_samples=50), Bytes(), NODE, "tiny", tmp_path / "data")
    hub.hang = True
    again = prepare(Hub(**STORIES, num_samples=50), Bytes(), NODE, "tiny", tmp_path / "data")
    assert again.folder == made.folder
    assert made.manifest["corpus"]["revision"] == COMMIT
    assert made.manifest["splits"]["val"]["documents"] == 3


def test_a_stream_that_breaks_off_is_gone_on_with(hub, tmp_path, monkeypatch):
    corpus = {**STORIES, "num_samples": 900}
    whole = prepare(Hub(**corpus), Bytes(), NODE, "tiny", tmp_path / "whole")
    monkeypatch.setattr("llm.data.prepare.BATCH", 1000)
    hub.behave()
    hub.cut_after = 45_000  # in the second file
    with monkeypatch.context() as patch:
        patch.setattr(reach, "PATIENCE", 1.5)
        with pytest.raises(Refused, match="has not answered"):
            prepare(Hub(**corpus), Bytes(), NODE, "tiny", tmp_path / "broken")
    assert list((tmp_path / "broken").glob(".*.journal"))
    hub.behave()
    again = prepare(Hub(**corpus), Bytes(), NODE, "tiny", tmp_path / "broken")
    assert again.manifest == whole.manifest
    assert (again.tokens("train") == whole.tokens("train")).all()


@pytest.mark.slow
def test_the_command_ends_in_one_line_where_nobody_answers(hub, tmp_path):
    """The bound as it is, in a process of its own: nothing keeps it from ending."""
    hub.hang = True
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "elsewhere")}
    line = [sys.executable, "-m", "llm.prepare", "data=tinystories", f"outputs={tmp_path}"]
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not hub.log and process.poll() is None:
            time.sleep(0.05)
        asked = time.monotonic()  # what comes before is the time of imports
        said = process.communicate(timeout=60)[1]
    assert time.monotonic() - asked < 25
    assert process.returncode == 2
    assert len(said.splitlines()) == 1 and "HF_ENDPOINT" in said
