"""YAML files and `KEY VALUE` pairs into a config: every problem is named with its file and key."""

from __future__ import annotations

import difflib
import functools
import os
import re
import reprlib
from ast import literal_eval
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode as CN

from knet.files import read_text

_BASE = "_BASE_"
# no config needs more; aliases can make a small file stand for very many values
_MAX_BYTES, _MAX_VALUES = 2**20, 100_000
# what PyYAML raises beside its own errors, for values such as `!!int x` or `? [a]`
_YAML_ERRORS = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError),
)
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def shown(value: Any) -> str:
    """A value as messages show it: short, whatever it holds."""
    return _short.repr(list(value) if isinstance(value, tuple) else value)


def read_config_files(
    path: str, *, allow_base: bool, chain: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Contents of a YAML file and of the files that `_BASE_` names, the bases first.

    Args:
        path: local file.
        allow_base: whether there may be bases: local files, relative to the file that names them.
        chain: the files whose base this is.

    Yields:
        Name and content; later ones count.

    Raises:
        FileNotFoundError: no such file, or no such base.
        ValueError: a file that is no YAML of keys and values, or a base that may not be.
    """
    named = f", the {_BASE} of {chain[-1]}" if chain else ""
    if os.path.realpath(path) in map(os.path.realpath, chain):
        raise ValueError(f"{' -> '.join([*chain, path])}: the {_BASE} of these files is a circle")
    if not os.path.isfile(path):
        what = "is no file" if os.path.exists(path) else "there is no such file"
        raise FileNotFoundError(f"{path}{named}: {what}")
    content = _read_yaml(path)
    bases = content.pop(_BASE, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not allow_base:
            raise ValueError(
                f"{path}: {_BASE} is {shown(base)}; this config has to stand by itself, since it "
                "may be a stranger's and would read other files"
            )
        if not isinstance(base, str) or "://" in base:
            raise ValueError(f"{path}: {_BASE} is {shown(base)}; it names local files")
        base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        yield from read_config_files(base, allow_base=allow_base, chain=(*chain, path))
    yield path, content


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the second of two equal keys win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} comes twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> dict[str, Any]:
    if os.path.getsize(path) > _MAX_BYTES:
        raise ValueError(f"{path}: over {_MAX_BYTES} bytes, so no config")
    text = read_text(path)
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        mend = " (YAML is indented with spaces, not tabs)" if "'\\t'" in str(problem) else ""
        raise ValueError(f"{path}: {place}not YAML: {problem or error}{mend}") from error
    except _YAML_ERRORS as error:
        raise ValueError(f"{path}: a value that YAML cannot read: {error}") from error
    if not isinstance(content, dict):
        what = "nothing" if content is None else shown(content)
        raise ValueError(f"{path}: holds {what}, not keys and values such as `SEED: 1`")
    if _is_larger_than(content, _MAX_VALUES):
        raise ValueError(f"{path}: aliases make it over {_MAX_VALUES} values, so no config")
    return content


def _is_larger_than(content: Any, limit: int) -> bool:
    waiting, count = [content], 0
    while waiting and count <= limit:
        value = waiting.pop()
        count += 1
        if isinstance(value, (dict, list, tuple, set)):
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return count > limit


def flat_keys(cfg: CN, where: str = "") -> Iterator[str]:
    """Full names of all keys of a config that hold values, MODEL.KNET.NUM_ROUNDS …"""
    for key, value in cfg.items():
        if isinstance(value, CN):
            yield from flat_keys(value, f"{where}{key}.")
        else:
            yield f"{where}{key}"


def value_of(cfg: CN, key: str) -> Any:
    """The value of a key by its full name."""
    return functools.reduce(getattr, key.split("."), cfg)


def inference_kernels(cfg: CN) -> tuple[str, int]:
    """The key that says how many thing kernels an image has in inference, and their number."""
    knet = cfg.MODEL.KNET
    key = "MODEL.KNET.TEST.NUM_KERNELS" if knet.KERNEL_PEAKS else "MODEL.KNET.NUM_KERNELS"
    return key, knet.TEST.NUM_KERNELS or knet.NUM_KERNELS


def check_pairs(opts: Sequence[Any]) -> None:
    """Refuse a flag among the config keys, which programs take at the end of the command line.

    Raises:
        ValueError: naming the flag, what stands in a key's place, or the key without a value.
    """
    words = list(opts)
    for k, word in enumerate(words):
        flag = isinstance(word, str) and re.match(r"--?[A-Za-z]", word)
        if flag and (k % 2 == 0 or word.startswith("--")):
            raise ValueError(
                f"{word} stands behind the config keys, which are the last on the command line: "
                f"put it before {words[0] if k else 'them'}"
            )
        if k % 2 == 0 and not (isinstance(word, str) and re.match(r"[A-Z][A-Z0-9_]*(\.|$)", word)):
            before = f" (after {words[k - 2]} {words[k - 1]})" if k else ""
            raise ValueError(
                f"{word!r} stands where a config key must{before}: keys and values come in turn, "
                "KEY VALUE, and a value with blanks or brackets needs quotes"
            )
    if len(words) % 2:
        raise ValueError(f"the config key {words[-1]} has no value: keys and values come in turn")


def merge_pairs(cfg: CN, pairs: Sequence[Any]) -> list[str]:
    """Set keys of a config from pairs that `check_pairs` passed; returns what is wrong."""
    problems = []
    for key, value in zip(pairs[::2], pairs[1::2]):
        content: Any = value
        for name in reversed(str(key).split(".")):
            content = {name: content}
        problems += merge_content(cfg, content)
    return problems


def merge_content(
    cfg: CN, content: dict[Any, Any], where: str = "", root: CN | None = None
) -> list[str]:
    """Set keys of a config, in place.

    Strings may be Python literals, "(512, 512)"; whole numbers do where others are expected.

    Args:
        cfg: the config, or a section of it.
        content: keys and values, nested as the config is.
        where: the section's name with a point, for messages.
        root: the whole config.

    Returns:
        What is wrong, a message each; those keys keep their values.
    """
    root = cfg if root is None else root
    problems: list[str] = []
    for key, given in content.items():
        name = f"{where}{key}"
        if key not in cfg and not (cfg.is_new_allowed() and isinstance(key, str)):
            if root.key_is_deprecated(name):  # says so
                continue
            if root.key_is_renamed(name):
                problems += merge_pairs(root, [root.__dict__[CN.RENAMED_KEYS][name], given])
                continue
            while isinstance(given, dict) and len(given) == 1:  # the key in an unknown section
                ((inner, given),) = given.items()
                name = f"{name}.{inner}"
            problems.append(f"{name}: no such key{_nearest(name, root)}")
            continue
        old = cfg.get(key)
        value = _decode(given, old)
        if isinstance(old, CN):
            if isinstance(value, dict):
                problems += merge_content(old, value, f"{name}.", root)
            else:
                problems.append(f"{name} is {shown(value)}; it is a section, with keys below it")
            continue
        wanted = _wanted(value, old)
        if wanted:
            problems.append(f"{name} is {shown(value)}; it must be {wanted}")
        elif isinstance(old, (list, tuple)):
            cfg[key] = type(old)(value)
        else:
            cfg[key] = float(value) if isinstance(old, float) else value
    return problems


def _nearest(name: str, root: CN) -> str:
    keys = list(flat_keys(root))
    sections = {key[:i] for key in keys for i, c in enumerate(key) if c == "."}
    # the right name in the wrong section, or a slip of the pen
    last = name.rpartition(".")[2]
    near = [key for key in keys if key.rpartition(".")[2] == last]
    near = difflib.get_close_matches(name, near, n=2, cutoff=0) or difflib.get_close_matches(
        name, [*keys, *sorted(sections)], n=2, cutoff=0.75
    )
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _decode(value: Any, old: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        decoded = literal_eval(value)
    # no literal; the others are deeply nested ones and dicts with lists as keys
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    # a name of digits is still a name
    return value if isinstance(old, str) and not isinstance(decoded, str) else decoded


# type of a value, what may take its place, and how messages call that and a list of such
_KINDS: tuple[tuple[type, Callable[[Any], bool], str, str], ...] = (
    (bool, lambda v: isinstance(v, bool), "True or False", "True and False"),
    (int, lambda v: isinstance(v, int) and _is_number(v), "a whole number", ""),
    (float, lambda v: _is_number(v), "a number", "numbers"),
    (str, lambda v: isinstance(v, str), "text (a number in quotes is text)", "texts"),
)


def _wanted(value: Any, old: Any) -> str:
    """What a value should be to take the place of `old`; empty if it can."""
    if not _is_plain(value):
        return "made of numbers, texts, True, False and lists"
    lists = isinstance(old, (list, tuple))
    if lists and not isinstance(value, (list, tuple)):
        return f"a list, such as {shown(old) if old else '[a, b]'}"
    for kind, fits, one, many in _KINDS:
        if isinstance(old, kind):
            return "" if fits(value) else one
        # whole numbers in the config's lists may become others
        alike = lists and old and many and all(map(fits, _leaves(old)))
        if alike and not all(map(fits, _leaves(value))):
            return f"a list of {many}"
    return ""


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def _is_number(value: Any) -> bool:
    # larger ones are no floats, and no config means them
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and (isinstance(value, float) or abs(value) < 2**63)
