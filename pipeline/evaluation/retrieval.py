"""Retrieval: which documents answer a query? nDCG@10 and recall@100, against BM25.

Relevance is yes or no. Documents are ranked by the cosine of pooled vectors, less the mean of all
documents. BM25 is that of bm25s (k1 1.5, b 0.75) over stems of English, characters and their pairs
of Chinese. Reads directories in the format of BEIR, SciFact, Cranfield and CMRC.

Q queries, N documents.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TextConfig
from pipeline.errors import SourceError
from pipeline.evaluation.documents import Document, flat_tokens, thinned, tokenised
from pipeline.evaluation.read_text import (
    columns_of,
    find_file,
    numbers_of,
    read_rows,
    read_text,
)
from pipeline.evaluation.scores import Ratio
from pipeline.evaluation.systems import System, Vectors, centered_unit, white_note, with_white
from pipeline.evaluation.task import Outcome, lines_of, table

NDCG_DEPTH, RECALL_DEPTH = 10, 100
# A part of a collection keeps so many documents for each query that it keeps.
DOCUMENTS_PER_QUERY = 10
# On SciFact and Cranfield no worse than BEIR's 0.9 and 0.4: a baseline is given its best.
_K1, _B = 1.5, 0.75
_CHUNK_QUERIES = 64
_STRINGS = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")


@dataclass(frozen=True)
class Collection:
    """Texts of documents and queries by id, and the ids of each query's relevant documents."""

    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, set[str]]

    def part(self, max_queries: int | None) -> Collection:
        """So many queries, their relevant documents, and ten times as many documents in all."""
        answered = [name for name in self.queries if self.relevant.get(name)]
        if max_queries is None or len(answered) <= max_queries:
            return self
        chosen = thinned(answered, max_queries)
        kept = {name for query in chosen for name in self.relevant[query]}
        others = [name for name in self.documents if name not in kept]
        kept |= set(thinned(others, DOCUMENTS_PER_QUERY * max_queries))
        documents = {name: text for name, text in self.documents.items() if name in kept}
        return Collection(documents, {name: self.queries[name] for name in chosen}, self.relevant)


