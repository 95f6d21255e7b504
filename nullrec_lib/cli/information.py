"""`nullrec isi`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from nullrec_lib.cli.common import AsJson, speaks
from nullrec_lib.errors import InputError

app = typer.Typer()


@app.command()
@speaks
def isi(
    u: Annotated[str, typer.Argument(
        help="Embeddings that tell: .npy, or .safetensors (FILE#NAME where it holds several tensors); one row per item.")],
    v: Annotated[str, typer.Argument(help="Embeddings that are told of: row i is the same item.")],
    seeds: Annotated[str, typer.Option(help="Of held-out rows, noise and densities.")] = "22,23,24",
    pca: Annotated[int, typer.Option(help="Principal components that are kept of each; 0 keeps all columns.")] = 32,
    noise: Annotated[float, typer.Option(
        help="Of V, in standard deviations: where V is a function of U, only with noise is there something to estimate.")]
    = 0.0,
    components: Annotated[int, typer.Option(help="Gaussian kernels of a density.")] = 8,
    covariance: Annotated[str, typer.Option(help="full, or low-rank for many columns and few rows.")] = "full",
    epochs: Annotated[int, typer.Option(help="At most, of a density.")] = 100,
    device: Annotated[Optional[str], typer.Option(help="cpu or cuda; without, cuda where there is one.")] = None,
    as_json: AsJson = False,
) -> None:
    """How much of V is in U: the information sufficiency index (PtE, Eq. 2), with all that it takes to read it.

    nullrec isi ids.npy texts.npy --pca 16 --noise 0.1

    h(V), h(V|U) and their difference are in nats, of V standardised, on held-out rows. The ratio is left out where h(V)
    is not positive.
    """
    from nullrec_lib.information.knife import Kernels
    from nullrec_lib.information.sufficiency import sufficiency
    from nullrec_lib.machine import choose_device

    try:
        drawn = tuple(int(part) for part in seeds.split(","))
    except ValueError:
        raise InputError(f"seeds: {seeds!r} is not a list of numbers such as 22,23,24.") from None
    found = sufficiency(_rows(u), _rows(v), drawn, pca or None, noise, Kernels(components, covariance, epochs=epochs),
                        choose_device(device or "auto"))
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    for name, told in (("h(V)", found.h_v), ("h(V|U)", found.h_v_given_u), ("I(U;V)", found.mi_nats), ("I_S", found.isi)):
        if told is not None:
            unit = "" if name == "I_S" else " nats"
            print(f"{name:>7} {told.value:9.4f}{unit}, 95% interval {told.low:.4f} to {told.high:.4f}")
    print(f"{found.rows['all']:,} rows, per seed {found.rows['fitted']:,} fitted and {found.rows['held_out']:,} held out; "
          f"{found.dims['u']} and {found.dims['v']} columns; seeds {', '.join(map(str, found.seeds))}")
    for said in ([found.why] if found.why else []) + list(found.flags):
        print(f"note: {said}")


def _rows(where: str):
    """The matrix in a file, as it is there; `sufficiency.views` says what is wrong with it.

    Raises:
        InputError: there is no such file or tensor, or it is damaged.
    """
    import numpy as np
    from safetensors import safe_open

    path, _, name = (where, "", "") if Path(where).is_file() else where.rpartition("#") if "#" in where else (where, "", "")
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file.")
    if not path.endswith((".npy", ".safetensors")):
        raise InputError(f"{path}: is neither .npy nor .safetensors.")
    try:
        if path.endswith(".npy"):
            # Mapped, and not read: a header may tell of more rows than there are.
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(rows, np.ndarray):
                raise ValueError("it is an archive of arrays")
            return rows
        with safe_open(path, "pt") as opened:
            names = sorted(opened.keys())
            if not name and len(names) == 1:
                name = names[0]
            if name in names:
                return opened.get_tensor(name)
    except Exception as error:  # numpy's and safetensors' own kinds
        why = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise InputError(f"{path}: not readable ({type(error).__name__}: {why}); write it again.") from None
    raise InputError(f"{path}: holds {', '.join(names) or 'no tensor'}; write {path}#NAME.")
