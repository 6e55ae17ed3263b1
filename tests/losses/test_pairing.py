"""The paper's rules for a pair, as advice and as a suggestion."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from layersync_core.losses.pairing import pair_advice, suggest_pair
from layersync_core.protocol import Block


def stack(depth: int, stages: Sequence[str] | None = None, widths: Sequence[int] | None = None) -> list[Block]:
    return [
        Block(k, f"blocks.{k}", "blocks", widths[k] if widths else 8, stages[k] if stages else "", depth)
        for k in range(depth)
    ]


# The released depths: Sana 20, PixArt and DiT 28, SD3 24, SD3.5 38, Wan 30 and 40, Flux 57, Qwen 60, SDXL 70.
@pytest.mark.parametrize("depth", range(1, 81))
class TestEveryDepth:
    def test_the_suggestion_is_a_pair_of_the_model(self, depth: int) -> None:
        blocks = stack(depth)
        student, teacher = suggest_pair(blocks)
        assert {student, teacher} <= set(blocks)
        assert (student.index < teacher.index) is (depth > 1)

    def test_the_suggestion_keeps_the_rules(self, depth: int) -> None:
        student, teacher = suggest_pair(stack(depth))
        assert pair_advice(student, teacher) == []
        if depth >= 5:
            assert teacher.index < depth * 0.8  # not in the last fifth
        if depth >= 12:
            assert student.index + 1 > depth / 10  # not among the very first
            assert teacher.index - student.index >= depth / 5  # a real gap

    def test_shallow_models_get_no_advice(self, depth: int) -> None:
        blocks = stack(depth)
        advised = [pair_advice(one, other) for one in blocks for other in blocks[one.index :]]
        assert any(advised) is (depth >= 12)

    def test_a_teacher_before_its_student_is_advised_against(self, depth: int) -> None:
        blocks = stack(depth)
        for student in blocks:
            for teacher in blocks[: student.index]:
                assert "is shallower than" in pair_advice(student, teacher)[0]


@pytest.mark.parametrize("depth", [24, 25, 26, 27, 28])
def test_the_usual_start_is_advised_against_by_nothing(depth: int) -> None:
    blocks = stack(depth)
    assert pair_advice(blocks[7], blocks[15]) == []


@pytest.mark.parametrize(
    ("student", "teacher", "says"),
    [
        (16, 8, "shallower"),
        (15, 16, "gap"),
        (15, 17, "gap"),
        (1, 16, "very first"),
        (3, 16, "very first"),
        (8, 30, "last fifth"),
        (8, 25, "last fifth"),
    ],
)
def test_each_rule_names_the_block_in_one_sentence(student: int, teacher: int, says: str) -> None:
    blocks = stack(30)
    (advice,) = pair_advice(blocks[student - 1], blocks[teacher - 1])
    assert says in advice
    assert "\n" not in advice
    assert f"block {teacher if says != 'very first' else student} of 30" in advice


@pytest.mark.parametrize(("student", "teacher"), [(15, 18), (4, 16), (8, 24)])
def test_no_rule_goes_further_than_it_says(student: int, teacher: int) -> None:
    blocks = stack(30)
    assert pair_advice(blocks[student - 1], blocks[teacher - 1]) == []


def test_several_rules_at_once() -> None:
    blocks = stack(30)
    assert len(pair_advice(blocks[29], blocks[0])) == 1
    assert len(pair_advice(blocks[0], blocks[29])) == 2


def test_the_student_itself_is_not_advised_about() -> None:
    """It has its own warning."""
    assert pair_advice(stack(30)[0], stack(30)[0]) == []


def test_an_unknown_depth_is_not_judged() -> None:
    one, other = Block(0, "blocks.0"), Block(40, "blocks.40")
    assert pair_advice(one, other) == []


class TestStages:
    """A pair shares stage and width, whatever the model's longest stage is."""

    SDXL = "0" * 4 + "1" * 20 + "m" * 10 + "2" * 30 + "3" * 6
    WIDTHS = (640,) * 4 + (1280,) * 60 + (640,) * 6

    def test_sdxl(self) -> None:
        student, teacher = suggest_pair(stack(70, self.SDXL, self.WIDTHS))
        assert (student.stage, teacher.stage) == ("2", "2")
        assert teacher.index - student.index >= 7
        assert pair_advice(student, teacher) == []

    @pytest.mark.parametrize(
        "stages",
        [
            "ab",
            "aab",
            "abb",
            "a" * 5 + "b" * 5,
            "a" * 2 + "b" * 30,
            "a" * 30 + "b" * 2,
            "abcdefgh",
            "ab" * 9,
            "a" + "b" * 3,
            "a" * 16 + "b" * 20,
            "".join(chr(97 + k) for k in range(15)) + "z" * 5,
        ],
    )
    def test_any(self, stages: str) -> None:
        student, teacher = suggest_pair(stack(len(stages), stages))
        assert student.stage == teacher.stage
        assert stages.count(student.stage) == max(map(stages.count, stages))
        assert student.index <= teacher.index
        longest = max(len(run) for run in stages.replace("ab" * 9, "a b " * 9).split())
        assert (student.index < teacher.index) is (longest > 1 and stages not in ("abcdefgh", "ab", "ab" * 9))

    def test_the_last_stage_is_the_longest(self) -> None:
        student, teacher = suggest_pair(stack(20, "a" * 6 + "b" * 6 + "c" * 8))
        assert (student.index, teacher.index) == (13, 15)  # 16 is in the last fifth of the model

    def test_widths_alone_separate_too(self) -> None:
        student, teacher = suggest_pair(stack(12, widths=[64] * 4 + [128] * 8))
        assert (student.width, teacher.width) == (128, 128)
