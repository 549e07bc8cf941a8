"""Guiding tokens, axes and expert maps."""

import pytest

from espnet_smoe.guide import Axis, ExpertMap, GuideError, GuideTable, token

CONF = {"bandwidth": ["nb", "wb"], "task": ["asr", "st_de", "st_es"]}


@pytest.fixture
def guides():
    return GuideTable.from_mapping(CONF)


def test_a_token_is_the_name_in_angle_brackets():
    assert token("st_de") == "<st_de>"


def test_every_guide_goes_to_its_id_and_back(guides):
    for axis in guides.axes:
        for i, guide in enumerate(axis.guides):
            assert axis.index(guide) == i
            assert axis.tokens[i] == f"<{guide}>"


def test_the_prompt_has_one_token_per_axis_with_the_task_last(guides):
    prompt = guides.prompt({"task": "st_de", "bandwidth": "nb"})
    assert prompt == ("<nb>", "<st_de>")


def test_axes_are_added_by_yaml_alone():
    table = GuideTable.from_mapping(
        {"language": ["en", "fr"], "bandwidth": ["nb", "wb"], "task": ["asr"]}
    )
    assert [a.name for a in table.utterance_axes] == ["language", "bandwidth"]
    assert table.tokens == ("<en>", "<fr>", "<nb>", "<wb>", "<asr>")
    assert table.prompt({"language": "fr", "bandwidth": "wb", "task": "asr"}) == (
        "<fr>",
        "<wb>",
        "<asr>",
    )


@pytest.mark.parametrize(
    "axis, guide, known",
    [("bandwidth", "swb", "nb, wb"), ("task", "st_fr", "asr, st_de, st_es")],
)
def test_an_unknown_guide_is_refused_with_the_known_ones(guides, axis, guide, known):
    with pytest.raises(GuideError, match=f"'{guide}'; known: {known}"):
        guides.axis(axis).index(guide)
    row = {"bandwidth": "nb", "task": "asr", axis: guide}
    with pytest.raises(GuideError, match=f"'{guide}'; known: {known}"):
        guides.prompt(row)


def test_an_unknown_axis_is_refused_with_the_known_ones(guides):
    with pytest.raises(GuideError, match="unknown axis 'rate'; known: bandwidth, task"):
        guides.axis("rate")


def test_a_prompt_never_fills_in_a_missing_guide(guides):
    with pytest.raises(GuideError, match=r"no guide given for \['bandwidth'\]"):
        guides.prompt({"task": "asr"})


@pytest.mark.parametrize(
    "conf, reason",
    [
        pytest.param(None, "must map", id="nothing"),
        pytest.param({}, "must map", id="empty"),
        pytest.param({"task": ["asr"]}, "need the axis 'bandwidth'", id="no-bandwidth"),
        pytest.param({"bandwidth": ["nb"]}, "end in 'task'", id="no-task"),
        pytest.param(
            {"task": ["asr"], "bandwidth": ["nb"]}, "end in 'task'", id="task-first"
        ),
        pytest.param(
            {"bandwidth": "nb", "task": ["asr"]}, "must be a list", id="string"
        ),
        pytest.param(
            {"bandwidth": [], "task": ["asr"]}, "distinct guides", id="no-guide"
        ),
        pytest.param(
            {"bandwidth": ["nb", "nb"], "task": ["asr"]}, "distinct", id="doubled"
        ),
        pytest.param(
            {"bandwidth": ["asr"], "task": ["asr"]}, "more than one axis", id="shared"
        ),
        pytest.param(
            {"bandwidth": ["NB"], "task": ["asr"]}, "no guide name", id="capitals"
        ),
        pytest.param(
            {"bandwidth": ["nb"], "task": ["mt_de"]}, "must be 'asr'", id="task-name"
        ),
        pytest.param({"bandwidth": [8], "task": ["asr"]}, "no guide name", id="number"),
    ],
)
def test_guides_that_do_not_fit_together_are_refused(conf, reason):
    with pytest.raises(GuideError, match=reason):
        GuideTable.from_mapping(conf)


def test_an_axis_needs_a_guide():
    with pytest.raises(GuideError, match="distinct guides"):
        Axis("bandwidth", ())


def test_each_guide_has_its_own_expert_unless_shared(guides):
    experts = ExpertMap.build(guides, ["task"])
    assert experts.table == {(0,): 0, (1,): 1, (2,): 2}
    assert experts.num_experts == 3


def test_guides_can_share_an_expert(guides):
    shared = {"asr": 0, "st_de": 1, "st_es": 1}
    experts = ExpertMap.build(guides, ["task"], shared)
    assert experts.table == {(0,): 0, (1,): 1, (2,): 1}
    assert experts.num_experts == 2


def test_two_axes_route_by_every_combination(guides):
    experts = ExpertMap.build(guides, ["task", "bandwidth"])
    assert experts.axes == ("task", "bandwidth")
    assert experts.table[(2, 1)] == 5
    assert sorted(experts.table.values()) == list(range(6))


@pytest.mark.parametrize(
    "axes, shared",
    [
        pytest.param([], None, id="no-axis"),
        pytest.param(["task", "task"], None, id="doubled-axis"),
        pytest.param(["rate"], None, id="unknown-axis"),
        pytest.param(["bandwidth"], {"nb": 0}, id="guide-left-out"),
        pytest.param(["bandwidth"], {"nb": 0, "wb": 2}, id="expert-left-out"),
        pytest.param(["bandwidth"], {"nb": 0, "wb": 1, "asr": 1}, id="foreign-guide"),
        pytest.param(["bandwidth", "task"], {"nb": 0, "wb": 1}, id="shared-two-axes"),
    ],
)
def test_an_expert_map_that_does_not_fit_is_refused(guides, axes, shared):
    with pytest.raises(GuideError):
        ExpertMap.build(guides, axes, shared)
