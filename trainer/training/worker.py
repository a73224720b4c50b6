"""One process of a training.

`torchrun --nproc-per-node 8 -m trainer.training.worker RUN_DIRECTORY` starts the processes.
"""

import logging
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter

from bonbon.errors import BonbonError
from bonbon.observability.logs import configure_logs
from bonbon.pairs.reading.snapshot import read_snapshot
from bonbon.settings import load_settings
from trainer.result_files import write_json
from trainer.training.failure import Failure
from trainer.training.launch import JOB, OUTCOME, Job
from trainer.training.train import TrainingResult, train


def main(run_dir: Path, *, owned: bool) -> int:
    """Trains as the job in `run_dir` says.

    The main process writes the result to `run_dir`; any process that fails writes the error.

    Args:
        owned: End when standard input closes, which shows that the process holding the lease has ended.
    """
    configure_logs(libraries=logging.WARNING)
    if owned:
        threading.Thread(target=_end_with_owner, daemon=True).start()
    job = TypeAdapter(Job).validate_json((run_dir / JOB).read_bytes())
    settings = load_settings(model=job.model, train=job.train.model_dump())
    try:
        result = train(
            settings,
            read_snapshot(job.snapshot),
            run_dir,
            base=job.base,
            n=job.n,
            start=job.start,
            draws=job.draws,
            progress=job.progress,
        )
    except BonbonError as error:
        write_json(run_dir / OUTCOME, asdict(Failure.of(error)))
        return 1
    if os.environ.get("RANK", "0") == "0":
        write_json(run_dir / OUTCOME, TypeAdapter(TrainingResult).dump_python(result, mode="json"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _end_with_owner() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)  # not sys.exit: the other threads may be blocked in a collective that never ends


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), owned="--owned" in sys.argv[2:]))
