"""Decide the next steps of every run from what should be, what is, and the time; touches nothing.

This page holds what the record keeps, for those who only pass it on: a plan asks for no pass.
"""

from orchestrator.reconcile.values import Job, JobState, Retry, Run, RunEvent, RunState, Template, Wanted

__all__ = ["Job", "JobState", "Retry", "Run", "RunEvent", "RunState", "Template", "Wanted"]
