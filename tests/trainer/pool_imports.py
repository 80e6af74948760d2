"""What the fork server of `pool` imports, once for all ranks of a test run.

A fork copies only the thread that forks: a thread pool that was started before would be missing in
every rank, and code that waits for it would hang. So every library is limited to one thread.
"""

import gc
import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import bitsandbytes  # noqa: E402, F401
import deepspeed  # noqa: E402, F401
import peft  # noqa: E402, F401
import torch  # noqa: E402
import torch.distributed.checkpoint.state_dict  # noqa: E402
import torch.distributed.fsdp  # noqa: E402
import transformers  # noqa: E402, F401
from transformers import AutoModelForCausalLM  # noqa: E402, F401
from transformers.integrations import deepspeed as _  # noqa: E402, F401
from transformers.models.llama import modeling_llama  # noqa: E402, F401

torch.set_num_threads(1)
names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
# Arrow's allocator has a thread that it starts again in a fork.
THREADS = [name for name in names if name != "jemalloc_bg_thd"]
"""Names of the threads after all imports: there must be one."""
# Pages that the garbage collector does not write to stay shared between the ranks.
gc.freeze()
