# SPDX-License-Identifier: Apache-2.0
"""What a data set is made of, counted exactly, in the order that data flows through the modules.

gathering         recipe -> counts, hashes and sketches of batches, on all cores -> clusters
  counts          what adds up
    token_counts  whose tokens they are, and where trained turns end
    writing       code points: scripts, words, odd characters
    code_blocks   fenced code
    signals       oddities; refusals
  shingles        what near duplicates are compared by; MinHash bands
  near_duplicates candidates -> exact Jaccard index -> clusters
report            named figures
  lengths         what each sequence length would cut, pad and pack (packing_estimate)
page              the report as one HTML page (plots)
"""

from primus.sft.stats.figures import StatsReport
from primus.sft.stats.gathering import compare, gather
from primus.sft.stats.report import build_report
from primus.sft.stats.shingles import choose_bands

__all__ = ["StatsReport", "build_report", "choose_bands", "compare", "gather"]
