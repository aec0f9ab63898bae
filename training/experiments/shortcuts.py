"""Does the classifier distinguish data sets, and does that change its answer?

    python -m training shortcuts --config best --data FOLDER --data FOLDER --run RUN

A data set whose patients all bleed invites a shortcut: "looks like that scanner" in place of "looks like blood". Among
slices *without* hemorrhage the source carries no information about the label, so whatever the answer has to do with
it there is a shortcut. Val alone: on slices that it was trained on, any classifier is sure.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hemseg.errors import HemsegError

from ..config import Config
from ..data.datasets import DataSet, prepared
from ..data.field_of_view import network_slices
from ..fitting.classifier import predict
from ..fitting.trainer import load_network
from ..networks.slice_network import SliceNetwork, untrained_network
from ..stage_names import NETWORK, stage_names

FOLDS = 5


def shortcuts(network: SliceNetwork, dataset: DataSet, config: Config, prepared_folder: Path) -> list[dict[str, Any]]:
    """A row for each pair of data sets, from their val slices.

    Returns:
        ``from_features``: AUC of distinguishing the two by the pooled features of negative slices (logistic
        regression, cross-validated by patient); ``from_answer``: the same by the classifier's probability alone, 0.5
        where there is no shortcut; ``called_positive``: share of the negative slices of either with p >= 0.5.

    Raises:
        HemsegError: there are not two data sets with enough patients.
    """
    found = {
        source.name: _negatives(network, source, config, prepared_folder)
        for source in dataset.sources()
        if len(source.part("val")) >= FOLDS
    }
    if len(found) < 2:
        raise HemsegError(f"needs two data sets, each with {FOLDS} val patients; give --data twice.")
    rows = []
    for (first, (fa, pa, ga)), (second, (fb, pb, gb)) in itertools.combinations(found.items(), 2):
        source = np.repeat([0, 1], [len(fa), len(fb)])
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        groups = np.concatenate([ga, gb])
        features = np.concatenate([fa, fb])
        score = cross_val_predict(model, features, source, groups=groups, cv=GroupKFold(FOLDS), method="predict_proba")
        rows.append(
            {
                "first": first,
                "second": second,
                "negative slices": f"{len(fa)} / {len(fb)}",
                "from_features": round(float(roc_auc_score(source, score[:, 1])), 3),
                "from_answer": round(float(roc_auc_score(source, np.concatenate([pa, pb]))), 3),
                "called_positive": f"{np.mean(pa >= 0.5):.3f} / {np.mean(pb >= 0.5):.3f}",
            }
        )
    return rows


def _negatives(
    network: SliceNetwork, source: DataSet, config: Config, folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, channel), probability (n,) and patient (n,) of the val slices without hemorrhage."""
    features, probability, patients = [], [], []
    for case in prepared(folder, source, "val"):
        negative = torch.from_numpy((case.labels == 0) & case.intracranial.any(axis=(1, 2)))
        with torch.inference_mode():
            pooled = network.features(network_slices(case, config)[negative])
            answer = torch.sigmoid(network.fc(pooled)[:, 0])
        features.append(pooled.numpy())
        probability.append(answer.numpy())
        patients += [case.name] * int(negative.sum())
    return np.concatenate(features), np.concatenate(probability), np.array(patients)


def slice_answers(run: Path, dataset: DataSet, config: Config, splits: tuple[str, ...]) -> dict[str, float]:
    """The highest probability that the run's classifier gives to a slice of each case of some splits."""
    stages = stage_names()
    network = untrained_network(config.classifier)
    load_network(network, run / stages.sequence / NETWORK)
    answers = {}
    for case in dataset.part(*splits):
        names = (case.name, f"{dataset.name}_{case.name}")  # the latter where the run has several data sets
        name = next((n for n in names if (run / stages.prepare / f"{n}.npz").exists()), None)
        if name is None:
            raise HemsegError(f"{run}: has not prepared {case.name}; give the run that was made with {dataset.name}.")
        (found,) = prepared(run / stages.prepare, replace(dataset, cases=(replace(case, name=name),)), case.split)
        answers[case.name] = float(torch.sigmoid(predict(network, network_slices(found, config))).max())
    return answers
