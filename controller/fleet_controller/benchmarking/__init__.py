"""Benchmarks: suites as data, the tools that measure, what they printed as rows, and what a cell costs. Pure."""
