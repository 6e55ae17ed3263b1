"""What torch can train on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from layersync_core.cli.doctor.findings import Finding


def look() -> Iterator[Finding]:
    """Yield the devices; none if torch cannot be imported, which is reported under software."""
    try:
        import torch
    except Exception:
        return
    yield Finding("device", "cpu", "good", f"{torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            known = torch.cuda.get_device_properties(index)
            yield Finding("device", f"cuda:{index}", "good", f"{known.name}, {known.total_memory / 2**30:.0f} GiB")
    elif shutil.which("nvidia-smi") and torch.version.cuda is None and torch.version.hip is None:
        yield Finding("device", "cuda", "wrong", "a GPU driver is installed, but this torch is built without CUDA")
    elif torch.version.cuda is not None:
        yield Finding("device", "cuda", "note", f"torch is built for CUDA {torch.version.cuda} and sees no GPU")
    if torch.backends.mps.is_available():
        yield Finding("device", "mps", "good")
    if not torch.distributed.is_available():
        yield Finding("device", "several processes", "note", "this torch is built without torch.distributed")
