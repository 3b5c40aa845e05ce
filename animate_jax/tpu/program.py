"""What the TPU compiler says of a program: XLA's estimated cycles, kernels, messages, memory.

Its optimized HLO carries an estimate of the cycles of every fusion. Of a Pallas kernel XLA says
nothing: those are counted by RATES, which were read off the compiler's schedules of the kernels
(docs/performance.md). All of these are estimates, good for comparing; nothing is timed.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import typing

from animate_jax.parallel.chips import Chip

BYTES = {"bf16": 2, "f32": 4, "f16": 2, "s32": 4, "u32": 4, "u8": 1, "s8": 1, "pred": 1}
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
CALLED = re.compile(
    r"(?:body|to_apply|calls|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
NO_ESTIMATE = 2**62  # at least; 2**63 - 1 stands where the compiler has none, as happens for v4
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
LIMIT = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
CONDITION = re.compile(r"condition=%?([\w.\-]+)")
SHAPE = re.compile(r"\b(\w+)\[([\d,]*)\]")
COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
CHANNEL = re.compile(r"channel_id=(\d+)")
GROUP = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=)")
KERNEL = re.compile(r'op_name="[^"]*?([\w]+)/pallas_call"')
V5E_FLOPS_PER_CYCLE = 197e12 / 1.5e9


@dataclasses.dataclass(frozen=True)
class Program:
    """Of one device: bytes of memory, and what one run takes."""

    arguments: int
    temporaries: int
    outputs: int  # beside those that take over an argument's memory
    xla_cycles: float
    kernel_cycles: dict[str, float]
    messages: dict[str, tuple[int, int]]  # of each collective: how many, bytes
    without_estimate: int = 0  # operations that count as nothing, for the compiler gives none

    @property
    def memory(self) -> int:
        return self.arguments + self.temporaries + self.outputs

    @property
    def cycles(self) -> float:
        return self.xla_cycles + sum(self.kernel_cycles.values())

    def message_seconds(self, chip: Chip) -> float:
        """What the messages take on a chip's links, were nothing done meanwhile."""
        return sum(size for _, size in self.messages.values()) / chip.links


def read_program(compiled, chip: Chip) -> Program:
    """Of what `jax.stages.Lowered.compile` returned for a TPU."""
    memory = compiled.memory_analysis()
    estimates = read_hlo(compiled.as_text(), chip)
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        max(outputs, 0),
        *estimates,
    )


class Estimates(typing.NamedTuple):
    """As Program has them."""

    xla_cycles: float
    kernel_cycles: dict[str, float]
    messages: dict[str, tuple[int, int]]
    without_estimate: int


def read_hlo(text: str, chip: Chip) -> Estimates:
    """Of optimized HLO."""
    runs, inside_fusions = _runs(text), _runs(text, fusions=True)
    cycles, kernels, unknown = 0.0, collections.Counter(), 0
    sent, name, times = {}, None, 0
    for number, line in enumerate(text.splitlines()):
        if found := COMPUTATION.match(line):
            name = found.group(1)
            times = runs[name]
        if (found := COLLECTIVE.search(line)) and inside_fusions[name]:
            kind = found.group(1)
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # of the sum it keeps one part
            # One message may be begun, carried on and ended in several places, under one channel.
            channel = CHANNEL.search(line)
            sent[channel.group(1) if channel else f"line {number}"] = (
                kind,
                inside_fusions[name],
                _message_bytes(line),
            )
        if not times:
            continue
        if found := CYCLES.search(line):
            estimate = int(found.group(1))
            if estimate < NO_ESTIMATE:
                cycles += times * estimate
            else:
                unknown += times
        if 'custom_call_target="tpu_custom_call"' in line:
            kernel, needed = kernel_cycles(line, chip)
            kernels[kernel] += times * needed
    messages = collections.defaultdict(lambda: (0, 0))
    for kind, times, size in sent.values():
        count, total = messages[kind]
        messages[kind] = count + times, total + times * size
    return Estimates(cycles, dict(kernels), dict(messages), unknown)


def _runs(text, fusions=False):
    """How often each computation runs, those inside fusions too if asked for; a loop's as often as
    it is known to turn, and every branch of a condition as if it were taken."""
    calls, current, entry = collections.defaultdict(list), None, None
    limits = _limits(text)
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            current = found.group(1)
            entry = current if line.startswith("ENTRY") else entry
        # A fusion's estimate stands where it is called.
        elif current and (fusions or " fusion(" not in line):
            times = _trips(line, limits) if " while(" in line else 1
            called = CALLED.findall(line)
            if branches := BRANCHES.search(line):
                called += [name.strip(" %") for name in branches.group(1).split(",")]
            calls[current] += [(callee, times) for callee in called]
    runs = collections.Counter()

    def visit(name, times):
        runs[name] += times
        for callee, more in calls[name]:
            visit(callee, times * more)

    visit(entry, 1)
    return runs


