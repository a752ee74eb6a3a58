"""Translation: English to German on Multi30k, with a small Transformer."""

from __future__ import annotations

import gzip
import io
import math
import warnings
from pathlib import Path
from typing import Any

import sacrebleu
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.simulated.parts import Part

PAD, BEGIN, END, UNKNOWN = range(4)
VOCABULARY = 4000
LONGEST = 64  # tokens of a sentence; the rest is cut off


class Transformer(nn.Module):
    """Encoder and decoder of two layers each (Vaswani et al. 2017), normalized before each sublayer.

    The embeddings of both languages and the output share one matrix.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with warnings.catch_warnings():  # that normalizing first rules out nested tensors
            warnings.filterwarnings("ignore", "enable_nested_tensor")
            self.layers = nn.Transformer(
                width, 4, 2, 2, dim_feedforward=2 * width, dropout=0.1, batch_first=True, norm_first=True
            )
        angle = torch.arange(LONGEST + 2)[:, None] * 10_000 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("positions", torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1))

    def embed(self, pieces: Tensor) -> Tensor:
        """Return the vectors of tokens, shape (n, length, width), given their numbers, shape (n, length)."""
        return self.embedding(pieces) * self.embedding.embedding_dim**0.5 + self.positions[: pieces.shape[1]]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits of `decode`, given both languages."""
        return self.decode(self.encode(source), source, target)

    def encode(self, source: Tensor) -> Tensor:
        """Return the encoder's output."""
        return self.layers.encoder(self.embed(source), src_key_padding_mask=source == PAD)

    def decode(self, memory: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return for each token of the target the logits of the next one, shape (n, length, VOCABULARY)."""
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        decoded = self.layers.decoder(
            self.embed(target), memory, tgt_mask=later, memory_key_padding_mask=source == PAD, tgt_is_causal=True
        )
        return functional.linear(decoded, self.embedding.weight)


class Translation:
    """A translation model with its training, validation and test data.

    Args:
        folder: of the data.
        width: of the Transformer's vectors.
        limit: training sentences, 0 for all.
        part: the sentences whose perplexity is the score; both have files of their own.
        scored: their number at most, 0 for all.

    Attributes:
        model: the network.
        measure: what `score` returns.
    """

    measure = "perplexity"

    def __init__(self, folder: str, *, width: int, limit: int = 0, part: Part = "valid", scored: int = 0) -> None:
        path = Path(folder) / "multi30k"
        train, valid = ([_lines(path / f"{part}.{code}.gz") for code in ("en", "de")] for part in ("train", "val"))
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(train[0] + train[1]),
            model_writer=written,
            vocab_size=VOCABULARY,
            pad_id=PAD,
            bos_id=BEGIN,
            eos_id=END,
            unk_id=UNKNOWN,
            num_threads=1,
            minloglevel=2,
        )
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
        self.source, self.target = ([self._numbers(line) for line in lines[: limit or None]] for lines in train)
        self.test = [_lines(path / f"test_2016_flickr.{code}.gz") for code in ("en", "de")]
        sentences = valid if part == "valid" else self.test
        self.scored = [[self._numbers(line) for line in lines[: scored or None]] for lines in sentences]
        self.network = Transformer(width)
        self.model: nn.Module = self.network

    def _numbers(self, line: str) -> Tensor:
        return torch.tensor([BEGIN, *self.pieces.encode(line)[:LONGEST], END])

    def order(self, batch: int, random: torch.Generator) -> Tensor:
        """Return the examples in the order of an epoch; sentences of a batch are about equally long."""
        order = torch.randperm(len(self.source), generator=random)
        lengths = torch.tensor([len(sentence) for sentence in self.target])
        near = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(32 * batch)]
        batches = [batch_of for pool in near for batch_of in pool.split(batch) if len(batch_of) == batch]
        return torch.cat([batches[i] for i in torch.randperm(len(batches), generator=random)])

    def loss(self, chosen: Tensor, random: torch.Generator) -> Tensor:
        """Return the mean loss per token of some sentences, with labels smoothed by 0.1."""
        numbers = chosen.tolist()
        return self._loss([self.source[i] for i in numbers], [self.target[i] for i in numbers], 0.1)

    def _loss(self, source: list[Tensor], target: list[Tensor], smoothing: float = 0.0) -> Tensor:
        read, written = _padded(source), _padded(target)
        logits = self.model(read, written[:, :-1])
        return functional.cross_entropy(
            logits.flatten(0, 1), written[:, 1:].flatten(), ignore_index=PAD, label_smoothing=smoothing
        )

    def score(self) -> float:
        """Return the perplexity per token of sentences that it is not trained with."""
        with torch.no_grad():
            total, pieces = 0.0, 0
            for at in range(0, len(self.scored[0]), 100):
                source, target = (lines[at : at + 100] for lines in self.scored)
                count = sum(len(sentence) - 1 for sentence in target)
                total += count * float(self._loss(source, target))
                pieces += count
        return math.exp(min(total / pieces, 100.0))

    def translations(self) -> dict[str, Any]:
        """Return the BLEU of greedy translations of the test set, and the first of these."""
        translated: list[str] = []
        with torch.no_grad():
            for at in range(0, len(self.test[0]), 100):
                source = _padded([self._numbers(line) for line in self.test[0][at : at + 100]])
                memory, written = self.network.encode(source), torch.full((len(source), 1), BEGIN)
                while written.shape[1] <= LONGEST and not (written == END).any(dim=1).all():
                    best = self.network.decode(memory, source, written)[:, -1].argmax(dim=1, keepdim=True)
                    written = torch.cat([written, best], dim=1)
                rows = written[:, 1:].tolist()
                translated += [self.pieces.decode(row[: row.index(END)] if END in row else row) for row in rows]
        return {"bleu": sacrebleu.corpus_bleu(translated, [self.test[1]]).score, "translations": translated[:5]}


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def _padded(sentences: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(sentences, batch_first=True, padding_value=PAD)
