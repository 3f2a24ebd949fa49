"""Recipes: what is done to a network and what each node is asked for, as values; presets and TOML files."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from narrowgauge.calibration.ranges import estimator
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import MODES, Mode
from narrowgauge.errors import PlanError, RecipeError
from narrowgauge.graph.roles import weight_inputs
from narrowgauge.planning.choices import Choices, NodeChoice
from narrowgauge.recovery.bit_widths import WIDTHS, parse_budget
from narrowgauge.recovery.methods import METHODS
from narrowgauge.targets.schema import Scope, Target

Position = Literal["first", "last"]
POSITIONS: tuple[Position, ...] = ("first", "last")
SCOPES: tuple[Scope, ...] = ("tensor", "channel", "block")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One rule: which nodes it matches, what it asks for them.

    Attributes:
        node: pattern of node names (`*` and `?` as in file names), "" for any.
        operator: ONNX operator name, "" for any.
        position: layers with weights before which (first) or behind which (last) there is none; None for any.
        keep_float: the node stays float.
        weights: name of the number type of its weights, "" for the recipe's.
        activations: name of the number type of its output.
        granularity: what one scale of its weights covers.
        estimator: name of the range estimator of its output.
    """

    node: str = ""
    operator: str = ""
    position: Position | None = None
    keep_float: bool = False
    weights: str = ""
    activations: str = ""
    granularity: Scope | None = None
    estimator: str = ""

    def choice(self) -> NodeChoice:
        """Return what the rule asks for.

        Raises:
            RecipeError: if a type or an estimator is unknown.
        """
        return NodeChoice(
            keep_float=f"kept float by the recipe ({self.description})" if self.keep_float else None,
            weights=_type(self.weights, "weights"),
            activations=_type(self.activations, "activations"),
            granularity=self.granularity,
            estimator=estimator(self.estimator) if self.estimator else None,
        )

    @property
    def description(self) -> str:
        """What it matches, for a person."""
        parts = [f"{key} {value}" for key, value in (("node", self.node), ("operator", self.operator)) if value]
        return ", ".join([*parts, *([f"{self.position} layer"] if self.position else [])]) or "every node"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What is done to a network.

    Attributes:
        name: of the preset or file.
        mode: when activations are rounded: with ranges known beforehand, at run time, or never.
        weights: name of the number type of weights, "" for the target's choice.
        activations: name of the number type of activations, "" for the target's choice.
        granularity: what one scale of weights covers, None for the target's choice.
        block_size: elements per scale of blocks, 0 for the target's choice.
        estimator: name of the range estimator of activations.
        weight_estimator: name of the range estimator of weights.
        symmetric: activations have no zero point, also where the target takes one; see `narrowed`.
        power_of_two: scales of weights are rounded up to a power of two.
        methods: names of the recovery methods that are tried, see `recovery.methods.METHODS`; in static mode only.
        measured: keep a method only where it lowers the error at the network's output; False keeps all.
        thrifty: leave out costly methods once that error is low.
        budget: what mixed precision may cost, see `recovery.bit_widths.parse_budget`; "" for one width everywhere.
        bits: widths of weights that a budget chooses from; 32 leaves a layer
            float; empty for the target's and float.
        rules: what single nodes are asked for; of several that match, the last one that says something wins.
    """

    name: str
    mode: Mode = "static"
    weights: str = ""
    activations: str = ""
    granularity: Scope | None = None
    block_size: int = 0
    estimator: str = "mse"
    weight_estimator: str = "max"
    symmetric: bool = False
    power_of_two: bool = False
    methods: tuple[str, ...] = ()
    measured: bool = True
    thrifty: bool = False
    budget: str = ""
    bits: tuple[int, ...] = ()
    rules: tuple[Rule, ...] = field(default=())


_RECOVERY = (
    "migrate", "equalize", "widen-streams", "rotate-streams", "cap-outliers", "choose-estimator", "refine-ranges",
    "correct-bias", "optimize-weights",
)  # fmt: skip

PRESETS: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="auto", methods=_RECOVERY, thrifty=True),
        Recipe(name="best", methods=_RECOVERY),
        Recipe(name="fast", methods=("migrate", "equalize", "correct-bias"), measured=False),
        Recipe(name="plain", estimator="max"),
        Recipe(name="dynamic", mode="dynamic"),
        Recipe(name="weight-only", mode="weight-only"),
        # TVM 0.19, relay.quantize: calibrate_mode "global_scale" with weight_scale "power2", or "kl_divergence" with
        # "max". Differs: the first convolution and dense layers, which it left float by default, are quantized too.
        Recipe(
            name="tvm-global-scale", granularity="tensor", estimator="global-scale", symmetric=True, power_of_two=True
        ),
        Recipe(name="tvm-kl", granularity="tensor", estimator="entropy", symmetric=True),
    )
}

_FORMER_NAMES = {"default": "auto"}


def load_recipe(name: str | Path | Recipe) -> Recipe:
    """Read a recipe: a preset's name, or a TOML file.

    Raises:
        RecipeError: if there is no such preset or file, or a key or a value is not what it should be.
    """
    if isinstance(name, Recipe):
        return name
    preset = _FORMER_NAMES.get(str(name), str(name))
    if preset in PRESETS:
        return PRESETS[preset]
    path = Path(name)
    if path.suffix != ".toml":
        raise RecipeError(f"expected a recipe: one of {', '.join(PRESETS)} or a .toml file, got {str(name)!r}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: could not read the recipe: {error}") from None
    try:
        return recipe_from_values(values, name=path.stem)
    except (RecipeError, PlanError) as error:
        raise RecipeError(f"{path}: {error}") from None


def recipe_from_values(values: Mapping[str, Any], *, name: str) -> Recipe:
    """Read a recipe from TOML values; `base` names the preset that it changes.

    Raises:
        RecipeError: if a key or a value is not what it should be.
    """
    rest = dict(values)
    base = rest.pop("base", "auto")
    base = _FORMER_NAMES.get(base, base) if isinstance(base, str) else base
    if not isinstance(base, str) or base not in PRESETS:
        raise RecipeError(f"expected 'base' to be one of {', '.join(PRESETS)}, got {base!r}")
    rows = rest.pop("rules", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RecipeError("expected 'rules' to be tables, as in [[rules]]")
    changed = _checked(rest, PRESETS[base], "recipe")
    recipe = replace(PRESETS[base], **changed, name=name, rules=tuple(_rule(row) for row in rows))
    choices(recipe)  # every type and estimator exists
    return recipe


def _rule(row: Mapping[str, Any]) -> Rule:
    rule = replace(Rule(), **_checked(row, Rule(), "rules"))
    if rule.position not in (None, *POSITIONS):
        raise RecipeError(f"rules: expected 'position' to be first or last, got {rule.position!r}")
    if not (rule.node or rule.operator or rule.position):
        raise RecipeError("rules: expected 'node', 'operator' or 'position' to say which nodes are meant")
    rule.choice()
    return rule


def _checked(values: Mapping[str, Any], defaults: object, place: str) -> dict[str, Any]:
    allowed = [key for key in defaults.__dataclass_fields__ if key not in ("name", "rules")]  # type: ignore[attr-defined]
    for key, value in values.items():
        if key not in allowed:
            raise RecipeError(f"{place}: unknown key {key!r}; expected some of {', '.join(allowed)}")
        kind = _kind(key, getattr(defaults, key))
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise RecipeError(f"{place}: expected {key!r} to be {kind.__name__}, got {value!r}")
    _check_values(values, place)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _check_values(values: Mapping[str, Any], place: str) -> None:
    """Refuse values that their type does not rule out."""
    known: tuple[tuple[str, type, Collection[Any]], ...] = (("methods", str, METHODS), ("bits", int, WIDTHS))
    for key, kind, allowed in known:
        for one in values.get(key, ()):
            if type(one) is not kind or one not in allowed:
                raise RecipeError(f"{place}: expected {key!r} to be some of {_listed(allowed)}, got {one!r}")
    for key, allowed in (("mode", MODES), ("granularity", SCOPES)):
        if values.get(key, allowed[0]) not in allowed:
            raise RecipeError(f"{place}: expected {key!r} to be one of {_listed(allowed)}, got {values[key]!r}")
    if values.get("budget"):
        parse_budget(values["budget"])
    if values.get("block_size", 0) < 0:
        raise RecipeError(f"{place}: expected 'block_size' to be 0 or more, got {values['block_size']}")


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))


def _kind(key: str, default: object) -> type:
    if isinstance(default, bool):
        return bool
    return int if key == "block_size" else list if key in ("methods", "bits") else str


def narrowed(target: Target, recipe: Recipe) -> Target:
    """Return a target that takes only what a recipe asks for: no zero points of activations, weights' powers of two.

    Raises:
        RecipeError: the target quantizes nothing whatever in the recipe's mode.
    """
    known = [mode for mode in MODES if any(mode in rule.modes for rule in target.operators)]
    if recipe.mode not in known:
        raise RecipeError(
            f"{target.name} quantizes nothing in {recipe.mode} mode; expected a recipe for "
            f"{' or '.join(known)} quantization (auto, best, fast and plain are static), or another target"
        )
    return replace(
        target,
        activations=replace(target.activations, symmetric=target.activations.symmetric or recipe.symmetric),
        weights=replace(target.weights, power_of_two=target.weights.power_of_two or recipe.power_of_two),
    )


def keep_float_rules(names: Iterable[str]) -> tuple[Rule, ...]:
    """Rules that keep nodes float, from what `--keep-float` takes: `first`, `last`, an operator, or a node's name."""
    return tuple(_keep_float_rule(name) for name in names)


