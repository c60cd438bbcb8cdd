"""Networks small enough for a test: keywords and input shapes by name, and a file of BEATs weights."""
import pytest
import torch

from asc.backbone.beats import BEATS_CFG, BEATS_FIXED, BEATs

SMALL_BEATS = dict(
    embed_dim=24, encoder_embed_dim=48, encoder_ffn_embed_dim=96, encoder_layers=2,
    encoder_attention_heads=4, conv_pos=16, conv_pos_groups=4, encoder_layerdrop=0.,
)
# name -> keywords of create_backbone
SMALL = {
    'passt_s': dict(dim=48, depth=2, heads=4),
    'beats': dict(cfg=SMALL_BEATS),
    'cnn6_60k': {},
}
# name -> bands and frames, where those of the registry are too many: one second, and half the bands
SHAPES = {
    'cnn6_60k': (256, 44),
    'tf_sepnet_64': (256, 64),
    'tf_sepnet_64_d16': (256, 64),
}
BIAS_TABLE = 'encoder.layers.{}.self_attn.relative_attention_bias.weight'


def need(name):
    "Skip the test where the package of a network is not installed"
    if name == 'passt_s': pytest.importorskip('timm')


def beats_file(finetuned=False):
    "A small file in the published format; `finetuned`: with the head of a supervised one"
    torch.manual_seed(0)
    state = BEATs(cfg=SMALL_BEATS).encoder.state_dict()
    state = {name: value + .02*torch.randn_like(value) for name, value in state.items()}
    # the layers share one table of positions
    state[BIAS_TABLE.format(1)] = state[BIAS_TABLE.format(0)].clone()
    if finetuned:
        state['predictor.weight'] = torch.zeros(527, 48)
        state['predictor.bias'] = torch.zeros(527)
    cfg = {**BEATS_CFG, **BEATS_FIXED, **SMALL_BEATS, 'finetuned_model': finetuned}
    return dict(cfg=cfg, model=state)
