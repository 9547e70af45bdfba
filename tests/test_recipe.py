"""Recipes: rules, defaults, and patterns that find nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import pumice as pm
from pumice.checkpoint import TensorInfo
from pumice.recipe import Recipe

F32 = {
    "embeddings.word_embeddings.weight": (100, 32),
    "embeddings.LayerNorm.weight": (32,),
    "layer.0.attention.query.weight": (32, 32),
    "layer.0.attention.query.bias": (32,),
    "layer.0.mlp.gate.weight": (4, 32),
    "layer.0.mlp.gate_proj.weight": (40, 32),
    "layer.0.norm2d.weight": (2, 32),
    "layer.0.odd.weight": (8, 50),
    "lm_head.weight": (100, 32),
    "table": (3, 3),
}
INFOS = {name: TensorInfo(shape, "F32") for name, shape in F32.items()} | {
    "embeddings.position_ids": TensorInfo((1, 512), "I64"),
    "half.weight": TensorInfo((4, 32), "BF16"),
    "compact.weight": TensorInfo((4, 32), "int8", parts={"packed": "I32"}),
}


def plan(recipe: Recipe) -> dict[str, str | None]:
    return {n: None if c.scheme is None else str(c.scheme) for n, c in recipe.plan(INFOS).items()}


def test_the_defaults_compress_weights_and_leave_norms_routers_and_vectors() -> None:
    got = plan(Recipe().with_options("int4-g32"))
    assert got == {
        "embeddings.word_embeddings.weight": "int8",
        "embeddings.LayerNorm.weight": None,
        "layer.0.attention.query.weight": "int4-g32",
        "layer.0.attention.query.bias": None,
        "layer.0.mlp.gate.weight": None,
        "layer.0.mlp.gate_proj.weight": "int4-g32",
        "layer.0.norm2d.weight": None,
        "layer.0.odd.weight": "int4-g32",
        "lm_head.weight": "int8",
        "table": None,
        "embeddings.position_ids": None,
        "half.weight": "int4-g32",
        "compact.weight": None,
    }
    assert Recipe().with_options("int4-g32").plan(INFOS)["compact.weight"].why == "kept: already int8"
    assert plan(Recipe().with_options("int4-g32", allow_requantize=True))["compact.weight"] == "int4-g32"


def test_embeddings_stay_when_asked_and_under_sparse_schemes_and_follow_float_ones() -> None:
    name = "embeddings.word_embeddings.weight"
    assert plan(Recipe().with_options("int8", keep_embeddings=True))[name] is None
    assert plan(Recipe().with_options("csr"))[name] is None
    assert plan(Recipe().with_options("float16"))[name] == "float16"
    assert plan(Recipe().with_options("float16", keep_embeddings=True))[name] is None


def test_tensor_goes_before_ignore_and_ignore_before_the_recipe() -> None:
    recipe = Recipe.parse('[[rule]]\nmatch = "query"\nscheme = "int8"\n[[rule]]\nmatch = "table"\nscheme = "csr"')
    got = plan(recipe.with_options("int4", tensors={"^lm_head": "bfloat16"}, ignore=["lm_head|query"]))
    assert got["lm_head.weight"] == "bfloat16"
    assert got["layer.0.attention.query.weight"] is None
    assert got["table"] == "csr"


def test_the_first_rule_that_matches_wins_and_without_a_scheme_the_rest_stays() -> None:
    recipe = Recipe.parse('[[rule]]\nmatch = "query"\nscheme = "int8"\n[[rule]]\nmatch = "attention"\nignore = true')
    got = plan(recipe)
    assert got["layer.0.attention.query.weight"] == "int8"
    assert [name for name, scheme in got.items() if scheme] == ["layer.0.attention.query.weight"]


@pytest.mark.parametrize(
    ("fallback", "expected"), [(None, "int4-g32"), ("adjust", "int4"), ("ignore", None), ("error", pm.RecipeError)]
)
def test_groups_that_do_not_fit_fall_back_as_told(fallback: str | None, expected: object) -> None:
    recipe = Recipe().with_options("int4-g32", group_size_fallback=fallback)
    if expected is pm.RecipeError:
        with pytest.raises(
            pm.RecipeError, match=r"layer\.0\.odd\.weight: expected columns in multiples of 32 .* got 50"
        ):
            recipe.plan(INFOS)
    else:
        assert plan(recipe)["layer.0.odd.weight"] == expected


def test_adjust_takes_the_largest_group_that_divides_the_columns() -> None:
    infos = {"a.weight": TensorInfo((4, 96), "F32"), "b.weight": TensorInfo((4, 256), "F32")}
    choices = Recipe().with_options("int4-g128", group_size_fallback="adjust").plan(infos)
    assert [str(c.scheme) for c in choices.values()] == ["int4-g32", "int4-g128"]


def test_a_pattern_that_finds_nothing_is_an_error_with_near_names() -> None:
    with pytest.raises(pm.RecipeError, match=r"--ignore: .* got 'lm_haed' \(near: .*lm_head\.weight"):
        Recipe().with_options("int8", ignore=["lm_haed"]).plan(INFOS)
    with pytest.raises(pm.RecipeError, match="--tensor: .*a weight of two or more dimensions, got 'bias'"):
        Recipe().with_options("int8", tensors={"bias": "int4"}).plan(INFOS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule = 3", "recipe: expected list for 'rule', got 3"),
        ("schema = 'int8'", r"got 'schema' \(near: 'scheme'\)"),
        ("[[rule]]\nscheme = 'int8'", "recipe, rule 1: expected the key 'match'"),
        ("[[rule]]\nmatch = 'a'", "rule 1: expected one of scheme"),
        ("[[rule]]\nmatch = 'a'\nscheme = 'int8'\nignore = true", "rule 1: expected one of scheme"),
        ("[[rule]]\nmatch = '('\nignore = true", "rule 1: expected a regular expression, got '\\('"),
        ("[[rule]]\nmatch = 'a'\nscheme = 'int8'\nin_axis = 2", "expected in_axis 0 or 1, got 2"),
        ("[[rule]]\nmatch = 'a'\nignore = 1", "expected bool for 'ignore', got 1"),
        ("group_size_fallback = 'maybe'", "group_size_fallback: expected one of adjust, error, ignore"),
        ("not toml", "expected TOML"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(pm.RecipeError, match=message):
        Recipe.parse(text)


def test_a_recipe_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("x = 1")
    with pytest.raises(pm.RecipeError, match=r"r\.toml: expected the keys"):
        Recipe.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(pm.RecipeError, match="expected UTF-8"):
        Recipe.load(path)
    with pytest.raises(pm.SchemeError):
        Recipe.parse("scheme = 'int99'")


def test_a_recipe_with_methods_is_refused_where_only_schemes_are_followed() -> None:
    assert Recipe.parse("scheme = 'int8'\nmethod = 'nearest'").without_methods().scheme is not None
    for text in ("scheme = 'int8'\nmethod = 'gptq'", "[[rule]]\nmatch = 'a'\nscheme = 'csr'\nprune = 'wanda:0.5'"):
        with pytest.raises(
            pm.RecipeError, match="recipe: expected neither prune nor method, .* got '(gptq|wanda:0.5)'"
        ):
            Recipe.parse(text).without_methods()
