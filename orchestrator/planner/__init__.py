"""Demand and offers in, a plan with its reasons out; pure."""
