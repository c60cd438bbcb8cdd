"""Every recipe: known parameters of the right type and one real step of its training; how broken ones are refused."""
import json
from dataclasses import fields

import pytest
import torch
import yaml

from asc.train.options import TrainingOptions
from asc.augment.pipeline import create_pipeline, pipelines, revise
from asc.backbone.zoo import create_backbone
from asc.core import SCENES, InputError, seed_everything
from asc.experiment.checks import check_training
from asc.model.classifier import create_classifier
from asc.run.parameters import declared_parameters, find_notebook, full_parameters
from asc.train.finetune import layer_groups
from asc.train.losses import create_loss
from asc.train.optimizers import optimizers
from asc.train.schedules import create_schedule
from conftest import ROOT
from networks import SMALL, beats_file, need

RECIPES = {p.stem: p for p in sorted((ROOT/'nbs/recipes').glob('*.yaml'))}
# recipe with a faithful variant -> its pipeline
QUIRKS = {
    'cpjku23-student': 'cp',
    'cpjku23-cp_resnet': 'cp_resnet',
    'cpjku23-passt': 'passt',
    'easy-beats-ssl': 'easy_beats_ssl',
    'easy-beats-ssl-sl': 'easy_beats_ssl',
    'dragonsearch': 'dragonsearch',
}
# of train.ipynb, what a recipe leaves to who uses it
OPEN = {'data', 'data_dir', 'subset', 'seed', 'out', 'resume'}
# lists, scoring, places
OUTSIDE = {'nb_aug', 'log', 'resume', 'out'}


