"""Is it better than the base? Held-out perplexity and one greedy answer for each adapter, with one base in memory.

The idea to know: perplexity is taken over exactly the positions training would take its loss over (the answers, stop
token included) and over rows that were never trained on, both derived from the data file alone (`adapterhub.data`).
"""

from adapterhub.evaluate.run import evaluate
from adapterhub.evaluate.scoring import Score, score
from adapterhub.evaluate.subjects import BASE
from adapterhub.evaluate.table import EvalRow

__all__ = ["BASE", "EvalRow", "Score", "evaluate", "score"]
