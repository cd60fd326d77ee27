"""The ways to compute a chunk that compare_peers.py holds side by side; one is built per process.

Each takes the same host inputs (pictures as the cameras send them, token ids, proprioception,
noise) and returns the chunk on the host, so all are timed from host to host.
"""

import torch

from spear_ros.inference.chunk_bench import request_of
from spear_ros.inference.engine import Engine, EngineSettings
from spear_ros.networks import flow_matching
from spear_ros.networks.spear1 import ChunkCache, PrefixInputs
from spear_ros.processing.images import ImageSize, fit_image

REFERENCE = 'networks'
# In the order of their run: what may take minutes comes last.
LABELS = {
    'engine': 'engine, as the robot runs it',
    REFERENCE: 'our plain networks, eager',
    'transformers': "the same network from transformers' modules, eager",
    'pi0': "transformers' PI0, as many vision tokens, eager",
    'engine_torch': 'engine, torch kernels instead of Triton',
    'engine_eager': 'engine without graphs (its eager twin)',
    'compiled_step': 'our plain networks, torch.compile, step by step',
    'compiled': 'our plain networks, torch.compile, all steps in one',
}


class EnginePeer:
    """Our engine."""

    def __init__(self, model, load, name):
        device = model.vlm.language.norm.weight.device
        settings = EngineSettings(
            steps=load.steps,
            capture_graph=name != 'engine_eager',
            kernels='torch' if name == 'engine_torch' else 'auto',
        )
        self.engine = Engine(model, device, settings)
        how = 'graphs' if self.engine.captures else 'line by line'
        self.note = '; '.join([how, *self.engine.warnings])

    def chunk(self, inputs):
        """(H, 8) on the host."""
        return self.engine.compute(request_of(inputs)).actions


class TensorPeer:
    """Whatever maps pictures, tokens, proprioception and noise on the device to a chunk."""

    def __init__(self, load, device, sample, picture=None):
        self.load, self.device, self.sample = load, device, sample
        config = load.config
        self.sizes = (ImageSize(*config.external_size), ImageSize(*config.wrist_size))
        self.picture = picture
        self.note = ''

    @torch.no_grad()
    def chunk(self, inputs):
        """(H, 8) on the host."""
        raw = [torch.from_numpy(p).to(self.device) for p in inputs.pictures]
        small = (inputs.tokens, inputs.proprio, inputs.noise)
        tokens, proprio, noise = (torch.from_numpy(a).to(self.device)[None] for a in small)
        if self.picture is not None:
            pictures = self.picture(raw[0])
        else:
            pictures = [fit_image(r, s)[None] for r, s in zip(raw, self.sizes, strict=False)]
        return self.sample(pictures, tokens, proprio, noise)[0].float().cpu().numpy()


def make(name, model, load, compile_mode):
    """Build one peer by its key in LABELS."""
    device = model.vlm.language.norm.weight.device
    if name.startswith('engine'):
        return EnginePeer(model, load, name)
    if name == REFERENCE:
        return TensorPeer(load, device, plain(model, load))
    if name in ('compiled', 'compiled_step'):
        peer = TensorPeer(load, device, compiled(model, load, compile_mode, name == 'compiled'))
        peer.note = f'mode {compile_mode}'
        return peer
    import transformers
    from _peers_transformers import TransformersNetwork, TransformersPi0

    version = f'transformers {transformers.__version__}'
    if name == 'transformers':
        network = TransformersNetwork(model, device)

        def sample(pictures, tokens, proprio, noise):
            return network.sample(pictures, tokens, proprio, noise, load.euler_steps)

        peer = TensorPeer(load, device, sample)
    else:
        dtype = model.vlm.language.norm.weight.dtype
        pi0 = TransformersPi0(load.config, load.cameras, dtype, device)
        version += f', {pi0.tokens} vision tokens against our {sum(load.images)}'

        def sample(picture, tokens, proprio, noise):
            return pi0.sample(picture, tokens, proprio, noise, load.euler_steps)

        peer = TensorPeer(load, device, sample, pi0.picture)
    peer.note = version
    return peer


def plain(model, load):
    """The networks' own sampling, line by line."""

    def sample(pictures, tokens, proprio, noise):
        return model.sample(prefix_of(pictures, tokens), proprio, noise, None, load.euler_steps)

    return sample


def prefix_of(pictures, tokens):
    """Pictures (external, then wrist where there is one) and tokens as the networks take them."""
    wrist = pictures[1] if len(pictures) > 1 else None
    return PrefixInputs(external=pictures[0], wrist=wrist, tokens=tokens)


def compiled(model, load, mode, whole):
    """torch.compile of the same: prefill, and all Euler steps at once or one at a time.

    Both parts return what they made: a compiled function that wrote into its arguments would lose
    its CUDA graphs. The cache of some megabytes is therefore copied per call.
    """
    table = model.time_table(load.euler_steps)
    times = flow_matching.euler_times(load.euler_steps)
    flow = load.config.flow

    def prefill(pictures, tokens, proprio):
        cache = model.prefill(prefix_of(pictures, tokens), proprio)
        return cache.kv, cache.cos, cache.sin

    def cache_of(kv, cos, sin):
        prefix = kv.shape[4] - load.config.suffix_tokens
        return ChunkCache(kv=kv.clone(), key_mask=None, cos=cos, sin=sin, prefix=prefix)

    def steps(actions, kv, cos, sin):
        cache = cache_of(kv, cos, sin)
        return flow_matching.integrate(
            lambda a, i: model.denoise_step(a, table[i : i + 1], cache),
            actions,
            flow,
            None,
            load.euler_steps,
        )

    def velocity(actions, row, kv, cos, sin):
        return model.denoise_step(actions, row, cache_of(kv, cos, sin))

    fast_prefill = torch.compile(prefill, mode=mode, dynamic=False)
    fast = torch.compile(steps if whole else velocity, mode=mode, dynamic=False)

    def sample(pictures, tokens, proprio, noise):
        torch.compiler.cudagraph_mark_step_begin()
        cache = fast_prefill(pictures, tokens, proprio)
        if whole:
            return fast(noise, *cache)
        actions = noise
        for i in range(load.euler_steps):
            v = fast(actions, table[i : i + 1], *cache)
            actions = flow_matching.flow_step(actions, v.clone(), times[i + 1] - times[i], flow)
        return flow_matching.finish(actions, flow)

    return sample