@dataclass(frozen=True)
class Retrieval:
    """Tokenised documents and queries; `relevant` holds document numbers of each query."""

    documents: list[Document]
    queries: list[Document]
    relevant: list[set[int]]
    is_chinese: bool
    kind: str = "retrieval"

    @classmethod
    def of(cls, collection: Collection, text: TextConfig, max_items: int | None) -> Retrieval:
        """Tokenise a collection, or a part of it; queries without a relevant document are left out.

        Raises:
            SourceError: no query has a relevant document.
        """
        collection = collection.part(max_items)
        number = {name: place for place, name in enumerate(collection.documents)}
        queries, relevant = [], []
        for name, words in collection.queries.items():
            found = {number[doc] for doc in collection.relevant.get(name, ()) if doc in number}
            if found:
                queries.append(words)
                relevant.append(found)
        if not queries:
            raise SourceError("retrieval: no query has a relevant document in the corpus")
        documents = tokenised(list(collection.documents.values()), text)
        is_chinese = text.tokenizer == "chinese"
        return cls(documents, tokenised(queries, text), relevant, is_chinese)

    def measure(self, systems: Sequence[System]) -> Outcome:
        """NDCG@10 and recall@100 over the queries."""
        num_documents = len(self.documents)
        everything = [*self.documents, *self.queries]
        lines, ranked, _ = lines_of(
            systems,
            lambda system: with_white(system.documents(everything, num_documents), num_documents),
            lambda line: self._ranking(line, num_documents),
        )
        lines.insert(0, Vectors("BM25", "baseline", None))
        ranked.insert(0, self._bm25())
        ndcg = [Ratio.mean(self._ndcg(order)) for order in ranked]
        recall = [Ratio.mean(self._recall(order)) for order in ranked]
        tables = [
            table(f"nDCG@{NDCG_DEPTH}", lines, ndcg),
            table(f"recall@{RECALL_DEPTH}", lines, recall),
        ]
        said = f"cosines of pooled vectors less their mean{white_note(lines)}"
        notes = [f"{num_documents:,} documents; {said}."]
        return Outcome(tables, len(self.queries), notes)

    def _ranking(self, line: Vectors, num_documents: int) -> NDArray[np.int64]:
        unit = centered_unit(line.matrix, num_documents)
        documents, queries = unit[:num_documents], unit[num_documents:]
        ranked = []
        for first in range(0, queries.shape[0], _CHUNK_QUERIES):
            scores_QN = queries[first : first + _CHUNK_QUERIES] @ documents.T
            dense_QN = scores_QN if isinstance(scores_QN, np.ndarray) else scores_QN.toarray()
            ranked += [_best(scores_N) for scores_N in dense_QN]
        return np.stack(ranked)

    def _bm25(self) -> NDArray[np.int64]:
        from bm25s import BM25

        # It logs each step of its own, whatever the program's level is.
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        index = BM25(k1=_K1, b=_B)
        index.index([self._terms(document) for document in self.documents], show_progress=False)
        return np.stack([_best(index.get_scores(self._terms(query))) for query in self.queries])

    def _terms(self, document: Document) -> list[str]:
        tokens = [token.lower() for token in flat_tokens(document)]
        if self.is_chinese:
            text = "".join(tokens)
            return [*text, *(text[place : place + 2] for place in range(len(text) - 1))]
        from Stemmer import Stemmer

        stems: list[str] = Stemmer("english").stemWords(tokens)
        return stems

    def _ndcg(self, order_QN: NDArray[np.int64]) -> NDArray[np.float64]:
        discounts = 1 / np.log2(np.arange(NDCG_DEPTH) + 2)
        values = []
        for order_N, relevant in zip(order_QN[:, :NDCG_DEPTH], self.relevant, strict=True):
            gains = np.array([name in relevant for name in order_N.tolist()])
            values.append(discounts[: len(gains)] @ gains / discounts[: len(relevant)].sum())
        return np.array(values)

    def _recall(self, order_QN: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array(
            [
                len(relevant & set(order_N.tolist())) / len(relevant)
                for order_N, relevant in zip(order_QN, self.relevant, strict=True)
            ]
        )


def read_beir(folder: Path) -> Collection:
    """A directory of corpus.jsonl, queries.jsonl and qrels/test.tsv.

    Raises:
        SourceError: a file is missing, has other columns, or a judgement is no number.
    """
    tables = []
    wanted = {
        "corpus.jsonl": ("_id", "text"),
        "queries.jsonl": ("_id", "text"),
        "qrels/test.tsv": ("query-id", "corpus-id", "score"),
    }
    for name, columns in wanted.items():
        path = find_file(folder, name)
        if path is None:
            raise SourceError(f"{folder}: {name} is missing; expected a directory as BEIR has it")
        rows = list(read_rows(path))
        columns_of(path, rows, columns)
        tables.append(rows)
    corpus, queries, judged = tables
    relevant: dict[str, set[str]] = {}
    scores = numbers_of(folder / "qrels/test.tsv", judged, "score")
    for row, score in zip(judged, scores, strict=True):
        if score > 0:
            relevant.setdefault(row["query-id"], set()).add(row["corpus-id"])
    return Collection(
        {row["_id"]: f"{row.get('title', '')}\n{row['text']}".strip() for row in corpus},
        {row["_id"]: row["text"] for row in queries},
        relevant,
    )


def read_scifact(corpus: Path, claims: Path) -> Collection:
    """SciFact as two tables; a claim's cited documents are relevant, as in BEIR.

    Raises:
        SourceError: a table has other columns.
    """
    documents, queries = list(read_rows(corpus)), list(read_rows(claims))
    columns_of(corpus, documents, ("doc_id", "title", "abstract"))
    columns_of(claims, queries, ("id", "claim", "cited_doc_ids"))
    texts = {}
    for row in documents:
        sentences = (single or double for single, double in _STRINGS.findall(row["abstract"]))
        texts[row["doc_id"]] = "\n".join([row["title"], *sentences])
    # A claim has a row for each document that it was judged with.
    relevant: dict[str, set[str]] = {}
    for row in queries:
        relevant.setdefault(row["id"], set()).update(re.findall(r"\d+", row["cited_doc_ids"]))
    return Collection(texts, {row["id"]: row["claim"] for row in queries}, relevant)


def read_cranfield(corpus: Path, queries: Path, judged: Path) -> Collection:
    """Cranfield's three files. Judgements number the queries by their order, not by their names.

    All pairs of the file are relevant, whatever their code: what was of no interest is not in it.

    Raises:
        SourceError: a line of judgements is something else.
    """
    documents = {
        name: "\n".join(part for part in (fields.get("T"), fields.get("W")) if part)
        for name, fields in _smart_records(corpus)
    }
    numbered = {
        str(place): fields.get("W", "")
        for place, (_, fields) in enumerate(_smart_records(queries), 1)
    }
    relevant: dict[str, set[str]] = {}
    for number, line in enumerate(read_text(judged).splitlines(), 1):
        try:
            query, document, _ = line.split()
        except ValueError:
            raise SourceError(f"{judged}: line {number}: expected query, document, code") from None
        relevant.setdefault(query, set()).add(document)
    return Collection(documents, numbered, relevant)


def read_cmrc(path: Path) -> Collection:
    """CMRC 2018 (the JSON of SQuAD): the paragraph of a question is relevant.

    Raises:
        SourceError: the file is not that JSON.
    """
    documents, queries, relevant = {}, {}, {}
    try:
        for entry in json.loads(read_text(path))["data"]:
            for paragraph in entry["paragraphs"]:
                documents[str(paragraph["id"])] = str(paragraph["context"])
                for question in paragraph["qas"]:
                    queries[str(question["id"])] = str(question["question"])
                    relevant[str(question["id"])] = {str(paragraph["id"])}
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: not the JSON of CMRC 2018: {error!r}") from None
    return Collection(documents, queries, relevant)


def _smart_records(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Records of `.I name`, and fields of lines under `.T`, `.W` and other letters."""
    records: list[tuple[str, dict[str, str]]] = []
    field = ""
    for line in read_text(path).splitlines():
        if line.startswith(".I "):
            records.append((line[3:].strip(), {}))
        elif re.fullmatch(r"\.[A-Z]\s*", line):
            field = line[1]
        elif records:
            fields = records[-1][1]
            fields[field] = f"{fields[field]} {line}" if field in fields else line
    return records


def _best(scores_N: NDArray[np.floating]) -> NDArray[np.int64]:
    """The first `RECALL_DEPTH` documents of a query, the best first; equal scores by number."""
    depth = min(RECALL_DEPTH, len(scores_N))
    last = np.partition(scores_N, len(scores_N) - depth)[len(scores_N) - depth]
    # All that score as the last one does are sorted too, so that numbers decide among them.
    candidates = np.flatnonzero(scores_N >= last)
    return candidates[np.argsort(-scores_N[candidates], kind="stable")[:depth]]
