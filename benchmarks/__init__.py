"""Benchmarks: every named layer and the whole network, each backend against every stock peer.

    python -m pytest benchmarks --benchmark-only            # all cases, under ten minutes
    python -m pytest benchmarks --benchmark-only --quick    # conv2_x, under two
    python -m benchmarks.report benchmarks/results/*/*.json

Each run writes one JSON file into ``benchmarks/results/<machine>/``; :mod:`benchmarks.results`
describes it. A case is checked against float64 before it is timed, its peers are timed in
interleaved rounds, and every figure stands beside the floor that the run's own ceilings set.
"""
