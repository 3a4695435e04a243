"""Functions that run compiled where the machine has a compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

_logger = logging.getLogger(__name__)


class Compiled:
    """A function compiled at its first call. Once the compiler fails, it runs uncompiled, after a warning."""

    def __init__(self, function: Callable[..., Any], name: str, **options: Any) -> None:
        self.function, self.name, self.options, self.works = function, name, options, True

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        torch._dynamo.config.recompile_limit = 64  # versions, for the shapes and objectives of one sweep
        return torch.compile(self.function, dynamic=False, **self.options)

    def __call__(self, *arguments: Any) -> Any:
        if not self.works:
            return self.function(*arguments)
        try:
            return self._compiled(*arguments)
        except (RuntimeError, ImportError, OSError, UnicodeError) as error:  # the last three: files of the compiler
            result = self.function(*arguments)  # raises what is wrong with the arguments, or with memory
            self.works = False
            reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
            _logger.warning("%s runs uncompiled: %s", self.name, reason or type(error).__name__)
            return result
