"""Benchmarks: every named layer and the whole network, each backend against every stock peer.

    python -m pytest benchmarks --benchmark-only            # under ten minutes on two cores
    python -m pytest benchmarks --benchmark-only --quick    # conv2_x, under two
    python -m pytest benchmarks --benchmark-only --full     # training of every layer too
    python -m benchmarks --cases conv2_x/bf16               # the same without pytest
    python -m benchmarks.report benchmarks/results/*/*.json
    python -m benchmarks.measurements benchmarks/results/nvidia-*/*.json    # for dispatch
    python -m benchmarks.decoding                           # clips a second, beside other decoders
    benchmarks/gpu_session.sh                               # all that a GPU is needed for

Each run writes one JSON file into ``benchmarks/results/<machine>/``; :mod:`benchmarks.results`
describes it. A case is checked against float64 before it is timed, its peers are timed in
interleaved rounds, and every figure stands beside the floor that the run's own ceilings set.
"""
