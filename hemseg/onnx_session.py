"""Model files on disk, and the ONNX Runtime sessions that run them."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any, get_args

from hemseg.choices import Device
from hemseg.errors import HemsegError
from hemseg.resources import check_model_memory

logger = logging.getLogger("hemseg")
DEVICES = get_args(Device)


def shrinking_arena() -> Any:
    """ONNX Runtime's options of a run after which a session gives its working memory back to the system."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def check_file(path: Path, sha256: str) -> None:
    """Raise HemsegError unless a model file is there and is the one that the manifest means."""
    check_model_memory(path)
    try:
        content = path.read_bytes()
    except OSError:
        raise HemsegError(f"{path}: the manifest names it, but it cannot be read.") from None
    if content.startswith(b"version https://git-lfs"):
        raise HemsegError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull`.")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise HemsegError(f"{path}: does not match the manifest's sha256; it is damaged or of another version.")


def session(path: Path, device: str, threads: int) -> Any:
    """The ONNX Runtime session of a model file; arguments and errors as for `load`."""
    import onnxruntime as ort

    if device not in DEVICES:
        raise HemsegError(f"device {device!r} is not known; give one of {', '.join(DEVICES)}.")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its warnings about missing GPUs are replaced by one sentence below
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # its one block for everything is a third larger than what is in use at once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it burns a sixth of the CPU time
    use_cuda = device != "cpu" and "CUDAExecutionProvider" in ort.get_available_providers()
    if device == "cuda" and not use_cuda:
        raise HemsegError("device cuda was asked for, but this ONNX Runtime has no CUDA; see requirements-cuda.txt.")
    if use_cuda:
        ort.set_default_logger_severity(4)
        ort.preload_dlls()
        providers = [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}), "CPUExecutionProvider"]
        try:  # without its own fallback, which prints a page of C++ before it goes on
            found = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        except Exception:  # ONNX Runtime raises many types of its own
            found = None
        if found and found.get_providers()[0] == "CUDAExecutionProvider":
            return found
        if device == "cuda":
            raise HemsegError(
                "device cuda was asked for, but CUDA does not work here; "
                "check the driver (nvidia-smi) and `docker run --gpus all`, or use --device cpu."
            )
        logger.warning("CUDA does not work here, running on the CPU (--device cpu says so without this line)")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise HemsegError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0][:160]}).") from None
