"""Benchmarks: error rates and costs on hosts whose truth is known."""
