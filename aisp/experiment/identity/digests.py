"""What tells functions, models and values apart: a digest of their content.

A function is its bytecode, its constants and defaults, what its closure holds, and the globals that
it reads, the functions among them in turn. Code of installed packages, of Python and of this one
counts by its name. What has no content that can be read, such as an object of a user's class, is
refused, because two different ones would pass for one.

Not seen: what a function reads by other ways, as from a file or through `getattr`; and bytecode is
another in every version of Python, so that the digest of one function is, too.
"""

import builtins
import dataclasses
import enum
import functools
import hashlib
import logging
import re
import types
from collections.abc import Callable
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from aisp.experiment.identity.bytecode import globals_read, is_installed
from aisp.experiment.identity.weights import stored_content, tensor_digest, weights_sha256
from aisp.policy import Policy
from aisp.provenance import file_sha256
from aisp.remote import RemoteModel
from aisp.rewards.base import CallableReward, Reward

# Attributes of a reward that say how many texts it reads at once, and nothing about its values.
SPEED = ("batch_size", "batch_tokens")
# What a tokenizer makes of this shows how it splits digits, spaces, accents and scripts.
PROBE = "It's 12,345.67 \n\n\tdéjà-vu <b>Ünïcode</b> 你好 🙂 x_1 = {'a': [0]}  end."
HOW = ("transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")
UNTOLD = {"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__"}
UNTOLD |= {"__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl"}


class UnidentifiedError(ValueError):
    """There is no telling by its content what something is."""


class Digests:
    """Digests of what one run is made with. The weights of each model are read once."""

    def __init__(self) -> None:
        # By id, which stays an object's own as long as the object itself is kept here too.
        self._known: dict[int, tuple[Any, str]] = {}

    def of(self, *values: Any) -> str:
        """SHA-256 of the content of these values, as hex.

        Raises:
            UnidentifiedError: something in them cannot be told by its content; it is named.
        """
        walk = _Walk(self)
        for value in values:
            walk.visit(value, "it")
        return walk.sha256.hexdigest()

    def once(self, value: Any, compute: Callable[[Any], str]) -> str:
        """The digest that `compute` makes of a model or tokenizer, at its first time."""
        if id(value) not in self._known:
            self._known[id(value)] = value, compute(value)
        return self._known[id(value)][1]


