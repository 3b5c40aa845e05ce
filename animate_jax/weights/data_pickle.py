"""Pickles read as data: an interpreter of the opcodes that state dicts consist of, and no more.

Python's own unpickler imports what a file names and calls it. This one has no import and no
attribute access: a name in the file stays a `Global`, the caller says which names exist and what
"calling" one of them yields, and any other name ends the reading. The opcodes and their arguments
are taken apart by `pickletools.genops`, which only parses.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO


class PickleRefused(Exception):
    """The pickle names an object that plain weights do not need; `name` is its full name."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class PickleDamaged(Exception):
    """The bytes are no pickle, are cut off, or use the stack in a way no pickler writes."""


@dataclass(frozen=True)
class Global:
    """An importable name as it stands in the file, such as `torch.FloatStorage`."""

    name: str


@dataclass(frozen=True)
class Vocabulary:
    """What the names in a pickle mean.

    knows(name): whether the name may occur at all.
    call(name, arguments): the value of applying it; raises PickleRefused if it is not callable.
    stored(identity): the value of a persistent identity (the tuple under which data is outside).
    stateless: types of values, beside dicts, whose attributes say nothing about weights.
    """

    knows: Callable[[str], bool]
    call: Callable[[str, tuple], Any]
    stored: Callable[[Any], Any]
    stateless: tuple[type, ...] = ()


_MARK = object()
_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEY_TYPES = (str, int, float, bool, bytes, type(None))


def read_pickle(data: bytes | BinaryIO, vocabulary: Vocabulary) -> Any:
    """The value of a pickle (protocol 2 to 5) as dicts, lists, tuples, plain scalars, `Global`s
    and whatever the vocabulary returns. A file is read from where it stands, to the pickle's end.
    Raises PickleRefused or PickleDamaged."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (value,) = stack
                return value
            _step(opcode.name, argument, stack, memo, vocabulary)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise PickleDamaged(f"{type(error).__name__}: {error}") from error
    raise PickleDamaged("no end")


def _step(name: str, argument: Any, stack: list, memo: dict, vocabulary: Vocabulary) -> None:
    if name in _LITERALS:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _EMPTY:
        stack.append(_EMPTY[name]())
    elif name in _SHORT_TUPLES:
        stack.append(tuple(_take(stack, _SHORT_TUPLES[name])))
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "TUPLE":
        stack.append(tuple(_take_marked(stack)))
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = _top(stack)
    elif name == "MEMOIZE":
        memo[len(memo)] = _top(stack)
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "GLOBAL":
        stack.append(_global(argument.replace(" ", "."), vocabulary))
    elif name == "STACK_GLOBAL":
        stack.append(_global(".".join(_take(stack, 2)), vocabulary))
    elif name in ("REDUCE", "NEWOBJ"):
        function, arguments = _take(stack, 2)
        if type(function) is not Global or type(arguments) is not tuple:
            raise TypeError(f"{name} of {type(function).__name__}")
        stack.append(vocabulary.call(function.name, arguments))
    elif name == "BUILD":
        # The attributes of a dict (module versions) say nothing about weights.
        target, _ = _take(stack, 2)
        if type(target) is not dict and type(target) not in vocabulary.stateless:
            raise PickleRefused(f"state of {_describe(target)}")
        stack.append(target)
    elif name == "BINPERSID":
        stack.append(vocabulary.stored(_take(stack, 1)[0]))
    elif name in ("SETITEM", "SETITEMS"):
        items = _take(stack, 2) if name == "SETITEM" else _take_marked(stack)
        _set_items(_top(stack), items)
    elif name in ("APPEND", "APPENDS"):
        items = _take(stack, 1) if name == "APPEND" else _take_marked(stack)
        _only(list, _top(stack)).extend(items)
    elif name == "POP":
        _take(stack, 1)
    elif name not in ("PROTO", "FRAME"):
        raise PickleRefused(argument.replace(" ", ".") if name == "INST" else f"opcode {name}")


def _global(name: str, vocabulary: Vocabulary) -> Global:
    if not vocabulary.knows(name):
        raise PickleRefused(name)
    return Global(name)


def _describe(value: Any) -> str:
    return value.name if type(value) is Global else type(value).__name__


def _only(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value


def _set_items(target: Any, items: list) -> None:
    _only(dict, target)
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing a tuple recurses: one that is nested deeply enough would end the process.
        if type(key) not in _KEY_TYPES:
            raise TypeError(f"a {type(key).__name__} as key")
        target[key] = value


def _top(stack: list) -> Any:
    if stack[-1] is _MARK:
        raise ValueError("a mark used as a value")
    return stack[-1]


def _take(stack: list, count: int) -> list:
    taken = [stack.pop() for _ in range(count)][::-1]
    if any(value is _MARK for value in taken):
        raise ValueError("a mark used as a value")
    return taken


def _take_marked(stack: list) -> list:
    taken = []
    while (value := stack.pop()) is not _MARK:
        taken.append(value)
    return taken[::-1]
