"""Functions that run compiled where the machine has a compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

_logger = logging.getLogger(__name__)


class Compiled:
    """A function compiled at its first call, which runs uncompiled if compiling fails, after a warning.

    A call that fails is repeated uncompiled, so the function must not have changed anything when the compiler fails.
    """

    def __init__(self, function: Callable[..., Any], name: str, **options: Any) -> None:
        self.function, self.name, self.options = function, name, options
        self.works = True
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if not self.works:
            return self.function(*arguments)
        try:
            if self._compiled is None:
                torch._dynamo.config.recompile_limit = 64  # versions, for the shapes and objectives of one sweep
                self._compiled = torch.compile(self.function, dynamic=False, **self.options)
            return self._compiled(*arguments)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError, OSError, UnicodeError) as error:  # the last three: files of the compiler
            result = self.function(*arguments)  # raises what is wrong with the arguments
            self.works = False
            cause = getattr(error, "inner_exception", error)
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            _logger.warning("%s runs uncompiled: %s", self.name, reason)
            return result
