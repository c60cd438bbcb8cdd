"""False alarms of an ablation: python tests/effects.py TRIALS

Ablations of changes that do nothing, five folds and three seeds as a rule; the share of them in which any change has a
p below 0.05, corrected for their number. nbs/score/26_effects.ipynb says what it printed.
"""
import sys

import numpy as np
import pandas as pd

from asc.score.effects import TALLY, effect_table, holm

PLACES, DEVICES = 30, 3


def imaginary_run(rng, easy, luck):
    "The tally of a run: ten scenes, three places each; places as hard as they are, and a seed's own luck in points"
    share = np.clip(easy + luck / 100 + rng.normal(0, .1, PLACES), .02, .98).repeat(DEVICES)
    place = np.arange(PLACES).repeat(DEVICES)
    table = pd.DataFrame(dict(scene_label=place // 3, location=place, unit='location', city='',
                              device=np.tile(np.arange(DEVICES), PLACES)))
    return table[TALLY].assign(clips=6, correct=rng.binomial(6, share).astype(float), loss=1.)


def imaginary_ablation(rng, changes, folds, seeds, fold_luck):
    "Corrected p values of changes that do nothing on average, but differ by `fold_luck` points from fold to fold"
    easy = rng.normal(.4, .2, (folds, PLACES))
    def runs(worth): # (folds,)
        return {fold: [imaginary_run(rng, easy[fold], worth[fold] + rng.normal(0, 2)) for _ in range(seeds)]
                for fold in range(folds)}
    base = runs(np.zeros(folds))
    changed = [runs(rng.normal(0, fold_luck, folds)) for _ in range(changes)]
    return holm([effect_table(base, after, scores=['macro_accuracy']).p.item() for after in changed])


def false_alarms(trials, changes=4, folds=3, seeds=2, fold_luck=0, seed=0):
    "The share of ablations without an effect in which one is seen"
    rng = np.random.default_rng(seed)
    return float(np.mean([min(imaginary_ablation(rng, changes, folds, seeds, fold_luck)) < .05 for _ in range(trials)]))


if __name__ == '__main__':
    for luck in (0, 1, 2):
        share = false_alarms(int(sys.argv[1]), 12, 5, 3, luck)
        print(f'12 changes, 5 folds, 3 seeds, effects that differ by {luck} points from fold to fold: '
              f'{100 * share:.1f} % of {sys.argv[1]} ablations', flush=True)
