"""Laws 5 and 12: what comes out has the shapes that it has without merging."""

from __future__ import annotations

import numpy as np

from adapters.frameworks import handed_on
from adapters.laws.base import ForEachCase
from adapters.ways import check_shapes
from tomecore.adapters.engine.find import find_tower


class Shapes(ForEachCase):
    """The outputs of a model, in every way of calling it."""

    def test_every_way_of_calling_gives_the_shapes_it_gave(self, case):
        model = case.model()
        _, tower, blocks = find_tower(case.fw.tome.HOST, case.fw.tome.SPECS, model)
        check_shapes(case.fw, model, case.tensors(), tower, blocks[0])


class Outputs(Shapes):
    """The outputs that readers of a model get."""

    def test_every_layer_can_hand_on_all_tokens(self, case):
        """Readers of intermediate layers change no number, only what can be seen."""
        fw, images = case.fw, case.images()
        usual = case.patched(r=8, trace_source=True)
        output, source = fw.forward(usual, images), fw.numpy(usual.tome.source)
        model = case.patched(r=8, trace_source=True)
        seen = []
        for block in case.blocks(model):
            fw.post_hook(block, lambda module, args, y: seen.append(fw.numpy(handed_on(y))) or None)
        with model.tome.all_tokens():
            dense = fw.forward(model, images)
        np.testing.assert_allclose(dense, output, rtol=0, atol=1e-12 * np.abs(output).max())
        assert np.array_equal(fw.numpy(model.tome.source), source)
        assert [x.shape[:2] for x in seen] == [(3, case.num_tokens())] * 4
        for x, tokens in zip(seen, model.tome.tokens, strict=True):
            assert max(len(np.unique(sample, axis=0)) for sample in x) <= tokens
        fw.forward(model, images)
        assert seen[-2].shape[1] == case.num_tokens() - (0 if case.dense else 24)
