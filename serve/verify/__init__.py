"""Proof that what a running server answers is what was trained, and that its tenants don't mix.

Works on any server that speaks OpenAI's routes with vLLM's token ids and log-probabilities, and starts none.
"""

from adapterhub.serve.verify.report import COLUMNS, Checked, Fault, Report
from adapterhub.serve.verify.run import Served, verify

__all__ = ["COLUMNS", "Checked", "Fault", "Report", "Served", "verify"]
