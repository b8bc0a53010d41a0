"""Fields that have an effect with one value of a neighbour alone, as `vocab_size` with `train`.

With any other value they are null, and giving them is a mistake that is told.
"""

import dataclasses
from typing import Any


def only_with(selector: str, value: str, *, default: Any) -> Any:
    """Declare a field whose default holds where the field `selector` is `value`; else it is null.

    The schema calls `resolve` in `__post_init__`.
    """
    metadata = {"only_with": (selector, value), "default": default}
    return dataclasses.field(default=None, metadata=metadata)


def resolve(config: Any) -> None:
    """Put the defaults of conditional fields in, so that the resolved config tells them.

    Raises:
        ValueError: a field was given where it has no effect.
    """
    for field in dataclasses.fields(config):
        if "only_with" not in field.metadata:
            continue
        selector, wanted = field.metadata["only_with"]
        chosen, given = getattr(config, selector), getattr(config, field.name)
        if chosen == wanted and given is None:
            object.__setattr__(config, field.name, field.metadata["default"])
        if chosen != wanted and given is not None:
            raise ValueError(
                f"{field.name}: {given} has no effect with {selector} '{chosen}', only with "
                f"'{wanted}'; leave it out, or set it to null"
            )
