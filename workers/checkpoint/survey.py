"""The survey of a checkpoint: plain data, readable without torch.

The surveyor (surveyor.py) makes it, in the compute process or in one of its own. The loader reads experts by it, and
compute views slots by it.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from ...ipc.messages import NEUTRAL, GenerationSettings
from ..kernels.table import NATIVE, KernelTable, LinearShape
from ..packed.coding import Coding, Input
from ..packed.packing import Packing
from .headers import DTYPE_BYTES
from .stamps import FileStamp

FLOAT4_PAIRS = "float4_pairs"


class SlotTensor(msgspec.Struct, frozen=True):
    """One parameter of an expert inside a slot, or a part of a packed one; its region starts at `region_bytes`.

    Only experts of its `kind`, in layers of its `variant`, have it.
    """

    name: str
    shape: list[int]
    dtype: str
    count_bytes: int
    region_bytes: int
    kind: int = 0
    variant: int = 0

    @property
    def itemsize(self) -> int:
        """Return the bytes of one value."""
        return self.count_bytes // math.prod(self.shape)


class Scales(msgspec.Struct, frozen=True, kw_only=True):
    """Factors for the stored values of a piece: one scale for each block of its matrix."""

    place: int
    """Column of the place table."""
    dtype: str
    """A float type, `F8_E8M0` (exponents), or `U8` (exponents without NaN)."""
    grid: list[int]
    """Scales in rows and columns."""
    block: list[int]
    """Rows and columns of stored values that one scale covers; fewer at the edges."""

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row of the grid in the file."""
        return self.grid[1] * DTYPE_BYTES.get(self.dtype, 1)


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Run of file bytes that becomes a run of a slot tensor.

    All experts of one kind and `variant` have the same pieces, at different places.

    `operation`: copy (bytes as they are), cast (to the slot tensor's dtype), transpose (a `source_shape` matrix, cast
    if needed), deinterleave (rows that alternate in the file: even ones first in the slot; cast if needed). With
    `scales` values are dequantised on the way, in float32, before they are cast.
    """

    tensor: int
    position_bytes: int
    """Within the slot tensor."""
    count_bytes: int
    """In the slot."""
    source_bytes: int
    """In the file."""
    source_dtype: str
    """A float type, `F8_E4M3`, or `FLOAT4_PAIRS`: two 4-bit floats (e2m1) a byte, the first in the low bits."""
    source_shape: list[int]
    """Values, not bytes."""
    operation: Literal["copy", "cast", "transpose", "deinterleave"] = "copy"
    scales: Scales | None = None
    coding: Coding | None = None
    """Its values are those of a packed matrix, made of the tensors at `inputs` (columns of the place table)."""
    inputs: list[int] = []
    input: Input | None = None
    """It is one part of a packed matrix, made of this stored tensor; those at `inputs` must be equal to it."""
    check: str = ""
    """Type of the scales that a packed matrix's piece holds (`Packing.scale_dtype`): those that are NaN are refused."""
    every: int = 1
    """Distance of its rows in the slot tensor (of columns, if transposed). Above 1 the piece has the whole tensor as
    its place, which it shares with others: their rows alternate."""
    first: int = 0
    """Row (or column) there that its first one is."""
    variant: int = 0
    """Layers whose experts are stored alike share one."""

    @property
    def is_copy(self) -> bool:
        """Return whether its bytes can be read straight into the slot, and be checked there."""
        repacked = self.input is not None and self.input.repack
        return self.operation == "copy" and not (repacked or self.inputs)

    @property
    def is_whole(self) -> bool:
        """Return whether it is converted at once, not rows by rows."""
        return self.coding is not None or self.input is not None

    @property
    def stored_bytes(self) -> int:
        """Return the bytes in the files, scales included."""
        return self.source_bytes + (self.scales.grid[0] * self.scales.row_bytes if self.scales else 0)


class RowFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Row operations that change no result of this model, and the bytes of its cache."""

    padding: bool = True
    """Rows of different lengths may share a unit."""
    moving: bool = True
    """Rows can be taken out of a cache and joined."""
    reason: str = ""
    """The reason if something is impossible."""
    extending: bool = True
    """A prompt can be prefilled in chunks."""
    copying: bool = True
    """The beginning of a row can be copied to others, which then do not compute it."""
    kv_bytes_per_position: int
    """Bytes of one padded position of one row, all layers: an upper bound."""
    kv_bytes_per_row: int = 0
    """Bytes that do not depend on the length (recurrent states, short windows)."""

    @property
    def limits(self) -> list[str]:
        """Return a sentence for each operation that is impossible, with the reason."""
        sentences = {
            "Slower: sequences of different lengths do not share a batch": self.padding,
            "Slower: sequences do not join a running batch": self.moving,
        }
        return [f"{text} ({self.reason})" for text, possible in sentences.items() if not possible]


class LinearCount(msgspec.Struct, frozen=True):
    """Number of linear layers of a shape."""

    shape: LinearShape
    count: int


class ModelSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a model by its configuration alone: enough to plan with before any weight is present (sizing.py)."""

    folder: str
    model_type: str
    architecture: str
    dtype: str
    context: int
    """Positions up to which the model is exact, whatever else is in the batch."""
    vocabulary: int
    layers: int
    """MoE layers, in the order they run."""
    encoder_layers: int = 0
    """MoE layers of the encoder, which are the first: they see only the prompt, the others what follows it."""
    experts: int
    """Experts of one layer, all kinds."""
    kinds: int = 1
    """Experts of a layer may differ in size: then they are numbered kind after kind, equally many of each."""
    top_k: int
    """Experts that a token is given to; the most where layers differ."""
    skeleton_bytes: int
    """Bytes of all but routed experts with every weight dequantised."""
    rows: RowFacts
    tensors: list[SlotTensor]
    variants: list[int] = []
    """For each layer, the variant of pieces that its experts have; empty: all layers are stored alike."""
    packings: list[Packing] = []
    """Matrices that slots hold as they are stored; compute unpacks them."""
    stride_bytes: int
    """Bytes of one slot, which holds an expert of any kind."""
    block_bytes: int
    """Alignment of direct reads; 1 when experts are too small for them and reads are buffered."""
    checkpoint_bytes: int = 0
    """Bytes of all files of weights; 0: not known."""
    stored_expert_bytes: int = 0
    """Bytes of one expert (of the largest kind) in those files, the mean over the layers; 0: not known."""
    packable: dict[str, str] = {}
    """Weights of linear layers whose GGUF blocks the native kernels can multiply with, and the type of the blocks."""
    packable_bytes: int = 0
    """Bytes by which the skeleton is smaller if these stay packed."""
    packs_linears: bool = False
    """They stay packed, by the kernel table that the survey was made with."""
    linears: list[LinearCount] = []
    """Linear layers of the skeleton that a decode step runs through, a shape each."""
    weights_here: bool = False
    notes: list[str] = []
    """Remarks on this checkpoint for the user: one sentence each."""

    @property
    def loaded_skeleton_bytes(self) -> int:
        """Return the bytes of all but routed experts as compute loads it, as far as is known."""
        return self.skeleton_bytes - (self.packable_bytes if self.packs_linears else 0)

    @property
    def remarks(self) -> list[str]:
        """Return the notes, and the reasons why the engine is slower with this model than with others."""
        return [*self.notes, *self.rows.limits]

    def kind_of(self, expert: int) -> int:
        return expert * self.kinds // self.experts

    def bytes_of(self, expert: int) -> int:
        """Return the payload bytes of that expert in any layer."""
        return self.kind_bytes[self.kind_of(expert)]

    @property
    def kind_bytes(self) -> list[int]:
        """Return the payload bytes of one expert of each kind, in the layers that store it largest."""
        sizes: dict[tuple[int, int], int] = {}
        for tensor in self.tensors:
            key = tensor.kind, tensor.variant
            sizes[key] = sizes.get(key, 0) + tensor.count_bytes
        return [max((size for (own, _), size in sizes.items() if own == kind), default=0) for kind in range(self.kinds)]

    @property
    def parameters(self) -> dict[str, list[int]]:
        """Return name and shape of the parameters of one expert, as they are computed with."""
        packed = {name for packing in self.packings for name in packing.tensors}
        plain = {tensor.name: tensor.shape for tensor in self.tensors if tensor.name not in packed}
        return plain | {packing.parameter: packing.shape for packing in self.packings}

    @property
    def expert_bytes(self) -> int:
        """Return the payload bytes of one expert, of the largest kind."""
        return max(self.kind_bytes)

    @property
    def experts_bytes(self) -> int:
        """Return the payload bytes of all experts, each as its own layer packs it."""
        layers = self.variants if self.packings and self.variants else [0] * self.layers
        return sum(each.count_bytes * layers.count(each.variant) for each in self.tensors) * self.experts // self.kinds

    @property
    def expert_count(self) -> int:
        return self.layers * self.experts

    def fully_resident(self, slots: int) -> bool:
        """Return whether every expert has a slot of its own."""
        return slots >= self.expert_count


