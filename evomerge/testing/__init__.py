"""Conformance suites for plug-ins: a new one gets its property tests by naming itself.

Needs pytest. Nothing of evomerge imports this package.
"""