def _limits(text):
    """The integer constants of every computation that compares something as smaller."""
    found, name = collections.defaultdict(list), None
    compares = set()
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            name = header.group(1)
        elif limit := LIMIT.search(line):
            found[name].append(int(limit.group(1)))
        elif "direction=LT" in line:
            compares.add(name)
    return {name: found[name] for name in compares}


def _trips(line, limits):
    """Turns of a loop: as the compiler says, or as its condition counts from 0 to a constant."""
    if said := TRIPS.search(line):
        return int(said.group(1))
    counted = limits.get(CONDITION.search(line).group(1), ())
    return counted[0] if len(counted) == 1 else 1


def _shapes(text):
    return [
        (kind, [int(n) for n in sizes.split(",") if n])
        for kind, sizes in SHAPE.findall(text)
        if kind in BYTES
    ]


def _message_bytes(line):
    """Of a collective: its largest result, which for an all-gather is what arrives, for several
    arrays that are summed together all of them; of a plain reduce-scatter the whole sum."""
    results = re.split(r" (?:all|reduce|collective)-", line, maxsplit=1)[0]
    sizes = [BYTES[kind] * math.prod(shape) for kind, shape in _shapes(results)]
    size = sum(sizes) if re.search(r" all-(?:reduce|to-all)\(", line) else max(sizes, default=0)
    if " reduce-scatter(" in line and (group := GROUP.search(line)):
        members, count = group.groups()
        size *= int(count) if count else members.count(",") + 1
    return size


# Operations that a kernel gets through in one cycle of a v5e, at the sizes of Stable Diffusion's
# widest level, and its cycles per element where the vector unit is what limits it.
RATES = {
    "spatial_attention_forward": 51e3,
    "spatial_attention_backward": 66e3,
    "picture_to_tokens": 76e3,
    "picture_to_pictures": 67e3,
    "picture_products": 72e3,
    "spatial_project": 110e3,
    "spatial_project_tokens_gradient": 79e3,
    "spatial_project_weights_gradient": 89e3,
    "spatial_add_output": 73e3,
    "feed_forward": 97e3,
    "feed_forward_tokens_gradient": 85e3,
    "feed_forward_weights_gradient": 98e3,
}
PER_ELEMENT = {
    "temporal_attention_forward": 0.0194,
    "temporal_attention_backward": 0.0572,
    "picture_sums": 0.0030,
}
# Operations for a token, in squares of its channels.
PRODUCTS = {
    "picture_to_tokens": 2.0,
    "picture_to_pictures": 2.0,
    "picture_products": 2.0,
    "spatial_project": 6.0,
    "spatial_project_tokens_gradient": 6.0,
    "spatial_project_weights_gradient": 6.0,
    "spatial_add_output": 2.0,
    "feed_forward": 24.0,
    "feed_forward_tokens_gradient": 40.0,
    "feed_forward_weights_gradient": 48.0,
}
# By channels: they have products too.
TEMPORAL_BLOCKS = {
    "temporal_block": {320: 0.0464, 640: 0.0518, 1280: 0.0865},
    "temporal_block_gradient": {320: 0.213, 640: 0.198, 1280: 0.251},
}


def kernel_cycles(line: str, chip: Chip) -> tuple[str, float]:
    """Name and estimated cycles of a custom call; ("unknown kernel", 0) of others than ours."""
    found = KERNEL.search(line)
    name = found.group(1) if found else ""
    operands = _shapes(re.split(r"operand_layout_constraints=", line)[-1].split("}}")[0])
    arrays = [shape for _, shape in operands if len(shape) > 1]
    size = max((math.prod(shape) for shape in arrays), default=0)
    if name in TEMPORAL_BLOCKS:
        rates = TEMPORAL_BLOCKS[name]
        nearest = min(rates, key=lambda channels: abs(channels - arrays[0][-1]))
        return name, size * rates[nearest]
    if name in PER_ELEMENT:
        return name, size * PER_ELEMENT[name]
    if name not in RATES:
        return "unknown kernel", 0.0
    if name in PRODUCTS:
        *tokens, channels = arrays[0]
        operations = PRODUCTS[name] * math.prod(tokens) * channels**2
    else:
        (batch, frames, channels, queries), keys = arrays[0], arrays[1][-1]
        references = [shape for shape in arrays if len(shape) == 3 and shape[1] == channels]
        reference = sum(rows * length for rows, _, length in references) / batch
        operations = 4.0 * batch * frames * queries * (keys + reference / 2) * channels
        operations *= 2.5 if name.endswith("backward") else 1.0
    speed = chip.flops / chip.clock / V5E_FLOPS_PER_CYCLE
    return name, operations / (RATES[name] * speed)