class _Walk:
    """One pass over a value and all that it is made of, which are hashed on the way."""

    def __init__(self, digests: Digests) -> None:
        self.digests, self.sha256 = digests, hashlib.sha256()
        # What may contain itself: its number, and itself, so that its id stays its own.
        self.seen: dict[int, tuple[int, Any]] = {}

    def add(self, *facts: Any) -> None:
        for fact in facts:
            content = fact if isinstance(fact, bytes) else repr(fact).encode()
            self.sha256.update(b"%d:%s" % (len(content), content))

    def again(self, value: Any) -> bool:
        """Whether this very object was visited before; then it is its number."""
        if id(value) in self.seen:
            self.add("again", self.seen[id(value)][0])
            return True
        self.seen[id(value)] = len(self.seen), value
        return False

    def visit(self, value: Any, what: str) -> None:
        """Hash a value.

        Args:
            what: how an error would name it.
        """
        for kinds, method in _KINDS:
            if isinstance(value, kinds):
                method(self, value, what)
                return
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            self.fields(value, what)
            return
        raise UnidentifiedError(f"{what} is an object of {_full_name(type(value))}")

    def each(self, values: Any, what: str) -> None:
        self.add(len(values))
        for value in values:
            self.visit(value, f"something in {what}")

    # -- values -----------------------------------------------------------------------------------

    def plain(self, value: Any, what: str) -> None:
        self.add(type(value).__name__, value)

    def sequence(self, value: Any, what: str) -> None:
        if isinstance(value, list) and self.again(value):
            return
        self.add(_full_name(type(value)))
        self.each(value, what)

    def mapping(self, value: dict, what: str) -> None:
        if not self.again(value):
            self.add(_full_name(type(value)))
            self.each([part for item in value.items() for part in item], what)

    def unordered(self, value: Any, what: str) -> None:
        self.add(_full_name(type(value)), *sorted(self.digests.of(x) for x in value))

    def array(self, value: Any, what: str) -> None:
        if value.dtype.hasobject:
            raise UnidentifiedError(f"{what} is an array of Python objects")
        self.add("array", value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes())

    def tensor(self, value: Tensor, what: str) -> None:
        self.add("tensor", tensor_digest(value))

    def pattern(self, value: re.Pattern, what: str) -> None:
        self.add("pattern", value.pattern, value.flags)

    def member(self, value: enum.Enum, what: str) -> None:
        self.add("member", _full_name(type(value)), value.name)

    def fields(self, value: Any, what: str) -> None:
        if not self.again(value):
            self.visit(type(value), what)
            for field in dataclasses.fields(value):
                self.visit(getattr(value, field.name), f"{field.name} of {what}")

    # -- models -----------------------------------------------------------------------------------

    def module(self, value: nn.Module, what: str) -> None:
        for kind in sorted({type(part) for part in value.modules()}, key=_full_name):
            try:
                self.add(self.digests.of(kind))
            except UnidentifiedError:  # the weights tell enough
                self.add(_full_name(kind))
        self.add(self.digests.once(value, weights_sha256))
        config: Any = getattr(value, "config", None)  # of a model of transformers, or anything
        self.add(_told(config.to_diff_dict()) if hasattr(config, "to_diff_dict") else None)

    def remote(self, value: RemoteModel, what: str) -> None:
        self.add("remote", stored_content(value.source, value.config))
        self.add(self.digests.of(value.settings), _told(value.config.to_diff_dict()))

    def tokenizer(self, value: PreTrainedTokenizerBase, what: str) -> None:
        self.add(self.digests.once(value, _tokenizer_sha256))

    def policy(self, value: Policy, what: str) -> None:
        self.add("policy", value.eos_ids)
        for part in ("model", "tokenizer", "template"):
            self.visit(getattr(value, part), f"the {part} of {what}")

    def reward(self, value: Reward, what: str) -> None:
        """The code of a user's class, its files and its public attributes, as far as can be told.

        Attributes that begin with _ are its state, such as a cache, and do not count.
        """
        if isinstance(value, CallableReward):
            self.add(value.name) if value.named else self.visit(value.function, what)
            return
        if value.name == Reward.name:
            raise UnidentifiedError(f"{what} is an object of {_full_name(type(value))}")
        self.add("reward", value.name, *map(file_sha256, value.files))
        for kind in type(value).__mro__:
            if not is_installed(kind.__module__):
                for name, part in sorted(vars(kind).items()):
                    part = getattr(part, "__func__", getattr(part, "fget", part))
                    if isinstance(part, types.FunctionType | int | float | str | tuple):
                        self.as_far_as_told(name, part)
        for name, part in sorted(vars(value).items()):
            if not name.startswith("_") and name not in ("name", "files", "recipe", *SPEED):
                self.as_far_as_told(name, part)

    def as_far_as_told(self, name: str, part: Any) -> None:
        """A part of a reward with a name; the name stands for what cannot be told."""
        try:
            self.add(name, self.digests.of(part))
        except UnidentifiedError:
            self.add(name, "untold")

    # -- code -------------------------------------------------------------------------------------

    def function(self, value: types.FunctionType, what: str) -> None:
        if self.again(value):
            return
        what = f"{value.__name__!r}"
        self.add("function", len(value.__closure__ or ()))
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=True):
            try:
                held = cell.cell_contents
            except ValueError:
                self.add("empty")
            else:
                self.visit(held, f"{name!r}, from around the function {what},")
        self.visit(value.__defaults__, f"a default of the function {what}")
        self.visit(value.__kwdefaults__, f"a default of the function {what}")
        own = {k: v for k, v in vars(value).items() if k != "recipe"}
        self.visit(own, f"an attribute of the function {what}")
        if is_installed(value.__module__):
            self.add(value.__module__, value.__qualname__)
            return
        self.code(value.__code__)
        for name, *attributes in sorted(set(globals_read(value.__code__))):
            self.a_global(value.__globals__, name, attributes, what)

    def a_global(self, values: dict[str, Any], name: str, attributes: list[str], by: str) -> None:
        """What a function reads: a global, or, where that is a user's module, something in it."""
        self.add("global", name)
        if name not in values:  # a built-in, or an error when it is called
            self.add(hasattr(builtins, name))
            return
        value = values[name]
        for attribute in attributes:
            if not isinstance(value, types.ModuleType) or is_installed(value.__name__):
                break
            name, value = f"{name}.{attribute}", getattr(value, attribute, None)
        self.visit(value, f"the global {name!r}, which the function {by} reads,")

    def code(self, value: types.CodeType, what: str = "") -> None:
        self.add("code", value.co_code, value.co_flags, value.co_exceptiontable)
        self.add(value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        self.add(value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        self.each(value.co_consts, "the constants")

    def built_in(self, value: types.BuiltinFunctionType, what: str) -> None:
        self.add("built-in", value.__module__, value.__qualname__)
        if not isinstance(value.__self__, types.ModuleType | None):
            self.visit(value.__self__, f"the object of the method {what}")

    def descriptor(self, value: Any, what: str) -> None:
        self.add("descriptor", _full_name(value.__objclass__), value.__name__)

    def method(self, value: types.MethodType, what: str) -> None:
        self.visit(value.__func__, what)
        self.visit(value.__self__, f"the object of the method {what}")

    def partial(self, value: functools.partial, what: str) -> None:
        self.add("partial")
        for part in (value.func, value.args, value.keywords):
            self.visit(part, what)

    def wrapper(self, value: Any, what: str) -> None:
        self.add(_full_name(type(value)))
        self.visit(value.__wrapped__, what)

    def accessor(self, value: property, what: str) -> None:
        self.add("property")
        for part in (value.fget, value.fset, value.fdel):
            self.visit(part, what)

    def a_class(self, value: type, what: str) -> None:
        self.add("class", _full_name(value))
        if is_installed(value.__module__) or self.again(value):
            return
        for base in value.__bases__:
            self.visit(base, f"a base of {what}")
        for name, part in sorted(vars(value).items()):
            if name not in UNTOLD and not name.startswith("__dataclass"):
                self.add(name)
                self.visit(part, f"{name} of the class {value.__name__}")

    def package(self, value: types.ModuleType, what: str) -> None:
        self.add("module", value.__name__)
        file = getattr(value, "__file__", None)
        if file is not None and not is_installed(value.__name__):
            self.add(file_sha256(Path(file)))

    def by_name(self, value: Any, what: str) -> None:
        self.add(_full_name(type(value)), value)


_CACHED = type(functools.lru_cache(len))
_PLAIN: tuple[type, ...] = (bool, int, float, complex, str, bytes, bytearray, types.NoneType)
_PLAIN += (types.EllipsisType, types.NotImplementedType)
_NAMED: tuple[Any, ...] = (torch.dtype, torch.device, PurePath, date, time, timedelta, Decimal)
_NAMED += (Fraction, range, slice, types.GenericAlias, types.UnionType)
_KINDS: list[tuple[Any, Callable[[_Walk, Any, str], None]]] = [  # the first that fits
    (enum.Enum, _Walk.member),
    (np.generic | np.ndarray, _Walk.array),
    (_PLAIN, _Walk.plain),
    (tuple | list, _Walk.sequence),
    (dict | types.MappingProxyType, _Walk.mapping),
    (set | frozenset, _Walk.unordered),
    (nn.Module, _Walk.module),
    (Tensor, _Walk.tensor),
    (RemoteModel, _Walk.remote),
    (PreTrainedTokenizerBase, _Walk.tokenizer),
    (Policy, _Walk.policy),
    (Reward, _Walk.reward),
    (re.Pattern, _Walk.pattern),
    (_NAMED, _Walk.by_name),
    (types.FunctionType, _Walk.function),
    (types.CodeType, _Walk.code),
    (types.BuiltinFunctionType, _Walk.built_in),
    (types.MethodType, _Walk.method),
    (types.MethodDescriptorType | types.WrapperDescriptorType, _Walk.descriptor),
    (types.MemberDescriptorType | types.GetSetDescriptorType, _Walk.descriptor),
    (logging.Logger, lambda walk, value, what: walk.add("logger", value.name)),
    (np.ufunc, lambda walk, value, what: walk.add("ufunc", value.__name__)),
    (functools.partial, _Walk.partial),
    (_CACHED | staticmethod | classmethod, _Walk.wrapper),
    (property, _Walk.accessor),
    (type, _Walk.a_class),
    (types.ModuleType, _Walk.package),
]


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    words = sorted(tokenizer.get_vocab().items())
    told = words, tokenizer(PROBE)["input_ids"], tokenizer.chat_template
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _told(settings: Any) -> Any:
    """What a model's configuration says of what it computes, without how and where it is run."""
    if not isinstance(settings, dict):
        return repr(settings)
    told = (k for k in settings if k not in HOW and not k.startswith("_"))
    return sorted((k, _told(settings[k])) for k in told)
