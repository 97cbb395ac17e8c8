"""Speculation: which flags ask for it, and what measured pairs say. The pairs here are made up."""

import pytest

from fleet_controller.choosing.decision import decide
from fleet_controller.choosing.devices import device_named
from fleet_controller.choosing.options import Goal, Option, predicted_figure
from fleet_controller.choosing.speculation import method_of, pairs_of, plainly, speculation_of, verdict_of
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.work import Cell, EngineFacts, MeasuredSpeed, ModelWork, Phase
from fleet_controller.domain.plan import FitVerdict
from fleet_inventory.speed_reference import load_speed_models

ENGINE = EngineFacts(backend="llama.cpp", runtime="cuda", version="b11434", over_http=True)


def cell(model: str, speculation: str = "", device: str = "RTX 4090", depth: int = 0) -> Cell:
    facts = device_named(device)
    assert facts is not None
    return Cell(
        model=ModelWork.model_validate(load_speed_models()[model].model_dump()),
        device=facts,
        engine=ENGINE.model_copy(update={"speculation": speculation}),
        quantization="Q4_K_M",
        weights_bytes=load_speed_models()[model].parameters * 0.6,
        phase=Phase.DECODE,
        tokens=128,
        depth=depth,
    )


def pair(model: str, without: float, with_it: float, method: str = "mtp") -> list[MeasuredSpeed]:
    return [
        MeasuredSpeed(cell=cell(model), tokens_per_second=without, source="gpu1, run a"),
        MeasuredSpeed(cell=cell(model, method), tokens_per_second=with_it, source="gpu1, run b"),
    ]


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        ("-ngl 99 -c 8192", ""),
        ("-ngl 99 -md draft.gguf", "draft"),
        ("--model-draft=draft.gguf --draft-max 8", "draft"),
        ("--spec-type draft-mtp --spec-draft-n-max 3", "mtp"),
        ("--spec-type ngram-mod", "ngram"),
        ('--speculative-config {"method": "mtp", "num_speculative_tokens": 1}', "mtp"),
        ("--speculative-algorithm EAGLE --speculative-num-steps 3", "eagle"),
        ("--draft-model mlx-community/small", "draft"),
        ("--model mtp/model.gguf", ""),
    ],
)
def test_flags_ask_for_speculation_or_do_not(flags: str, method: str) -> None:
    assert speculation_of(flags) == method


def test_the_notes_words_are_the_same_methods() -> None:
    assert method_of("EAGLE 3 steps topk1 4 draft") == "eagle"
    assert method_of("mtp num_speculative_tokens=1") == "mtp"
    assert method_of("") == ""


def test_a_pair_differs_in_speculation_alone() -> None:
    rows = pair("qwen3.5-35b-a3b", 100.0, 80.0)
    (found,) = pairs_of(rows)
    assert found.gain == pytest.approx(-0.2)
    deeper = rows[1].model_copy(update={"cell": cell("qwen3.5-35b-a3b", "mtp", depth=8192)})
    assert pairs_of([rows[0], deeper]) == ()
    assert pairs_of(rows[1:]) == ()


def test_a_pair_of_the_model_speaks_before_those_of_its_class_and_those_of_the_other_class_never() -> None:
    pairs = pairs_of([*pair("qwen3.5-35b-a3b", 100.0, 80.0), *pair("qwen3.5-27b", 40.0, 60.0)])
    own = verdict_of(cell("qwen3.5-27b", "mtp"), pairs)
    assert own is not None
    assert not own.loses
    assert "gains 50%" in own.text
    alike = verdict_of(cell("glm-4.7-flash", "mtp"), pairs)
    assert alike is not None
    assert alike.loses
    assert alike.text == (
        "speculation (mtp) of mixtures of experts (qwen3.5-35b-a3b) on RTX 4090 loses 20% "
        "(1 measured pair: 100 t/s without, 80 with it, gpu1, run b)"
    )


def test_without_a_pair_on_this_device_and_of_this_method_nothing_is_said() -> None:
    pairs = pairs_of(pair("qwen3.5-35b-a3b", 100.0, 80.0))
    assert verdict_of(cell("qwen3.5-35b-a3b", "mtp", device="RTX 3090"), pairs) is None
    assert verdict_of(cell("qwen3.5-35b-a3b", "eagle"), pairs) is None
    assert verdict_of(cell("qwen3.5-35b-a3b", "mtp"), ()) is None


def test_within_noise_it_makes_no_difference() -> None:
    found = verdict_of(cell("qwen3.5-27b", "mtp"), pairs_of(pair("qwen3.5-27b", 100.0, 99.0)))
    assert found is not None
    assert not found.loses
    assert "makes no difference" in found.text


def test_where_a_pair_shows_a_loss_the_plain_one_is_chosen_and_it_says_so() -> None:
    """Also for another model of the class, from predictions that were fitted to the pair."""
    rows = pair("qwen3.5-35b-a3b", 100.0, 60.0)
    model, pairs = SpeedModel(rows), pairs_of(rows)
    asked = cell("glm-4.7-flash", "mtp")
    options = []
    for one, quantization in ((asked, "Q4_K_M with MTP"), (plainly(asked), "Q4_K_M")):
        found = verdict_of(asked, pairs)
        assert found is not None
        option = Option(backend="llama.cpp", quantization=quantization, fit=FitVerdict.FITS, bits_per_weight=4.8)
        notes = {"decode": predicted_figure(model.predict(one)), "notes": (found.text,)}
        options.append(option.model_copy(update=notes))
    first = decide(options, Goal.DECODE).ranked[0]
    assert first.option.quantization == "Q4_K_M"
    assert any("loses 40%" in reason for reason in first.reasons)


def test_a_gain_is_predicted_for_the_class_too() -> None:
    model = SpeedModel(pair("qwen3.5-27b", 40.0, 64.0))
    asked = cell("qwen3-32b", "mtp")
    assert model.predict(asked).tokens_per_second > 1.1 * model.predict(plainly(asked)).tokens_per_second
