"""Many runs through joblib: on this machine or a cluster, resumed where one stopped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from lab.run import simulate
from lab.spec import RunSpec


def finished_rows(out: Path | None) -> dict[str, dict[str, Any]]:
    """Rows of an earlier sweep by their run; a last line that was cut off is passed over."""
    if out is None or not out.exists():
        return {}
    rows = {}
    for number, line in enumerate(out.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            rows[row["run"]] = row
        except (ValueError, KeyError, TypeError) as error:
            print(f"{out}, line {number}: no row, passed over: {error!r}", file=sys.stderr)
    return rows


def connect(backend: str, cluster: str | None) -> None:
    """Join the cluster that ``backend`` runs on, or start one on this machine.

    Its workers need this repository's ``benchmark/marconi`` on their ``PYTHONPATH``, the same
    environment, and the traces under the same paths.

    Args:
        backend: "loky" (local processes, no cluster), "dask" or "ray".
        cluster: address of a running cluster, ``None`` for one of this machine.

    Raises:
        ValueError: another backend, a cluster without need, or a package that is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"--backend is {backend!r}; allowed are {', '.join(BACKENDS)}")
    if backend == "loky":
        if cluster is not None:
            raise ValueError(f"--cluster is {cluster!r}; allowed with --backend dask and ray only")
        return
    try:
        BACKENDS[backend](cluster)
    except ImportError as error:
        raise ValueError(
            f"--backend {backend} needs a package: pip install {error.name}"
        ) from error


def _connect_dask(cluster: str | None) -> None:
    from dask.distributed import Client

    Client(cluster)


def _connect_ray(cluster: str | None) -> None:
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    ray.init(address=cluster, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}})


BACKENDS: dict[str, Callable[[str | None], None]] = {
    "loky": lambda cluster: None,
    "dask": _connect_dask,
    "ray": _connect_ray,
}


def sweep(
    specs: Sequence[RunSpec], *, jobs: int, backend: str, out: Path | None
) -> Iterator[dict[str, Any]]:
    """The row of every spec, each as soon as it is there; rows of earlier sweeps come first.

    A run that fails is reported and yields no row; the others go on. A process that is killed ends
    the sweep, which keeps what is finished. At most ``jobs`` runs are in memory at a time; a new
    row is on disk before it is yielded.

    Args:
        backend: joblib's, of a cluster that :func:`connect` has joined.
        out: JSON lines file that rows are appended to.
    """
    done = finished_rows(out)
    unique = {spec.key(): spec for spec in specs}
    yield from (done[key] for key in unique if key in done)
    todo = [spec for key, spec in unique.items() if key not in done]
    if not todo:
        return
    single = len(todo) == 1 or jobs == 1
    with parallel_config(backend=backend, n_jobs=jobs):
        results = Parallel(return_as="generator_unordered")(
            delayed(_run)(spec, progress=single) for spec in todo
        )
    for row in tqdm(_until_death(results), total=len(todo), unit="run", disable=single):
        if "error" in row:
            print(f"failed: {row['trace']} {row['policy']}: {row['error']}", file=sys.stderr)
            continue
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            _append(out, row)
        yield row


def _until_death(results: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        yield from results
    except TerminatedWorkerError:
        print(
            "a process was killed, which is what too little memory does; finished rows are kept: "
            "run the same command again, with fewer --jobs",
            file=sys.stderr,
        )


def _append(out: Path, row: dict[str, Any]) -> None:
    """One line, after a line end even where an interrupted sweep left half a line."""
    with out.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def _run(spec: RunSpec, progress: bool) -> dict[str, Any]:
    try:
        return simulate(spec, progress=progress)
    except Exception as error:
        return {"trace": spec.trace, "policy": spec.policy, "error": repr(error)}
