"""Something happens at a numbered moment of a call: before a line, or before a bytecode, of the package."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import imgstore

PACKAGE = (os.path.dirname(imgstore.__file__) + os.sep,)
WITH_CONTEXTS = (*PACKAGE, contextlib.__file__)  # whose functions run between ours and ours


class Moment:
    """Runs `action` before the given line (or bytecode) of what is called under it, counted from 1.

    What `action` raises is raised there. `passed` counts the moments that were met. Other threads are not watched.
    """

    def __init__(
        self, number: int, action: Callable[[], Any], bytecodes: bool = False, places: tuple[str, ...] = PACKAGE
    ) -> None:
        self.passed, self._number, self._action, self._places = 0, number, action, places
        self._event = "opcode" if bytecodes else "line"

    def __enter__(self) -> "Moment":
        sys.settrace(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if f"{os.sep}tests{os.sep}" in name or not name.startswith(self._places):
            return None
        if self._event == "opcode":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._in_frame

    def _in_frame(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == self._event:
            self.passed += 1
            if self.passed == self._number:
                sys.settrace(None)
                self._action()
        return self._in_frame


def moments(call: Callable[[], object]) -> int:
    """How many lines there are in a call."""
    with Moment(sys.maxsize, bool) as counted:
        call()
    return counted.passed


class Bytecodes(Moment):
    """Notes the numbers under which each bytecode is met, the first few of them."""

    def __init__(self, places: tuple[str, ...], most: int) -> None:
        super().__init__(sys.maxsize, bool, True, places)
        self.numbers: list[int] = []
        self._most, self._met = most, Counter[tuple[CodeType, int]]()

    def _in_frame(self, frame: FrameType, event: str, argument: object) -> Any:
        super()._in_frame(frame, event, argument)
        if event == "opcode":
            self._met[frame.f_code, frame.f_lasti] += 1
            if self._met[frame.f_code, frame.f_lasti] <= self._most:
                self.numbers.append(self.passed)
        return self._in_frame
