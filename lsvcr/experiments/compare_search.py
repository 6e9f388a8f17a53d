"""The settings that a row tries on validation: its own first, then draws of its lists of values, each once."""

import random
from collections.abc import Mapping
from math import prod
from typing import Any

from lsvcr.experiments.compare_recipe import Recipe


def trials(recipe: Recipe, count: int, seed: int) -> list[dict[str, Any]]:
    """At most `count` different settings: those of the file, then draws from all combinations of its lists.

    Args:
        recipe: of the row.
        count: how many; fewer where the lists have no more combinations.
        seed: draws are a function of it and of the row's name.

    Returns:
        Values by setting, for the settings that the row may search.
    """
    own = {name: getattr(recipe.settings, name) for name in recipe.search}
    lists = {name: list(dict.fromkeys(values)) for name, values in recipe.search.items()}
    total = prod(map(len, lists.values()))
    order = random.Random(f"{seed} {recipe.member.name}")
    found = [own]
    # Of all numbers without repetition, so that few combinations are exhausted and many are not listed.
    drawn = iter(order.sample(range(total), min(total, count)) if recipe.search else ())
    while len(found) < count and (number := next(drawn, None)) is not None:
        values = _combination(lists, number)
        if values != own:
            found.append(values)
    return found


def _combination(lists: Mapping[str, list[Any]], number: int) -> dict[str, Any]:
    """The combination of a number below the product of the lists' lengths."""
    chosen = {}
    for name, values in lists.items():
        number, place = divmod(number, len(values))
        chosen[name] = values[place]
    return chosen
