# SPDX-License-Identifier: Apache-2.0
"""Which conversations share a training sequence, decided on their lengths alone.

  lengths of all -> pack_sequences() -> PackPlan      all of them at once
  a stream       -> OnlinePacker     -> packs         with a bounded number of conversations held back

plan       PackPlan and pack_sequences
best_fit   best-fit decreasing, counted in runs of equal packs
online     best fit among the conversations that wait
"""

from primus.sft.packing.best_fit import PackRun, best_fit_decreasing_runs
from primus.sft.packing.online import OnlinePacker
from primus.sft.packing.plan import METHODS, Method, PackPlan, pack_sequences

__all__ = ["METHODS", "Method", "OnlinePacker", "PackPlan", "PackRun", "best_fit_decreasing_runs", "pack_sequences"]