def _keep_float_rule(name: str) -> Rule:
    if name in POSITIONS:
        return Rule(position=name, keep_float=True)
    return Rule(node=name, keep_float=True)


def choices(recipe: Recipe, model: ir.Model | None = None) -> tuple[Choices, tuple[str, ...]]:
    """Turn a recipe into what is asked of the planner.

    Args:
        recipe: the recipe.
        model: the simplified network; without one the rules are only checked.

    Returns:
        The choices, and a note for each rule that matched no node.

    Raises:
        RecipeError: if a type or an estimator is unknown.
    """
    everywhere = NodeChoice(
        weights=_type(recipe.weights, "weights"),
        activations=_type(recipe.activations, "activations"),
        granularity=recipe.granularity,
    )
    nodes: dict[str, NodeChoice] = {}
    notes = []
    for rule in recipe.rules if model is not None else ():
        matched = _matching(rule, model)  # type: ignore[arg-type]
        for name in matched:
            nodes[name] = _over(nodes.get(name, NodeChoice()), rule.choice())
        if not matched:
            notes.append(f"the recipe's rule for {rule.description} matched no node")
    if recipe.weight_estimator not in ("max", "mse"):
        raise RecipeError(f"expected 'weight_estimator' to be max or mse, got {recipe.weight_estimator!r}")
    chosen = Choices(
        mode=recipe.mode,
        everywhere=everywhere,
        nodes=nodes,
        estimator=estimator(recipe.estimator),
        weight_estimator=recipe.weight_estimator,
        block_size=recipe.block_size,
    )
    return chosen, tuple(notes)


