"""Text data sets of the Hugging Face hub."""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from llm.config.errors import Refused
from llm.config.types import UNRECORDED, Between, PositiveInt
from llm.data import reach
from llm.data.account import Account
from llm.data.checksums import sampled
from llm.data.corpus import Dialogue, Document
from llm.data.rows import column_of
from llm.data.splits import HeldOut
from llm.data.texts import Stretch, whole, without_empty
from llm.tokenizer.base import well_formed

#: What a split of the hub is called here.
OWN = {"validation": "val", "test": "test"}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS = 256


class Layout(NamedTuple):
    """Which files of a repository hold which split, at one commit."""

    commit: str | None  # None for a local copy
    kind: str  # how `datasets` reads them: "parquet", "json", "csv", "text"
    files: dict[str, list[str]]  # split to paths, in the repository or on this machine


class Hub:
    """A repository of the hub, or a local copy of one: each row a document.

    Its own validation and test splits are used where it has them; where it has no validation
    split, training documents are held out by their hash.

    Whole data sets are downloaded into a cache, where an interrupted download goes on, and from
    where they are used without a network. With `num_samples` only the beginning is transferred,
    and kept as tokens alone. A revision that is no commit (a branch, a tag) is looked up once; what
    it was then is kept in the cache.

    Args:
        repo: ORG/NAME
        config: a part of the repository that has a name of its own ("wikitext-103-raw-v1")
        revision: commit, branch or tag
        text_column: the column that holds the text
        num_samples: the first so many documents of each split, null for all
        document_start: pattern of a row that begins a document, for data sets of lines; null
            where each row is a document
        val_fraction: share held out where the repository has no validation split
        path: a folder that is a copy of the repository, used instead of the network
    """

    pieces: list[str] | None = None
    dialogue: Dialogue | None = None

    def __init__(
        self,
        *,
        repo: str | None,
        config: str | None = None,
        revision: str = "main",
        text_column: str = "text",
        num_samples: PositiveInt | None = None,
        document_start: str | None = None,
        val_fraction: Annotated[float, Between(0, 1, True, True)] = 0.01,
        path: Annotated[str | None, UNRECORDED] = None,
    ):
        if repo is None and path is None:
            raise Refused("name a data set of the hub: data.repo=ORG/NAME", "repo")
        if path is not None and not Path(path).expanduser().is_dir():
            raise Refused(f"{path} is no folder; name a copy of the repository", "path")
        if repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise Refused(f"{repo!r} is no name of a data set; write ORG/NAME", "repo")
        try:
            self.starts = re.compile(document_start) if document_start else None
        except re.error as error:
            raise Refused(f"is no regular expression ({error})", "document_start") from None
        self.repo, self.config, self.revision = repo, config, revision
        self.text_column, self.num_samples = text_column, num_samples
        self.document_start, self.val_fraction = document_start, val_fraction
        self.path = Path(path).expanduser().resolve() if path is not None else None
        self.name = str(path) if path is not None else str(repo)
        self._by_hash = HeldOut(lambda: self._texts(self._train), val_fraction)
        self._empty: dict[str, Counter[str]] = {}
        self.account = Account()

    def describe(self) -> dict[str, object]:
        """A commit names every byte; so a data set that is prepared needs no network."""
        facts = {
            "corpus": "hub",
            "repo": self.repo,
            "config": self.config,
            **self._origin(),
            "text_column": self.text_column,
            "num_samples": self.num_samples,
            "document_start": self.document_start,
            "val_fraction": self.val_fraction,
        }
        return self._by_hash.described(facts, unread=True)

    @property
    def held_out(self) -> HeldOut | None:
        """The split by hash, None where the repository has a validation split."""
        return None if "validation" in self.layout.files else self._by_hash

    def _origin(self) -> dict[str, object]:
        if self.path is None:
            pinned = _COMMIT.fullmatch(self.revision)
            return {"revision": self.revision if pinned else self.layout.commit}
        # Sizes and samples: a parquet file cannot change and keep its table of contents.
        digest = hashlib.sha256()
        for split, files in self.layout.files.items():
            for file in files:
                digest.update(f"{split}\0{Path(file).stat().st_size}\0".encode())
                digest.update(sampled(Path(file)).encode())
        return {"revision": None, "copy": digest.hexdigest()}

    def documents(self) -> Iterator[Document]:
        if self.held_out is not None:
            yield from self.held_out.documents()
        else:
            for text, more in self._texts(self._train):
                yield Document(text, "train", more)
        for split, ours in OWN.items():
            if split in self.layout.files:
                for text, more in self._texts(split):
                    yield Document(text, ours, more)
        empty = sum(self._empty.values(), Counter())
        self.account = Account(left_out=dict(empty))

    # What there is

    @cached_property
    def layout(self) -> Layout:
        """Asked of the hub once for each revision, then kept in its cache."""
        reach.begin()
        if self.path is not None:
            return self._first(self._local_layout)
        record = self._record()
        try:
            return Layout(**json.loads(record.read_text()))
        except (OSError, ValueError, TypeError):
            layout = self._first(self._remote_layout)
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary = record.with_name(f"{record.name}.{os.getpid()}")
        temporary.write_text(json.dumps(layout._asdict(), indent=1))
        os.replace(temporary, record)
        return layout

    def _first(self, make: Any) -> Layout:
        return next(reach.patiently(self.name, lambda: iter([make()]), self._patience))

    @property
    def _patience(self) -> float:
        return reach.PATIENCE if self.path is None else math.inf

    def _record(self) -> Path:
        name = re.sub(r"[^\w.-]", "-", f"{self.config or 'default'}@{self.revision}")
        return reach.cache() / str(self.repo).replace("/", "--") / f"{name}.json"

    def _remote_layout(self) -> Layout:
        import datasets
        from huggingface_hub import HfApi

        commit = self.revision
        if not _COMMIT.fullmatch(commit):
            api = HfApi(endpoint=reach.endpoint())
            commit = str(api.dataset_info(str(self.repo), revision=commit, timeout=10).sha)
        builder = datasets.load_dataset_builder(str(self.repo), self.config, revision=commit)
        files = {
            str(split): [file.split(f"@{commit}/", 1)[1] for file in listed]
            for split, listed in (builder.config.data_files or {}).items()
        }
        return Layout(commit, builder.name, files)

    def _local_layout(self) -> Layout:
        import datasets

        assert self.path is not None
        part: dict[str, str] = {}
        if self.config is not None and (self.path / self.config).is_dir():
            part = {"data_dir": self.config}
        elif self.config is not None and self.config in _read(self.path / "README.md"):
            part = {"name": self.config}
        builder = datasets.load_dataset_builder(str(self.path), **part)
        files = {
            str(split): [str(Path(file)) for file in listed]
            for split, listed in (builder.config.data_files or {}).items()
        }
        return Layout(None, builder.name, files)

    @cached_property
    def _train(self) -> str:
        splits = [split for split in self.layout.files if split not in OWN]
        if "train" in splits:
            return "train"
        if len(splits) == 1:
            return splits[0]
        there = ", ".join(self.layout.files) or "nothing"
        raise Refused(f"{self.name} has no split to train on; it has {there}", "data")

    # What is in it

    def _texts(self, split: str) -> Iterator[Stretch]:
        count, inside = 0, False
        texts = (stretch for rows in self._joined(split) for stretch in whole(rows))
        self._empty[split] = Counter()  # of the last time that it is read
        for stretch in without_empty(texts, self._empty[split]):
            if not inside and count == self.num_samples:
                return
            count += not inside
            inside = stretch.more
            yield stretch
        if not count:
            raise Refused(f"{self.name}: split {split!r} holds no text", "data")

    def _joined(self, split: str) -> Iterator[list[str]]:
        """The rows of each document: one, or all from one that begins a document on."""
        batches = reach.patiently(self.name, partial(self._rows, split), self._patience)
        rows = (row for batch in batches for row in batch)
        if self.starts is None:
            yield from ([row] for row in rows)
            return
        document: list[str] = []
        for row in rows:
            if document and self.starts.search(row):
                yield document
                document = []
            document.append(row)
        yield document

    def _rows(self, split: str) -> Iterator[list[str]]:
        """Rows in batches; in a thread of `reach`."""
        import datasets

        for file in self.layout.files[split]:
            place = file if self.path is not None else self._place(file)
            rows: Any = datasets.load_dataset(
                self.layout.kind, data_files=[place], split="train", streaming=True
            )
            columns = rows.column_names or list(next(iter(rows), {}))
            outer = (
                self.text_column if self.text_column in columns else self.text_column.split(".")[0]
            )
            if outer not in columns:
                there = f"it has {', '.join(columns)}" if columns else "it is empty"
                problem = f"{self.name} has no column {self.text_column!r}; {there}"
                raise Refused(f"{problem}; data.text_column=NAME", "data")
            for batch in rows.select_columns([outer]).iter(_ROWS):
                try:
                    texts = [column_of({outer: value}, self.text_column) for value in batch[outer]]
                except (KeyError, TypeError):
                    texts = [0]
                if any(not isinstance(text, str | None) for text in texts):
                    raise Refused(f"{self.name}: column {self.text_column!r} is no text", "data")
                yield [well_formed(text or "") for text in texts]

    def _place(self, file: str) -> str:
        """Where to read a file of the repository: from a cache, else by what is asked for."""
        from huggingface_hub import try_to_load_from_cache

        repo, commit = str(self.repo), str(self.layout.commit)
        cached = try_to_load_from_cache(repo, file, repo_type="dataset", revision=commit)
        if isinstance(cached, str):
            return cached
        if self.num_samples is not None and not reach.is_kept(repo, file, commit):
            return f"hf://datasets/{repo}@{commit}/{file}"
        return str(reach.download(repo, file, commit))


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
