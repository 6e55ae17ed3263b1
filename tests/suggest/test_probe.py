"""What a probe measures, against plain fp64 from stored activations."""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import combinations
from weakref import ref

import pytest
import torch
from torch import nn

from layersync_core import (
    BlockStackAdapter,
    CaptureError,
    ConfigError,
    Findings,
    Probe,
    attach,
    get_adapter,
    load_tiny,
)
from layersync_core.testing import scatter_weights, seed_everything
from tests.suggest import reference

CASES = {
    "dit": {},
    "flux": {},
    "flux with references": {"references": 1},
    "wan": {},
    "sdxl": {},
    "z_image": {},
    "hidream": {},
    "kandinsky5_video": {},
}


def made(case: str) -> tuple[nn.Module, object, list[dict]]:
    seed_everything()
    family = case.split()[0]
    tiny = load_tiny(family)
    model = tiny.tiny_model()
    scatter_weights(model)
    batch = 1 if family == "kandinsky5_video" else 2
    inputs = [tiny.example_inputs(model, batch, **CASES[case]) for _ in range(3)]
    for number, arguments in enumerate(inputs):  # all of one noise level
        time = arguments[tiny.timestep]
        scale = 1 if time.is_floating_point() and float(time.max()) <= 1 else 1000
        arguments[tiny.timestep] = torch.full_like(time, 0.3 * scale + 0.01 * number * scale)
    return model.eval(), get_adapter(family), inputs


@pytest.mark.parametrize("tokens", [10_000, 16])
@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_of_plain_fp64(case, tokens):
    model, adapter, inputs = made(case)
    forwards = []
    with Probe(model, adapter, tokens=tokens, seed=3) as probe:
        for arguments in inputs:
            model(**arguments)
        found = probe.findings()
    draws = {}
    for arguments in inputs:
        states = reference.stored(adapter, model, arguments)
        # Blocks of one resolution share a sub-sample, drawn when the first of them returns.
        groups: dict[tuple, list[int]] = {}
        for index, state in enumerate(states):
            groups.setdefault((len(state),), []).append(index)
        draw = draws.setdefault("draw", torch.Generator().manual_seed(3))
        kept = list(states)
        for indices in groups.values():
            for index, state in zip(indices, reference.pick([states[i] for i in indices], tokens, draw), strict=True):
                kept[index] = state
        forwards.append(kept)

    assert found.noise_levels == [0.375]
    blocks = adapter.list_blocks(model)
    compared = 0
    for one in blocks:
        for two in blocks:
            figures = [grid[0][one.index][two.index] for grid in (found.cka, found.centered_cosine, found.cosine)]
            fits = (one.stage, forwards[0][one.index].shape) == (two.stage, forwards[0][two.index].shape)
            if not fits:
                assert figures == [None, None, None]
                continue
            pairs = [(states[one.index], states[two.index]) for states in forwards]
            weights = [len(state) for state, _ in pairs]
            expected = [
                reference.cka(forwards, one.index, two.index),
                *(
                    sum(weight * of(*pair) for weight, pair in zip(weights, pairs, strict=True)) / sum(weights)
                    for of in (reference.centred, reference.cosine)
                ),
            ]
            assert figures == pytest.approx(expected, abs=1e-4), (one, two)
            compared += 1
    assert compared > len(blocks)
    if case == "sdxl":
        assert compared < len(blocks) ** 2


def test_samples_of_one_batch_are_sorted_by_their_time():
    model, adapter, _ = made("dit")
    arguments = load_tiny("dit").example_inputs(model, 4)
    arguments["timestep"] = torch.tensor([100, 900, 950, 120])
    with Probe(model, adapter, tokens=10_000) as probe:
        model(**arguments)
    found = probe.findings()
    assert found.noise_levels == [0.125, 0.875]
    states = [state.reshape(4, -1, state.shape[-1]) for state in reference.stored(adapter, model, arguments)]
    for level, chosen in enumerate(([0, 3], [1, 2])):
        some = [state[chosen].reshape(-1, state.shape[-1]) for state in states]
        assert found.cosine[level][1][4] == pytest.approx(reference.cosine(some[1], some[4]), abs=1e-5)
        assert found.cka[level][1][4] == pytest.approx(reference.cka([some], 1, 4), abs=1e-5)