def _over(old: NodeChoice, new: NodeChoice) -> NodeChoice:
    said = {key: getattr(new, key) for key in NodeChoice.__dataclass_fields__ if getattr(new, key) is not None}
    return replace(old, **said)


def _matching(rule: Rule, model: ir.Model) -> list[str]:
    ends = {str(node.name) for node in end_layers(model, rule.position)} if rule.position else set()
    found = []
    for node in model.graph:
        name = str(node.name)
        # A bare name may also be an operator's: `--keep-float Softmax`.
        named = not rule.node or rule.node in (name, node.op_type) or fnmatch.fnmatchcase(name, rule.node)
        if named and (not rule.operator or rule.operator == node.op_type) and (not rule.position or name in ends):
            found.append(name)
    return found


def end_layers(model: ir.Model, position: Position) -> list[ir.Node]:
    """Layers with weights that no other such layer comes before (first) or behind (last)."""
    nodes = list(model.graph) if position == "first" else list(reversed(list(model.graph)))
    behind: set[ir.Node] = set()  # nodes with a weighted one among those that come to them
    found = []
    for node in nodes:
        near = node.predecessors() if position == "first" else node.successors()
        passed = any(other in behind or weight_inputs(other) for other in near)
        if passed:
            behind.add(node)
        elif weight_inputs(node):
            found.append(node)
    return found


def _type(name: str, what: str) -> Any:
    if not name:
        return None
    try:
        return integer_type(name)
    except PlanError as error:
        raise RecipeError(f"{what}: {error}") from None
