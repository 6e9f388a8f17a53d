"""DeepSpeed on CPU without a C++ compiler.

At start DeepSpeed compiles a shared-memory all-reduce for CPU processes with ninja and a C++ compiler, and
stops where either is missing. Only its tensor-parallel inference calls that op (`inference_all_reduce`); the
collectives of ZeRO training are those of torch's own backend with or without it. So it is left out on every
machine: a run needs no compiler, starts some 15 s sooner the first time, and is the same everywhere.
"""

_SHARED_MEMORY_OP = "deepspeed_shm_comm"


def prepare_cpu_ops() -> str:
    """Keep DeepSpeed from compiling ops for the CPU; call in every process before `deepspeed.initialize`.

    Returns:
        A sentence for the log that tells what happens instead; empty on an accelerator, where nothing changes.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        return ""
    # DeepSpeed builds what this table of its own calls compatible, and keeps edits to it.
    deepspeed.ops.__compatible_ops__[_SHARED_MEMORY_OP] = False
    return (
        "DeepSpeed on CPU: no op is compiled and no C++ compiler needed; "
        "the processes exchange gradients through gloo's own collectives"
    )
