"""Law 16, of specs: what the halves do not call is named, and the anatomy is that of the attention."""

from __future__ import annotations

import numpy as np

from adapters.laws.base import ForEachCase
from tomecore.adapters.engine.contract import why_other_attention
from tomecore.adapters.engine.find import find_tower
from tomecore.adapters.engine.spec import attribute


def lies_in(path, known):
    """Whether a path is ``known``, in which ``*`` stands for every child, or below it."""
    pairs = list(zip(path.split("."), known.split("."), strict=False))
    return len(pairs) == known.count(".") + 1 and all(b in ("*", a) for a, b in pairs)


def modules_called(case, model, block, known):
    """Paths below ``block`` of the modules that a pass calls, without ``known`` and what is in them."""
    fw, found, hooks = case.fw, set(), []
    for path, module in fw.modules(block).items():
        if path and not any(lies_in(path, one) for one in known):
            hooks.append(fw.pre_hook(module, lambda *_, path=path: found.add(path)))
    model(case.tensors())
    for hook in hooks:
        hook.remove()
    return found


class Halves(ForEachCase):
    """Laws of what only the author of a spec knows, and could forget to write down."""

    def test_every_module_that_the_halves_do_not_call_is_named(self, case):
        """A hook or an adapter on a module that is bypassed and not named would be lost silently."""
        spec, model = case.spec, case.patched(r=4, prop_attn=True)
        block, known = case.blocks(model)[1], [*spec.bypasses, *spec.bypasses_biased]
        merging = modules_called(case, model, block, known)
        model.r = 0
        lost = sorted(modules_called(case, model, block, known) - merging)
        assert not lost, f"{spec.family}: merging does not call {lost}; name it in Spec(bypasses=)"

    def test_the_anatomy_is_that_of_the_attention(self, case):
        """An anatomy that leaves a part out is refused everywhere, so it would describe nothing."""
        fw, model = case.fw, case.model()
        host = fw.tome.HOST
        spec, _, _ = find_tower(host, fw.tome.SPECS, model)
        if spec.anatomy is None:
            return
        anatomy, block = spec.anatomy, case.blocks(model)[1]
        attention = attribute(block, anatomy.attention)
        reason = why_other_attention(host, attention, anatomy.classes)
        assert reason is None, f"{spec.family}: {reason}; name it in Anatomy(classes=)"
        x = case.entering(model, case.images())
        given = {name: v for name, v in case.arguments(model, x).items() if v is not None}
        y = attribute(block, anatomy.norm)(x) if anatomy.norm else x
        *whole, _ = anatomy.qkv(host, attention, y, given, None)
        *first, _ = anatomy.qkv(host, attention, y, given, 1)
        for part, expected in zip(first, [whole[0][:, :1], *whole[1:]], strict=True):
            found, expected = fw.numpy(part), fw.numpy(expected)
            limit = (2e-5 if case.rounds else 1e-12) * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