def test_a_loop_gives_the_same_with_and_without_a_term():
    found = []
    for settings in ({"layersync_enabled": False}, {"layersync_enabled": True, "layersync_student_block": 2,
                     "layersync_teacher_block": 4}):  # fmt: skip
        model, adapter, inputs = made("flux")
        optimiser = torch.optim.SGD(model.parameters(), lr=0)  # the same weights in both
        sync = attach(model, settings)
        with sync.probe(seed=1) as probe:
            for arguments in inputs:
                with torch.no_grad():
                    model(**arguments)  # validation is not looked at
                sync.apply(model(**arguments)[0].square().mean()).backward()
                optimiser.step()
        found.append(probe.findings().content())
        assert probe.forwards == 3
    assert found[0] == found[1]
    model, adapter, inputs = made("flux")
    with Probe(model, adapter, seed=1) as probe:
        for arguments in inputs:
            model(**arguments)
    assert probe.findings().content() == found[0]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(reentrant):
    from torch.utils.checkpoint import checkpoint

    contents = []
    for checkpointed in (False, True):
        model, adapter, inputs = made("wan")
        model.train()
        if checkpointed:
            model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=reentrant))
        with Probe(model, adapter) as probe:
            for arguments in inputs:
                arguments["hidden_states"].requires_grad_(True)
                model(**arguments)[0].sum().backward()
        assert probe.forwards == 3
        contents.append(probe.findings().content())
    assert contents[0] == contents[1]


def test_blocks_that_a_trainer_calls_by_itself():
    model, adapter, _ = made("dit")
    states = torch.randn(2, 16, 32)
    with Probe(model, adapter) as probe:
        for _ in range(2):
            state = states
            for block in model.transformer_blocks:
                state = block(state, timestep=torch.tensor([3, 4]), class_labels=torch.tensor([1, 2]))
    assert probe.forwards == 2
    assert probe.findings().noise_levels == [None]


def test_no_output_is_held_longer_than_the_model_holds_it():
    model, adapter, inputs = made("dit")
    model.requires_grad_(False)
    alive = []
    with Probe(model, adapter):
        outputs = []
        blocks = model.transformer_blocks
        blocks[1].register_forward_hook(lambda module, args, output: outputs.append(ref(output)))
        blocks[4].register_forward_hook(lambda module, args, output: alive.append(outputs[-1]() is not None))
        model(**inputs[0])
    assert alive == [False]


def test_without_a_forward_it_says_why():
    model, adapter, inputs = made("dit")
    with Probe(model, adapter) as probe, torch.no_grad():
        model(**inputs[0])
    with pytest.raises(CaptureError, match=r"no forward of DiTTransformer2DModel was measured: .*no_grad"):
        probe.findings()


def test_an_own_capture_is_refused_by_name():
    model, adapter, _ = made("dit")

    class Own:
        family, api_version, model_classes = "mine", 1, ("DiTTransformer2DModel",)

        def supports_hidden_states(self, model):
            return True

        def list_blocks(self, model):
            return adapter.list_blocks(model)

        def capture(self, model, layers, buffer):
            class Handle:
                def remove(self):
                    removed.append(True)

            return Handle()

    removed: list[bool] = []
    with pytest.raises(ConfigError, match="adapter mine has its own capture"):
        Probe(model, Own())
    assert removed


def test_files(tmp_path):
    model, adapter, inputs = made("flux")
    with Probe(model, adapter) as probe:
        for arguments in inputs:
            model(**arguments)
    said = probe.findings().write(tmp_path / "out")
    assert said == [f"suggest.json, suggest.html, suggest.png in {tmp_path / 'out'}"]
    content = json.loads((tmp_path / "out" / "suggest.json").read_text())
    assert content["blocks"][:3] == ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0"]
    assert content["version"] == 1
    assert content["verdict"]["answer"] in ("yes", "no", "unknown")
    for name in ("cka", "cosine", "centered_cosine"):
        assert len(content[name]) == len(content["noise_levels"])
        assert all(len(grid) == len(content["blocks"]) for grid in content[name])
    page = (tmp_path / "out" / "suggest.html").read_text()
    for forbidden in ("<script", "<style", "style=", "http://", "https://", "src=", "href="):
        assert forbidden not in page.replace("http://www.w3.org/2000/svg", "")


