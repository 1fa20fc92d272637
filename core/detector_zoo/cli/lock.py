"""`zoo lock`: write down which commit each reference to the Hub stands for, and what its files hash to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


def _use(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    from detector_zoo import lockfile

    if value is not None:
        context.with_resource(lockfile.using(value))


option = click.option(
    "--lock",
    type=click.Path(dir_okay=False, path_type=Path),
    expose_value=False,
    callback=_use,
    metavar="FILE",
    help="Of zoo lock; refuse what it does not name. [default: DETECTOR_ZOO_LOCK, else zoo.lock where there is one]",
)
"""``--lock`` of the commands that load detectors; it holds while the command runs."""


@click.command("lock")
@click.argument("references", nargs=-1, metavar="[hub:org/name|hf:org/model]...")
@click.option("--update", is_flag=True, help="Look again at what is locked already; without a name, at all of it.")
@click.option(
    "--lock",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="DETECTOR_ZOO_LOCK",
    default=Path("zoo.lock"),
    show_default=True,
    metavar="FILE",
    help="The lock file.",
)
def command(references: tuple[str, ...], update: bool, path: Path) -> None:
    """Pin references to the Hub: add them to the lock file, or move them with --update.

    Without a name and without --update, print what is locked. Weights are fetched and verified before they are locked.
    While the file is there, commands use the commits that it names and refuse files that differ from it.
    """
    from detector_zoo import hub_refs, lockfile

    refs = [hub_refs.parse(reference) for reference in references]
    entries = lockfile.read(path) if path.exists() or not refs else {}
    if update and not refs:
        refs = [hub_refs.parse(reference) for reference in entries]
    changed = 0
    for ref in refs:
        key = str(ref)
        before = entries.get(key)
        if before is not None and not update:
            continue
        entries[key] = _entry(ref, before)
        if before is None or before.commit != entries[key].commit:
            changed += 1
            click.echo(f"{key}: {f'{before.commit[:12]} -> ' if before else ''}{entries[key].commit[:12]}", err=True)
    if refs:
        lockfile.write(path, entries)
        click.echo(f"{path}: {len(entries)} locked, {changed} changed", err=True)
        return
    for key, entry in entries.items():
        click.echo(f"{key} {entry.commit} {entry.locked}")


def _entry(ref: Any, before: Any) -> Any:
    """What a reference is today; the day stays where nothing else has changed."""
    from dataclasses import replace
    from datetime import UTC, datetime

    from detector_zoo import convert, hub_refs, lockfile, weights

    hub_refs.forget()
    found = hub_refs.find(ref)
    fetched = weights.fetch(found.spec, progress=True)
    paths = {**found.files, found.spec.place.split("/", 2)[2]: fetched}
    entry = lockfile.Entry(
        commit=found.commit,
        locked=datetime.now(UTC).date().isoformat(),
        files={
            name: lockfile.File(sha256=convert.sha256_of(path), bytes=path.stat().st_size)
            for name, path in paths.items()
        },
    )
    same = before is not None and (before.commit, before.files) == (entry.commit, entry.files)
    return replace(entry, locked=before.locked) if same else entry
