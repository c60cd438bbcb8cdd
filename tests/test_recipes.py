"""Every recipe: known parameters of the right type, and one real training step of the system it describes."""
import ast
import json

import pytest
import torch
import yaml

from asc.classifier import create_classifier
from asc.core import SCENES, seed_everything
from asc.learner import optimizers
from asc.losses import create_loss
from asc.runs import check_type
from asc.schedules import create_schedule
from conftest import ROOT

RECIPES = sorted((ROOT/'nbs/recipes').glob('*.yaml'))
LARGE = {'cpjku23-passt'}                                      # fetches its weights


def declared():
    "Name -> type of the parameters of train.ipynb"
    nb = json.loads((ROOT/'nbs/train.ipynb').read_text(encoding='utf-8'))
    cell = next(c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', []))
    types = {t.__name__: t for t in (int, float, str, bool, list, dict)}
    read = lambda a: a.value if isinstance(a, ast.Constant) else types[a.id]
    return {n.target.id: read(n.annotation) for n in ast.parse(''.join(cell['source'])).body}


@pytest.mark.parametrize('path', RECIPES, ids=lambda p: p.stem)
def test_recipe_is_well_formed(path):
    "Only parameters of train.ipynb, each of its type; the numbers it names make a schedule, a loss and an optimiser"
    recipe, known = yaml.safe_load(path.read_text()), declared()
    assert set(recipe) <= set(known)
    for k, v in recipe.items(): check_type(k, v, known[k])
    at = create_schedule(recipe['schedule'], recipe['lr'], recipe['epochs'], 100)
    rates = [at(p / 1000) for p in range(1000)]
    assert 0 <= min(rates) and max(rates) == pytest.approx(recipe['lr'], rel=.02)
    assert recipe['optimizer'] in optimizers and create_loss(recipe.get('loss', 'ce'))


@pytest.mark.parametrize('path', [p for p in RECIPES if p.stem not in LARGE], ids=lambda p: p.stem)
def test_recipe_trains(path):
    "A step of the system on noise changes every parameter that has a gradient, and the loss is finite"
    r = yaml.safe_load(path.read_text())
    seed_everything(0)
    model = create_classifier(r['backbone'], r['frontend'], r['pipeline'], 44100, SCENES, r.get('backbone_args'), r.get('frontend_args')).train()
    opt = optimizers[r['optimizer']](model.parameters(), lr=r['lr'], weight_decay=r['wd'])
    before = [p.detach().clone() for p in model.parameters()]
    loss = create_loss(r.get('loss', 'ce'))(model(torch.randn(4, 44100) * .1, torch.zeros(4, dtype=torch.long)), torch.arange(4))
    loss.backward()
    opt.step()
    assert torch.isfinite(loss)
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters()) if b.grad is not None and b.grad.any()]
    assert changed and all(changed)
