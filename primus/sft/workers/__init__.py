# SPDX-License-Identifier: Apache-2.0
"""The same function on many batches, on all cores, with the results in order.

batches -> WorkerPool -> one process that loads what the function needs -> forks of it -> results
"""

from primus.sft.workers.job import Job
from primus.sft.workers.pool import WorkerPool, map_batches, num_cores

__all__ = ["Job", "WorkerPool", "map_batches", "num_cores"]
