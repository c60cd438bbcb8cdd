"""Every recipe's training on the device, with validation: the weights and the history of the CPU's."""
import pytest
import torch
import yaml

from asc.augment.pipeline import pipelines, revise
from asc.core import seed_everything
from asc.model.classifier import create_classifier, save_model
from asc.teach.logits import save_teacher
from launch import ROOT
from networks import SMALL, beats_file
from trainings import check_training_twice, few_clips

RECIPES = {path.stem: path for path in sorted((ROOT/'nbs/recipes').glob('*.yaml'))}
# the networks of the recipes, as they are but for their size
SMALLER = {
    'cp_mobile_24': dict(base=8, blocks=[1, 1, 1], strides={}),
    'cp_mobile_23': dict(base=8, blocks=[1, 1, 1], strides={}),
    'passt_s': SMALL['passt_s'],
    'tf_sepnet_64': dict(base=16),
    'bc_resnet_40': dict(base=16),
}
# a device convolves all clips of a batch, a CPU some of them: 3e-8, which these networks' norms magnify, so all of them
ALL_CONVOLVED = 'easy-tf_sepnet', 'tf_sepnet_kd'


@pytest.fixture(scope='module')
def clips(packed): return few_clips(packed, 8)


@pytest.fixture(scope='module')
def files(clips, tmp_path_factory):
    "BEATs in small, a teacher's logits, and the run of one that answers live"
    folder = tmp_path_factory.mktemp('files')
    for tuned in (False, True): torch.save(beats_file(tuned), folder/f'beats-{tuned}.pt')
    seed_everything(5)
    small = dict(backbone_args=dict(base=20), frontend_args=dict(log='ln', eps=1e-6))
    teacher = create_classifier('tf_sepnet_dragon_60', 'dragonsearch', 'none', **small)
    save_model(teacher, folder/'run')
    names = [*clips.train.filename, *clips.valid.filename]
    save_teacher(folder/'logits.safetensors', names, torch.randn(len(names), 10), clips.names)
    return folder


def small_options(name, files):
    "The options of a recipe, for one epoch of small batches of a small network"
    options = yaml.safe_load(RECIPES[name].read_text(encoding='utf-8'))
    args = {key: value for key, value in options.pop('backbone_args', {}).items() if key != 'weights'}
    args |= SMALLER.get(options['backbone'], {})
    if options['backbone'] == 'beats':
        args = dict(args, weights=str(files/f"beats-{'sl' in args['mode'].split('+')}.pt"))
    if name in ALL_CONVOLVED:
        options['steps'] = revise(pipelines[options['pipeline']]['steps'], {'dir': {'p': 1.}})
    if 'distill' in options:
        options['teacher'] = str(files/('run' if 'sees' in options['distill'] else 'logits.safetensors'))
    options.pop('nb_aug', 0)
    if 'warmup_steps' in str(options.get('schedule')): options['schedule'] = {'warmup_cosine': {'warmup_steps': 1}}
    return options | dict(epochs=1, bs=4, backbone_args=args, join=1)


@pytest.mark.parametrize('name', RECIPES)
def test_recipe(name, clips, files, tmp_path):
    if 'passt' in name: pytest.importorskip('timm')
    check_training_twice(clips, tmp_path, **small_options(name, files))