def test_without_a_picture_the_one_of_before_goes(tmp_path, monkeypatch):
    model, adapter, inputs = made("dit")
    with Probe(model, adapter) as probe:
        model(**inputs[0])
    probe.findings().write(tmp_path)
    assert (tmp_path / "suggest.png").stat().st_mode & 0o777 == 0o644
    monkeypatch.setitem(sys.modules, "layersync_core.suggest.picture", None)  # as if matplotlib were missing
    (said,) = probe.findings().write(tmp_path)
    assert said.endswith("suggest.png needs matplotlib: pip install matplotlib")
    assert not (tmp_path / "suggest.png").exists()


def test_tokens_that_are_too_few_speak_for_nothing(tmp_path):
    model, adapter, inputs = made("dit")
    with Probe(model, adapter, tokens=1) as probe:
        model(**inputs[0])
    found = probe.findings()
    assert found.content()["verdict"]["answer"] == "unknown"
    assert "from only 1 forward; more may change the result" in found.lines()


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    model, adapter, inputs = made("dit")
    with Probe(model, adapter) as probe:
        model(**inputs[0])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be made: File exists"):
        probe.findings().write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, state):
        return state + self.linear(state)


class Shared(nn.Module):
    """A model that can run one of its blocks twice."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(depth))

    def forward(self, state, again=None):
        for number, block in enumerate(self.blocks):
            state = block(block(state)) if number == again else block(state)
        return state


SHARED = BlockStackAdapter(family="shared", model_classes="Shared", stacks="blocks")


def test_a_forward_in_which_a_block_ran_twice_is_not_measured():
    seed_everything()
    model, states = Shared(), torch.randn(2, 6, 8)
    with Probe(model, SHARED) as probe:
        model(states, again=1)
        with pytest.raises(CaptureError, match="no forward of Shared was measured: block 2 ran more than once"):
            probe.findings()
        model(states)
    assert probe.forwards == 1
    with Probe(model, SHARED) as plain:
        model(states)
    assert probe.findings().content() == plain.findings().content()


def test_a_last_block_that_ran_twice_is_told():
    model, states = Shared(), torch.randn(2, 6, 8)
    with Probe(model, SHARED) as probe:
        model(states, again=2)
        with pytest.raises(CaptureError, match=r"block 3 of 3 \(blocks.2\) ran more than once"):
            probe.findings()


def test_recommended_pairs_are_no_neighbours():
    found = Findings("Shared", SHARED.list_blocks(Shared(40)), [0.5], forwards=1)
    for name in ("cka", "cosine", "centered_cosine"):
        setattr(found, name, [[[0.5] * 40] * 40])
    pairs = [(pair["student"], pair["teacher"]) for pair in found.content()["recommended"]]
    assert len(pairs) == 3
    for (one, one_teacher), (other, other_teacher) in combinations(pairs, 2):
        assert abs(one - other) >= 4
        assert abs(one_teacher - other_teacher) >= 4


def test_a_small_sub_sample_is_as_small_as_it_was_asked_for():
    seed_everything()
    model, states = Shared(), torch.randn(2, 6, 8)
    found = []
    for tokens in (5, 12):
        with Probe(model, SHARED, tokens=tokens) as probe:
            model(states)
        found.append(probe.findings().cosine)
    states = reference.stored(SHARED, model, {"state": states})
    few = reference.pick(states, 5, torch.Generator().manual_seed(0))
    assert found[0][0][0][2] == pytest.approx(reference.cosine(few[0], few[2]), abs=1e-5)
    assert found[1][0][0][2] == pytest.approx(reference.cosine(states[0], states[2]), abs=1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_model_of_few_blocks_without_weights(depth):
    content = Findings("Shared", SHARED.list_blocks(Shared(depth))).content()
    assert content["verdict"]["answer"] == "unknown"
    assert len(content["recommended"]) == depth - 1
