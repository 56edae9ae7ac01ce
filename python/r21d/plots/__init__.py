"""Pictures of results: a prediction as a filmstrip, training as curves, errors as a matrix."""

from __future__ import annotations

from r21d.plots.confusion import confusion_matrix
from r21d.plots.curves import training_curves
from r21d.plots.filmstrip import filmstrip
from r21d.plots.run import run_curves

__all__ = ["confusion_matrix", "filmstrip", "run_curves", "training_curves"]
