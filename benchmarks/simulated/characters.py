"""A language model of characters: the English sentences of Multi30k, with a small GPT."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.simulated.parts import Part, divided
from examples.torch.models import GPT

CONTEXT = 64  # characters of an example


class Characters:
    """A GPT that tells the next character, with its training text, and the text that it is scored with.

    Args:
        folder: of the data.
        width, layers, heads: of the GPT.
        limit: training examples, 0 for all.
        part: see `Part`.
        scored: examples to score with at most, 0 for all.

    Attributes:
        model: the network.
        measure: what `score` returns.
    """

    measure = "perplexity"

    def __init__(
        self,
        folder: str,
        *,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        limit: int = 0,
        part: Part = "test",
        scored: int = 0,
    ) -> None:
        path = Path(folder) / "multi30k"
        with gzip.open(path / "train.en.gz", "rt", encoding="utf-8") as file:
            text = file.read()
        with gzip.open(path / "test_2016_flickr.en.gz", "rt", encoding="utf-8") as file:
            test = file.read()
        numbers = {character: number for number, character in enumerate(sorted(set(text + test)))}
        self.examples, tests = (_examples(part_of, numbers) for part_of in (text, test))
        trained, held_out = divided(len(self.examples), part)
        tests = tests if part == "test" else self.examples[held_out]
        self.examples, self.tests = self.examples[trained][: limit or None], tests[: scored or None]
        self.model = GPT(len(numbers), CONTEXT, width, layers, heads)

    def order(self, batch: int, random: torch.Generator) -> Tensor:
        """Return the examples in the order of an epoch."""
        return torch.randperm(len(self.examples), generator=random)

    def loss(self, chosen: Tensor, random: torch.Generator) -> Tensor:
        """Return the mean loss per character of some examples."""
        return self._loss(self.examples[chosen])

    def _loss(self, text: Tensor) -> Tensor:
        return functional.cross_entropy(self.model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())

    def score(self) -> float:
        """Return the perplexity per character of text that it is not trained with."""
        with torch.no_grad():
            total = sum(len(batch) * float(self._loss(batch)) for batch in self.tests.split(100))
        return math.exp(min(total / len(self.tests), 100.0))


def _examples(text: str, numbers: dict[str, int]) -> Tensor:
    """Return pieces of a text, each with the character that follows, shape (n, CONTEXT + 1)."""
    encoded = torch.tensor([numbers[character] for character in text])
    return encoded.unfold(0, CONTEXT + 1, CONTEXT)