def read(name):
    "The table in a recipe"
    return yaml.safe_load(RECIPES[name].read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def beats(tmp_path_factory):
    "Two small files in the published format, self-supervised only and also supervised: True -> path"
    folder = tmp_path_factory.mktemp('beats')
    for tuned in (False, True): torch.save(beats_file(tuned), folder/f'{tuned}.pt')
    return {tuned: folder/f'{tuned}.pt' for tuned in (False, True)}


def network_args(r, beats):
    "Keywords of a recipe's network, with a small network in the place of a file that is not here"
    args = dict(r.get('backbone_args', {}))
    if r['backbone'] == 'beats':
        return dict(args, weights=beats['finetuned' in args['weights']])
    if r['backbone'] == 'passt_s':
        need(r['backbone'])
        args = {**SMALL['passt_s'], **{k: v for k, v in args.items() if k != 'weights'}}
    return args


def test_published_systems_are_all_there():
    assert set(RECIPES) >= {
        'dcase24-baseline', 'cpjku23-student', 'cpjku23-cp_resnet', 'cpjku23-passt',
        'easy-tf_sepnet', 'easy-bc_resnet', 'easy-cnn3', 'easy-beats-ssl-star',
        'easy-beats-ssl', 'easy-beats-ssl-sl', 'dragonsearch', 'sp4asc', 'sp4asc-focal',
        'sp4asc-mixup',
    }


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_is_well_formed(name):
    "Only parameters of train.ipynb, each of its type; the numbers it names make a schedule, a loss and an optimiser"
    params = full_parameters('train', name)
    assert RECIPES[name].read_text(encoding='utf-8').startswith('# ')
    rate_at = create_schedule(params['schedule'], params['lr'], params['epochs'], 100)
    rates = [rate_at(p / 1000) for p in range(1000)]
    assert 0 <= min(rates) and max(rates) == pytest.approx(params['lr'], rel=.02)
    # those files are not here
    args = {k: v for k, v in params['backbone_args'].items() if k != 'weights'}
    # nor is the teacher that `distill` needs
    check_training(TrainingOptions.of(params | dict(backbone_args=args, distill={})))
    assert not set(read(name)) & OPEN


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_trains(name, beats):
    "A step of the system on noise changes every parameter that has a gradient, and the loss is finite"
    r = read(name)
    seed_everything(0)
    steps = r.get('steps') or r['pipeline']
    model = create_classifier(
        r['backbone'], r['frontend'], steps, 44100, SCENES, network_args(r, beats),
        r.get('frontend_args'),
    ).train()
    opt = optimizers[r['optimizer']](model.parameters(), lr=r['lr'], weight_decay=r['wd'])
    before = [p.detach().clone() for p in model.parameters()]
    loss = create_loss(r.get('loss', 'ce'))(
        model(torch.randn(4, 44100) * .1, torch.zeros(4, dtype=torch.long)), torch.arange(4)
    )
    loss.backward()
    opt.step()
    assert torch.isfinite(loss)
    changed = [
        not torch.equal(a, b)
        for a, b in zip(before, model.parameters())
        if b.grad is not None and b.grad.any()
    ]
    assert changed and all(changed)


@pytest.mark.parametrize('name', QUIRKS)
def test_faithful_variant_differs_by_its_quirks(name):
    "The same system with the steps of the published code; otherwise what is told in its first line"
    r, faithful = read(name), read(f'{name}-faithful')
    preset = pipelines[QUIRKS[name]]
    assert r['pipeline'] == QUIRKS[name]
    assert faithful['steps'] == revise(preset['steps'], preset['quirks'])
    assert {k for k in {*r, *faithful} if r.get(k) != faithful.get(k)} == {
        'pipeline',
        'steps',
        *(['valid'] if name.startswith('cpjku23') else []),
        *(['frontend_args'] if name == 'dragonsearch' else []),
    }


def test_no_other_pipeline_has_a_quirk_that_matters():
    "What is left is easy_tfsepnet's: impulse responses at 32 kHz, which is the rate of its waves"
    assert {k for k, v in pipelines.items() if 'quirks' in v} - set(QUIRKS.values()) == {
        'easy_tfsepnet'
    }
    wrong, right = (
        create_pipeline('easy_tfsepnet', 44100, quirks=q).ops['1_dir'].bank for q in (True, False)
    )
    assert all(torch.equal(a, b) for a, b in zip(wrong.irs, right.irs))


@pytest.mark.parametrize(
    'name, trained',
    [
        ('easy-beats-ssl-star', {'classifier'}),
        ('easy-beats-ssl', {'encoder', 'classifier'}),
        ('easy-beats-ssl-sl', {'encoder', 'classifier'}),
    ],
)
def test_beats_recipes_tune_what_they_should(name, trained, beats):
    "SSL*: the head alone, the encoder still; SSL, SSL+SL: everything, lower layers with smaller gradients"
    r = read(name)
    net = create_backbone(
        'beats', weights=network_args(r, beats)['weights'], mode=r['backbone_args']['mode']
    ).train()
    assert {n.split('.')[0] for n, p in net.named_parameters() if p.requires_grad} == trained
    assert net.encoder.training == ('encoder' in trained)
    assert net.encoder.encoder.cfg['layer_wise_gradient_decay_ratio'] == .6
    groups = layer_groups(net, .9)[0](net)
    assert {id(p) for g in groups for p in g} == {
        id(p) for p in net.parameters() if p.requires_grad
    }


def test_absent_weights_are_refused_before_work():
    for name in ('easy-beats-ssl-star', 'easy-beats-ssl', 'easy-beats-ssl-sl'):
        if (ROOT/'data/weights'/f"{read(name)['backbone_args']['weights']}.pt").exists():
            pytest.skip('the genuine file is here')
        with pytest.raises(InputError, match='by hand .* data/weights/BEATs_iter3_plus_AS2M'):
            check_training(TrainingOptions.of(full_parameters('train', name)))
    with pytest.raises(InputError, match='no such file'):
        gone = dict(backbone_args=dict(weights='gone/BEATs.pt'))
        check_training(TrainingOptions.of(full_parameters('train', 'easy-beats-ssl', gone)))


@pytest.mark.parametrize(
    'text, sentence',
    [
        ('epoch: 5', "unknown parameter of train 'epoch'"),
        ('lr: "1e-3"', 'must be a number'),
        ('epochs: "5"', 'must be a whole number'),
        ('- epochs', 'where a table belongs'),
        ('epochs: [', 'cannot be read as YAML'),
        ('loss: {focal: {gama: 2.0}}', "unknown keyword 'gama'"),
        ('backbone_args: {width: 2}', 'has no option width'),
        ('steps: [resample, mel, log, {mixip: {}}]', "unknown augmentation 'mixip'"),
        ('steps: [{a: 1, b: 2}]', 'is no step'),
        ('steps: [resample, mel]', 'pipeline: the steps'),
        ('keep: best\nvalid: 0.0', 'set valid above 0'),
    ],
    ids=lambda v: v[:24],
)
def test_broken_recipe_is_refused(text, sentence, tmp_path):
    (tmp_path/'r.yaml').write_text(text)
    with pytest.raises(InputError) as e:
        params = full_parameters('train', tmp_path/'r.yaml')
        check_training(TrainingOptions.of(params), 0 if params['valid'] == 0 else None)
    assert sentence in str(e.value)


def test_what_shapes_a_training_is_in_one_place():
    "The parameters of train.ipynb are those of TrainingOptions, with type, default and meaning; OUTSIDE names the rest"
    notebook = json.loads(find_notebook('train').read_text(encoding='utf-8'))
    cell = next(c for c in notebook['cells'] if 'parameters' in c['metadata'].get('tags', []))
    lines = {}
    for line in ''.join(cell['source']).splitlines():
        name, meaning = line.split(':')[0], line.split(' # ')[-1]
        lines[name] = meaning
    declared = declared_parameters(find_notebook('train'))
    for entry in fields(TrainingOptions):
        kind, default = declared[entry.name]
        assert (kind, default) == (entry.type, entry.metadata['default']), entry.name
        assert lines[entry.name] == entry.metadata['meaning'], entry.name
    assert set(declared) - {entry.name for entry in fields(TrainingOptions)} == OUTSIDE
