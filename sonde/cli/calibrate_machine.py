"""`sonde calibrate machine`: what the machine that it runs on can do, as a device row."""

from __future__ import annotations

from pathlib import Path

import click

from sonde.cli.output import emit, json_option, note, progress, table
from sonde.errors import InputError


@click.command()
@click.option("--quick", is_flag=True, help="Measure less: half a minute in place of three.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the device row to this CSV file.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="What to measure (default: a GPU if there is one).")
@click.option("--disk", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Measure the disk under this folder (default: that of temporary files).")  # fmt: skip
@json_option
def machine(quick: bool, out: Path | None, device: str | None, folder: Path | None, as_json: bool) -> None:
    """Measure the machine that this runs on, and write a device row that scenarios can use.

    Memory bandwidth (STREAM), latency by size, matrix products, attention, starts of operators, disk and loopback;
    with torch also a traced decoding step, and a transformer that was not measured, timed and predicted. With --out
    machine.csv a scenario may say `hardware: [{device: machine.csv, price: $0.10/h}]`. Run it on an idle machine.
    """
    if out is not None and out.suffix.lower() != ".csv":
        raise InputError("--out", str(out), "must end in .csv, such as machine.csv", "no scenario could name the file")
    if out is not None and not out.resolve().parent.is_dir():
        raise InputError("--out", str(out), "must lie in a folder that exists", "what is measured could not be kept")
    from sonde.calibrate.machine.describe import as_json as described
    from sonde.calibrate.machine.describe import sheets
    from sonde.calibrate.machine.measured import measure
    from sonde.calibrate.machine.row import tables, write

    with progress() as tell:
        found = measure(quick=quick, device=device, folder=folder, progress=tell)
    rows = tables(found)
    if as_json:
        emit(described(found, rows))
    else:
        for sheet in sheets(found, rows):
            table(sheet.title, sheet.heads, sheet.rows, left=sheet.left)
    for what, why in found.missing:
        note(f"not measured: {what}: {why}")
    for remark in found.remarks:
        note(f"note: {remark}")
    if out is not None:
        files = write(found, out)
        note(f"wrote {', '.join(map(str, files))}")
