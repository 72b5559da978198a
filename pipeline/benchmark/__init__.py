"""Benchmark manifests, label maps and their scores; light."""