class Survey(ModelSizes, frozen=True, kw_only=True):
    """Sizes of a checkpoint, its special tokens, and the places of the bytes of every expert."""

    eos_ids: list[int]
    first_token: int | None = None
    """First token of every output, if generation settings force one (`forced_bos_token_id`)."""
    settings: GenerationSettings = NEUTRAL
    """Generation settings of the model, which change the logits of every request."""
    notices: list[str] = []
    """Sentences for the user, shown once, on how this checkpoint was read."""
    decoder_start: int | None = None
    """Token given to a decoder before its first one; None for a model without an encoder."""
    module_names: list[str]
    """Path of the experts module of each MoE layer."""
    fingerprint: str = ""
    """Digest of routers, norms and sizes: equal for a widened copy, different for other weights (fingerprint.py)."""
    files: list[str]
    stamps: dict[str, FileStamp] = {}
    """Stamps of `files` and config.json, by path, from before the survey read them: later readers compare."""
    pieces: list[Piece]
    places: bytes
    """int64 [layers, experts, pieces and their scales and inputs, 2]: file index, offset in that file; zeros for pieces
    that an expert of this kind or layer does not have."""
    weights_here: bool = True
    aligned: bool = False
    """True if every tensor begins where its region does; else at the offset that a direct read needs (layout.py)."""
    kernels: KernelTable = KernelTable()
    """Kernel of every product, measured before the other stages are busy; the same for all processes of an engine."""

    @property
    def packed_linears(self) -> dict[str, str]:
        """Return the weights of linear layers that compute keeps packed: beside packed experts, by the native kernels.

        Not on a device, whose table names no kernels.
        """
        return self.packable if self.packings and self.kernels.uses(NATIVE) else {}

    @property
    def loaded_skeleton_bytes(self) -> int:
        """Return the bytes of all but routed experts as compute loads it."""
        return self.skeleton_bytes - (self.packable_bytes if self.packed_linears else 0)

    def variant_of(self, layer: int) -> int:
        return self.variants[layer] if self.variants else 0

    def tensors_of(self, layer: int, expert: int) -> list[int]:
        """Return the numbers of the slot tensors that an expert has. Only packed layers have tensors of their own."""
        kind, variant = self.kind_of(expert), self.variant_of(layer) if self.packings else 0
        return [n for n, tensor in enumerate(self.tensors) if (tensor.kind, tensor.variant) == (kind, variant)]

    def packings_of(self, layer: int) -> list[Packing]:
        """Return the packed matrices of the experts of a layer."""
        return [packing for packing in self.packings if packing.variant == self.variant_of(layer)]

    def lay_out(self, slots: int, tier: str, device: str = "cpu") -> Survey:
        """Return the survey for `slots` slots: aligned, which computes faster, if each expert is read only once.

        Bytes whose offsets differ between file and slot take another copy on their way: a tenth of the time of a read.
        On a device experts are always aligned: its libraries choose kernels by alignment, and the same expert must not
        get two.
        """
        aligned = self.fully_resident(slots) or tier == "host" or device != "cpu"
        return msgspec.structs.replace(self, aligned=aligned)

    def place_table(self) -> np.ndarray:
        """Return int64 [layers, experts, pieces and other stored tensors, 2]: file index and offset in bytes."""
        return np.frombuffer(self.places, dtype=np.int64).reshape(self.layers, self.experts, -1, 2)
