"""Options that take an amount of memory or of bytes: 500000000, 500MB, 1.5 GB, 512MiB."""

from __future__ import annotations

import re

import click

UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("IB", 1024))
}


def size(context: click.Context | None, parameter: click.Parameter | None, value: str | None) -> int | None:
    """An option's value to bytes: 500000000, 500MB, 1.5 GB, 512MiB.

    Raises:
        click.BadParameter: It is no size, or below a million bytes.
    """
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", value.strip(), re.IGNORECASE)
    if found is None or found[2].upper() not in UNITS:
        raise click.BadParameter(f"{value!r} is not a size such as 500MB or 2GB", context, parameter)
    number = int(float(found[1]) * UNITS[found[2].upper()])
    if number < 1_000_000:
        raise click.BadParameter(f"{value!r} is less than 1MB", context, parameter)
    return number
