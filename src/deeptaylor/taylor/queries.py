"""Logical queries over tokens: `good & !(not | never)`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations

from ..errors import InputError

Test = Callable[[frozenset[int]], bool]
_TOKENS = re.compile(r"""\s*(?:(?P<sign>[!&|()])|\#(?P<number>\d+)|"(?P<quoted>[^"]*)"|(?P<word>[^\s!&|()"\#]+))""")


def query(mu: Mapping[tuple[int, ...], float], expression: str, names: Iterable[str]) -> float:
    """Σ μ_L over the sets L of `mu` on which a logical expression holds, for example of `Walks.terms`.

    Of all sets up to some order only: what larger sets do is left out. `Walks.query` has no such limit.
    """
    known = list(names)

    def index(token: int | str) -> int:
        if isinstance(token, str) and known.count(token) != 1:
            raise InputError(f"{token!r} is no token, or several; the tokens are {', '.join(known)}")
        return known.index(token) if isinstance(token, str) else token

    holds, _ = parse(expression, index)
    return sum(value for tokens, value in mu.items() if holds(frozenset(tokens)))


def assignments(atoms: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Every subset."""
    atoms = tuple(atoms)
    for k in range(len(atoms) + 1):
        yield from combinations(atoms, k)


def parse(expression: str, index: Callable[[int | str], int]) -> tuple[Test, tuple[int, ...]]:
    """What tells whether an expression holds on a set of tokens, and the tokens that it names.

    Args:
        expression: names, `#3`, `!`, `&`, `|` and parentheses; `!` binds closest, then `&`.
        index: the number of a token, from its name or number; raises for others.

    Raises:
        InputError: with the place of what is wrong.
    """
    words: list[tuple[str, str, int]] = []
    place = 0
    text = expression.rstrip()
    while place < len(text):
        found = _TOKENS.match(text, place)
        if found is None:
            raise _wrong(expression, place, "is not closed or not understood")
        kind = str(found.lastgroup)
        words.append((kind, found[kind], found.start(kind)))
        place = found.end()
    atoms: list[int] = []
    position = 0

    def peek() -> tuple[str, str, int]:
        return words[position] if position < len(words) else ("end", "", len(text))

    def take(sign: str) -> bool:
        nonlocal position
        if peek()[:2] == ("sign", sign):
            position += 1
            return True
        return False

    def either() -> Test:
        parts = [both()]
        while take("|"):
            parts.append(both())
        return lambda present: any(part(present) for part in parts)

    def both() -> Test:
        parts = [single()]
        while take("&"):
            parts.append(single())
        return lambda present: all(part(present) for part in parts)

    def single() -> Test:
        nonlocal position
        if take("!"):
            inner = single()
            return lambda present: not inner(present)
        if take("("):
            inner = either()
            if not take(")"):
                raise _wrong(expression, peek()[2], "should be )")
            return inner
        kind, word, start = peek()
        if kind in ("end", "sign"):
            raise _wrong(expression, start, "should be a token")
        position += 1
        atom = index(int(word) if kind == "number" else word)
        atoms.append(atom)
        return lambda present: atom in present

    test = either()
    if position < len(words):
        raise _wrong(expression, words[position][2], "should be & or |")
    return test, tuple(dict.fromkeys(atoms))


def _wrong(expression: str, place: int, what: str) -> InputError:
    rest = expression[place:] or "the end"
    return InputError(f"in the query {expression!r}, {rest!r} {what}; write for example good & !(not | never)")
