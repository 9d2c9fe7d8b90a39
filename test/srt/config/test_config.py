"""Options: defaults, and every bad value with a message that names what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sglang.srt.mem_cache.marconi.arguments import without_tuner
from sglang.srt.mem_cache.marconi.config import FLAGS, MarconiConfig, MarconiConfigError


def test_nothing_given_is_stock():
    assert MarconiConfig.from_options({}) is None
    assert MarconiConfig.from_options({flag.field: None for flag in FLAGS}) is None


def test_policy_2_completes_itself_with_defaults():
    config = MarconiConfig.from_options({"marconi_evict_policy": 2})
    assert config == MarconiConfig(
        2, "auto", "surviving", "both", 5.0, 500, False, 1024, 600.0, "sglang", ()
    )
    assert config.policy_name == "marconi"


@pytest.mark.parametrize("flags", [FLAGS, without_tuner(FLAGS)])
def test_auto_is_policy_3(flags):
    for options in ({}, {"marconi_evict_pools": "state"}):
        auto = MarconiConfig.from_options({"marconi_evict_policy": "auto", **options}, flags)
        assert auto == MarconiConfig.from_options({"marconi_evict_policy": 3, **options}, flags)
        assert auto.policy_name == "value" and not auto.tunes
    assert "auto is 3" in flags[0].help
    assert all(flag.help.endswith("Policy 2 only.") for flag in flags if flag.of_tuner)


def test_text_and_numbers_mean_the_same():
    typed = MarconiConfig.from_options({"marconi_evict_policy": 2, "marconi_eff_weight": 1})
    text = MarconiConfig.from_options({"marconi_evict_policy": "2", "marconi_eff_weight": "1.0"})
    assert typed == text and typed.marconi_eff_weight == 1.0


@pytest.mark.parametrize(
    ("options", "flag", "value", "allowed"),
    [
        ({"marconi_evict_policy": 7}, "--marconi-evict-policy", "7", "1, 2, 3, auto"),
        ({"marconi_evict_policy": True}, "--marconi-evict-policy", "True", "1, 2, 3, auto"),
        ({"marconi_evict_policy": "lru"}, "--marconi-evict-policy", "'lru'", "1, 2, 3, auto"),
        *[
            (
                {"marconi_evict_policy": 2, "marconi_eff_weight": bad},
                "--marconi-eff-weight",
                repr(bad),
                "is a finite number >= 0 or auto",
            )
            for bad in (-0.1, float("nan"), float("inf"), "half", True, "nan", "-1")
        ],
        (
            {"marconi_evict_policy": 2, "marconi_savings": "all"},
            "--marconi-savings",
            "'all'",
            "surviving, parent",
        ),
        (
            {"marconi_evict_policy": 2, "marconi_evict_pools": "kv"},
            "--marconi-evict-pools",
            "'kv'",
            "both, state",
        ),
        *[
            (
                {"marconi_evict_policy": 2, "marconi_tuning_interval": bad},
                "--marconi-tuning-interval",
                repr(bad),
                "is a whole number >= 0",
            )
            for bad in (-1, 0.5, "often")
        ],
        (
            {"marconi_evict_policy": 2, "marconi_bootstrap_multiplier": 0.9},
            "--marconi-bootstrap-multiplier",
            "0.9",
            "is a finite number >= 1",
        ),
        (
            {"marconi_evict_policy": 2, "marconi_tuner_memory_mib": 100},
            "--marconi-tuner-memory-mib",
            "100",
            "is a whole number >= 128",
        ),
        (
            {"marconi_evict_policy": 2, "disable_marconi_autotune": "maybe"},
            "--disable-marconi-autotune",
            "'maybe'",
            "True, False",
        ),
        (
            {
                "marconi_evict_policy": 2,
                "marconi_eff_weight": "auto",
                "disable_marconi_autotune": True,
            },
            "--marconi-eff-weight",
            "auto",
            "--disable-marconi-autotune",
        ),
        *[
            ({"marconi_evict_policy": policy, **option}, flag, "3 (value)", "policy 2")
            for policy in (3, "auto")
            for option, flag in (
                ({"marconi_eff_weight": "auto"}, "--marconi-eff-weight"),
                ({"marconi_tuning_interval": 60}, "--marconi-tuning-interval"),
                ({"disable_marconi_autotune": True}, "--disable-marconi-autotune"),
            )
        ],
        (
            {
                "marconi_evict_policy": 2,
                "marconi_eff_weight": 0.3,
                "marconi_tuning_interval": 5,
            },
            "--marconi-tuning-interval",
            "5",
            "--marconi-eff-weight auto",
        ),
        (
            {"marconi_evict_policy": 1, "marconi_admission": "all"},
            "--marconi-admission",
            "'all'",
            "sglang, judicious",
        ),
        (
            {"marconi_admission": "judicious"},
            "--marconi-admission",
            "'judicious'",
            "--marconi-evict-policy 1 or 2",
        ),
        *[
            (
                {
                    "marconi_evict_policy": 1,
                    "marconi_admission": "judicious",
                    "marconi_boundary_tokens": bad,
                },
                "--marconi-boundary-tokens",
                repr(bad),
                "token ids >= 0 separated by commas",
            )
            for bad in ("", "5;", "5,x", "-1", 7, [[]], [5])
        ],
        (
            {"marconi_evict_policy": 1, "marconi_boundary_tokens": "5"},
            "--marconi-boundary-tokens",
            "((5,),)",
            "--marconi-admission judicious",
        ),
        ({"marconi_eff_weight": 0.5}, "--marconi-eff-weight", "0.5", "--marconi-evict-policy 2"),
        *[
            (
                {"marconi_evict_policy": 1, "marconi_record": bad},
                "--marconi-record",
                repr(bad),
                "the name of a file",
            )
            for bad in ("", 7)
        ],
        (
            {"marconi_evict_policy": 1, "marconi_eff_weight": 0.5},
            "--marconi-eff-weight",
            "0.5",
            "--marconi-evict-policy 2",
        ),
    ],
)
def test_bad_values_are_named(options, flag, value, allowed):
    with pytest.raises(MarconiConfigError) as error:
        MarconiConfig.from_options(options)
    assert flag in str(error.value) and value in str(error.value) and allowed in str(error.value)


def test_admission_goes_with_every_policy():
    for policy in (1, 2, 3):
        options = {"marconi_evict_policy": policy}
        config = MarconiConfig.from_options({**options, "marconi_admission": "judicious"})
        plain = MarconiConfig.from_options(options)
        assert config == replace(plain, marconi_admission="judicious")


def test_boundary_tokens_are_sequences_of_ids():
    given = {"marconi_evict_policy": 1, "marconi_admission": "judicious"}
    for value in ("151644, 872;9", [[151644, 872], [9]]):
        config = MarconiConfig.from_options({**given, "marconi_boundary_tokens": value})
        assert config.marconi_boundary_tokens == ((151644, 872), (9,))


def test_an_unknown_option_is_named():
    with pytest.raises(MarconiConfigError, match="marconi_evict_polcy"):
        MarconiConfig.from_options({"marconi_evict_polcy": 2})


def test_what_is_left_to_the_tuner():
    def of(**options) -> MarconiConfig:
        return MarconiConfig.from_options({"marconi_evict_policy": 2, **options})

    assert of().tunes and of(marconi_eff_weight="auto").tunes
    assert not of(marconi_eff_weight=0.3).tunes
    disabled = of(disable_marconi_autotune=True)
    assert not disabled.tunes and disabled.marconi_eff_weight == 0.5
    assert of(disable_marconi_autotune="true") == disabled
    assert of(disable_marconi_autotune=False) == of()
    assert of(disable_marconi_autotune=True, marconi_eff_weight=2).marconi_eff_weight == 2.0
    assert not of(marconi_evict_policy=1).tunes and not of(marconi_evict_policy=3).tunes
    assert MarconiConfig.from_options({"disable_marconi_autotune": False}) is None


def test_where_there_is_no_tuner_nothing_is_left_to_it():
    flags = without_tuner(FLAGS)
    for policy in (1, 2, 3):
        config = MarconiConfig.from_options({"marconi_evict_policy": policy}, flags)
        assert config == replace(
            MarconiConfig.from_options({"marconi_evict_policy": policy}), marconi_eff_weight=0.5
        )
        assert not config.tunes
    assert not any("auto" in flag.help for flag in flags[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"marconi_evict_policy": 2, "marconi_eff_weight": "auto"},
            "--marconi-eff-weight is 'auto'; allowed is a finite number >= 0",
        ),
        (
            {"marconi_evict_policy": 1, "marconi_eff_weight": 1},
            "--marconi-eff-weight is 1.0 but --marconi-evict-policy is 1 (lru); allowed with it is "
            "--marconi-evict-policy 2",
        ),
    ],
)
def test_where_there_is_no_tuner_a_weight_is_a_number(options, message):
    with pytest.raises(MarconiConfigError) as raised:
        MarconiConfig.from_options(options, without_tuner(FLAGS))
    assert str(raised.value) == message


def test_where_there_is_no_tuner_it_has_no_options():
    with pytest.raises(
        MarconiConfigError, match="unknown Marconi option 'marconi_tuning_interval'"
    ):
        MarconiConfig.from_options(
            {"marconi_evict_policy": 2, "marconi_tuning_interval": 5}, without_tuner(FLAGS)
        )
