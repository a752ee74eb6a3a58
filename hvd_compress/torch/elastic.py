"""A bound compressor in Horovod's elastic state: ``hvd.elastic.TorchState(model=..., optimizer=..., bound=bound)``.

It is saved and restored with the model. What all workers must have in common they compare in their next step, so there
is nothing to broadcast. The state of `DistributedOptimizer` is part of the optimizer's, and needs nothing here.
"""

from __future__ import annotations

from horovod.torch.elastic.state import StateHandler, get_handler_registry, set_handler_registry

from hvd_compress.torch.bound import BoundCompression


class _BoundHandler(StateHandler):
    def __init__(self, value: BoundCompression) -> None:
        super().__init__(value)
        self.save()

    def save(self) -> None:
        self._saved = self.value.state_dict()

    def restore(self) -> None:
        self.value.load_state_dict(self._saved)

    def sync(self) -> None:
        """Do nothing: the workers compare their states in the next step."""


set_handler_registry([*get_handler_registry(), (BoundCompression, _BoundHandler)])
