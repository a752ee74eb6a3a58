"""Sentences of film reviews, positive or negative: rt-polarity, with a TextCNN."""

from __future__ import annotations

import collections
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.simulated.parts import Part, divided

PAD, UNKNOWN, LONGEST = 0, 1, 40  # tokens of a sentence; the rest is cut off


class TextCNN(nn.Module):
    """Convolutions over 3, 4 and 5 words, each with its maximum over the sentence (Kim 2014)."""

    def __init__(self, words: int, width: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=PAD)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, channels, size, padding=size - 1) for size in (3, 4, 5))
        self.dropout, self.scores = nn.Dropout(0.5), nn.Linear(3 * channels, 2)

    def forward(self, sentences: Tensor) -> Tensor:
        """Return the scores of both classes, shape (n, 2), given words' numbers, shape (n, LONGEST)."""
        words = self.embedding(sentences).transpose(1, 2)
        found = [convolution(words).relu().amax(dim=2) for convolution in self.convolutions]
        scores: Tensor = self.scores(self.dropout(torch.cat(found, dim=1)))
        return scores


class Sentiment:
    """A TextCNN with the sentences that it is trained and scored with.

    A tenth of all sentences is the test set, since the data have none of their own.

    Args:
        folder: of the data.
        width: of the words' vectors.
        channels: of each convolution.
        part: see `Part`.

    Attributes:
        model: the network.
        measure: what `score` returns.
    """

    measure = "accuracy"

    def __init__(self, folder: str, *, width: int = 64, channels: int = 64, part: Part = "test") -> None:
        path = Path(folder) / "rt-polarity"
        sentences, labels = [], []
        for label, kind in enumerate(("neg", "pos")):
            lines = (path / f"rt-polarity.{kind}").read_text(encoding="latin-1").splitlines()
            sentences += [line.split() for line in lines]
            labels += [label] * len(lines)
        kept, tested = divided(len(sentences), "valid")
        trained, held_out = divided(len(kept), part)
        counts = collections.Counter(word for number in kept[trained].tolist() for word in set(sentences[number]))
        known = {word: number for number, (word, _) in enumerate(counts.most_common(), 2)}
        rows = [[known.get(word, UNKNOWN) for word in sentence[:LONGEST]] for sentence in sentences]
        encoded = torch.tensor([row + [PAD] * (LONGEST - len(row)) for row in rows])
        self.sentences, self.labels = encoded[kept[trained]], torch.tensor(labels)[kept[trained]]
        scored = tested if part == "test" else kept[held_out]
        self.test_sentences, self.test_labels = encoded[scored], torch.tensor(labels)[scored]
        self.model = TextCNN(len(known) + 2, width, channels)

    def order(self, batch: int, random: torch.Generator) -> Tensor:
        """Return the examples in the order of an epoch."""
        return torch.randperm(len(self.sentences), generator=random)

    def loss(self, chosen: Tensor, random: torch.Generator) -> Tensor:
        """Return the mean loss of some examples."""
        return functional.cross_entropy(self.model(self.sentences[chosen]), self.labels[chosen])

    def score(self) -> float:
        """Return the accuracy on sentences that it is not trained with."""
        with torch.no_grad():
            right = self.model(self.test_sentences).argmax(dim=1) == self.test_labels
        return float(right.float().mean())
