"""The choice between a kernel and the operations that do the same without one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def by_kernel(call: Callable[..., Any] | None = None, **dtypes: str) -> Callable[[F], F]:
    """Let a kernel do an operation where there is one and the arrays fit; otherwise the decorated body does it.

    The operation is a function whose first argument is an `Ops`, or a method of an `Ops`. A method that `Ops` decorates
    is decorated in every class that overrides it. Arguments are given by position.

    Args:
        call: ``call(ops, kernels, *arguments)`` does the operation; by default the kernel of the operation's name does,
            with the arguments.
        dtypes: for each array argument, the dtypes that fit, separated by spaces. None fits as well.
    """

    def decorate(body: F) -> F:
        name, places = body.__name__, list(inspect.signature(body).parameters)
        arrays = [(places.index(argument), tuple(fit.split())) for argument, fit in dtypes.items()]

        @functools.wraps(body)
        def operation(*arguments: Any) -> Any:
            ops = arguments[0]
            kernel = call or getattr(ops.kernels, name, None)
            if ops.kernels is None or kernel is None or (arrays and not ops.fit_kernels(arguments, arrays)):
                return body(*arguments)
            return call(ops, ops.kernels, *arguments[1:]) if call else kernel(*arguments[1:])

        operation.decorate = decorate  # type: ignore[attr-defined]
        return operation  # type: ignore[return-value]

    return decorate


def inherit(cls: type, base: type) -> None:
    """Decorate the methods that a class overrides as the base's are decorated."""
    for name, method in list(vars(cls).items()):
        decorate = getattr(getattr(base, name, None), "decorate", None)
        if decorate and not hasattr(method, "decorate"):
            setattr(cls, name, decorate(method))
